"""Nodes whose certificates say more than is true: removed ones, and managers that became workers.

A certificate cannot be called back; so every manager keeps the ids of removed nodes until their certificates expire,
and looks at what a manager's node was issued last (`orch_rpc.authorization.Policy`).
"""

from __future__ import annotations

from orch_manager.store.tables import Reader
from orch_manager.store.transaction import Transaction
from orch_proto.objects_pb2 import Cluster, Node, RemovedNode
from orch_proto.specs_pb2 import NodeRole


def remember_removed(transaction: Transaction, node: Node) -> None:
    """To be called in the transaction that deletes a Node."""
    if node.certificate.not_after_unix_ms <= transaction.now_unix_ms:
        return
    for cluster in transaction.all(Cluster):
        edited = transaction.edit(Cluster, cluster.id)
        edited.removed_nodes.append(RemovedNode(node_id=node.id, not_after_unix_ms=node.certificate.not_after_unix_ms))
        transaction.update(edited)


class RemovedNodes:
    """Answers whether a node was removed; quick enough to be asked at every call.

    Args:
        reader: the store.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._version = -1
        self._ids: frozenset[str] = frozenset()

    def __call__(self, node_id: str) -> bool:
        """Whether this node was removed."""
        for cluster in self._reader.all(Cluster)[:1]:
            if cluster.meta.version_index != self._version:
                self._version = cluster.meta.version_index
                self._ids = frozenset(each.node_id for each in cluster.removed_nodes)
        return node_id in self._ids


class DemotedManagers:
    """Answers whether a node that shows a manager's certificate was issued a worker's since.

    Args:
        reader: the store.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __call__(self, node_id: str) -> bool:
        """Whether this node is a worker by now."""
        node = self._reader.get(Node, node_id)
        return node is not None and node.certificate.role == NodeRole.NODE_ROLE_WORKER
