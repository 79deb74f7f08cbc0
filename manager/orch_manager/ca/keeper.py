"""The certificate keeper: has nodes renew whose certificates are not as they should be; moves a change of the root on.

(SwarmKit: ca/reconciler.go)
"""
# ruff: noqa: ARG002 - every loop has the same methods

from __future__ import annotations

from orch_manager.ca import roots
from orch_manager.store.schema import Kind, StoreObject
from orch_manager.store.tables import Reader
from orch_manager.workspace import Workspace
from orch_proto.ca_pb2 import RootPhase
from orch_proto.objects_pb2 import Cluster, IssuanceState, Node
from orch_rpc import logs

_log = logs.get("ca")


class CertificateKeeper:
    """A `ControlLoop`. A node learns that it is to renew from its Node object, which is sent to it when it changes."""

    def __init__(self) -> None:
        self._dirty = False

    def reset(self, reader: Reader) -> None:
        """Looks at every node in the next step."""
        self._dirty = True

    def observe(self, kind: Kind, object_id: str, old: StoreObject | None, new: StoreObject | None) -> None:
        """Notes changes of the authority, of roles and of certificates."""
        if kind is Cluster:
            changed = not isinstance(old, Cluster) or not isinstance(new, Cluster) or old.root_ca != new.root_ca
            self._dirty = self._dirty or changed
        elif kind is Node:
            alike = (
                isinstance(old, Node)
                and isinstance(new, Node)
                and old.certificate == new.certificate
                and roots.certificate_role(old) == roots.certificate_role(new)
            )
            self._dirty = self._dirty or not alike

    def has_work(self) -> bool:
        """True when there is something to look at."""
        return self._dirty

    def step(self, workspace: Workspace) -> int | None:
        """Marks the nodes that must renew; begins the next phase when none is left; forgets removed nodes in time."""
        self._dirty = False
        due_ms: int | None = None
        for cluster in workspace.all(Cluster):
            if cluster.root_ca.key_pem:
                self._look_at_nodes(workspace, cluster)
            due_ms = self._forget_removed(workspace, workspace.get(Cluster, cluster.id) or cluster)
        return due_ms

    def _look_at_nodes(self, workspace: Workspace, cluster: Cluster) -> None:
        wanted = roots.wanted(cluster.root_ca)
        complete = True
        for node in workspace.all(Node):
            if wanted.is_met_by(node):
                continue
            complete = False
            if node.certificate.state == IssuanceState.ISSUANCE_STATE_ROTATE:
                continue
            if not workspace.may_touch(Node, node.id):
                self._dirty = True
                return
            edited = workspace.edit(node)
            edited.certificate.state = IssuanceState.ISSUANCE_STATE_ROTATE
            workspace.put(edited)
            _log.info("node must renew its certificate", node=node.id)
        phase = roots.phase_of(cluster.root_ca)
        if complete and phase != RootPhase.ROOT_PHASE_STEADY and workspace.may_touch(Cluster, cluster.id):
            edited_cluster = workspace.edit(cluster)
            edited_cluster.root_ca.CopyFrom(roots.next_phase(cluster.root_ca))
            workspace.put(edited_cluster)
            ended = RootPhase.Name(phase).removeprefix("ROOT_PHASE_").lower()
            _log.info("root rotation goes on", cluster=cluster.id, ended=ended)
            self._dirty = True

    @staticmethod
    def _forget_removed(workspace: Workspace, cluster: Cluster) -> int | None:
        """Ids whose certificates have expired need no memory."""
        kept = [each for each in cluster.removed_nodes if each.not_after_unix_ms > workspace.now_ms]
        if len(kept) != len(cluster.removed_nodes) and workspace.may_touch(Cluster, cluster.id):
            edited = workspace.edit(cluster)
            del edited.removed_nodes[:]
            edited.removed_nodes.extend(kept)
            workspace.put(edited)
        return min((each.not_after_unix_ms for each in kept), default=None)
