"""Nodes that were removed while their certificates were still valid: those open nothing any more.

A certificate cannot be called back; so every manager keeps the ids of such nodes until their certificates expire, and
refuses their calls (`orch_rpc.authorization.Policy.is_removed`).
"""

from __future__ import annotations

from orch_manager.store.tables import Reader
from orch_manager.store.transaction import Transaction
from orch_proto.objects_pb2 import Cluster, Node, RemovedNode


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
