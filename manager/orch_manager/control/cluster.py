"""The cluster itself: how it is, its backup, the key that opens locked managers."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from orch_manager import tasks as states
from orch_manager.clock import Clock
from orch_manager.control.queries import public
from orch_manager.control.unlocking import UnlockKeys
from orch_manager.forwarding.leader import Leader
from orch_manager.members import quorum
from orch_manager.members.view import members_of
from orch_manager.store.store import Store
from orch_proto import control_pb2 as control
from orch_proto.objects_pb2 import Cluster, Node, NodeState, Service, Stack, Task
from orch_raft.engine import Suffrage
from orch_rpc import logs
from orch_rpc.errors import OrchError, Unavailable

_log = logs.get("control")
_PART_BYTES: Final = 1024 * 1024
BACKUP_FORMAT: Final = 1
#: Asks the leader, at an address, how the cluster is.
AskLeader = Callable[[str], Awaitable[control.ClusterInfoResponse]]


class ClusterApi:
    """See the module.

    Args:
        store: read.
        leader: knows who leads.
        unlock_keys: autolock.
        clock: what time it is.
        node_id: this manager's node.
        version: of this software.
        ask_leader: what only the leader knows of the other managers; None: there are no others.
    """

    def __init__(
        self,
        store: Store,
        leader: Leader,
        unlock_keys: UnlockKeys,
        *,
        clock: Clock,
        node_id: str,
        version: str,
        ask_leader: AskLeader | None,
    ) -> None:
        self._store = store
        self._leader = leader
        self._unlock_keys = unlock_keys
        self._clock = clock
        self._node_id = node_id
        self._version = version
        self._ask_leader = ask_leader

    # ---- how it is -----------------------------------------------------------------------------------

    async def info(self, *, stale: bool) -> control.ClusterInfoResponse:
        """How the cluster is, as the leader sees it; while there is none, or `stale`, as this manager does."""
        found = self._leader.where()
        if stale or found is None or found.here or self._ask_leader is None:
            return self._own_view()
        try:
            answer = await self._ask_leader(found.address)
        except OrchError as error:
            _log.warning("the leader does not tell how the cluster is", address=found.address, reason=error)
            answer = self._own_view()
            answer.warnings.append(f"the leader ({found.address}) did not answer: this is what this manager knows")
        answer.node_id = self._node_id
        answer.version = self._version
        return answer

    def _own_view(self) -> control.ClusterInfoResponse:
        status = self._store.engine.status()
        members = members_of(self._store.engine)
        nodes = {node.id: node for node in self._store.all(Node)}
        answer = control.ClusterInfoResponse(
            version=self._version,
            raft_term=status.term,
            raft_index=status.applied_index,
            tolerates=quorum.tolerates(each.as_manager for each in members),
            stacks=len(self._store.all(Stack)),
            services=len(self._store.all(Service)),
            node_id=self._node_id,
        )
        for cluster in self._store.all(Cluster)[:1]:
            answer.cluster.CopyFrom(public(cluster).cluster)
        for each in members:
            member = each.member
            node = nodes.get(member.node_id)
            answer.members.add(
                raft_id=member.raft_id,
                node_id=member.node_id,
                address=member.address,
                leader=each.leads,
                learner=member.suffrage is Suffrage.LEARNER,
                reachable=each.reachable,
                match_index=each.match,
                hostname=node.description.hostname if node is not None else "",
            )
            if each.leads:
                answer.leader_node_id = member.node_id
        if not answer.leader_node_id:
            answer.no_leader_for_ms = max(1, int(self._leader.missing_for_s() * 1000))
            answer.tolerates = 0
        answer.warnings.extend(self._warnings(answer))
        answer.nodes_by_state.update(Counter(node_state_name(node) for node in nodes.values()))
        answer.tasks_by_state.update(Counter(states.state_name(task.status.state) for task in self._store.all(Task)))
        return answer

    @staticmethod
    def _warnings(answer: control.ClusterInfoResponse) -> list[str]:
        voters = [member for member in answer.members if not member.learner]
        warnings = []
        if not answer.leader_node_id:
            needed = quorum.quorum(len(voters))
            warnings.append(
                f"there is no leader: {needed} of {len(voters)} managers must reach each other. Tasks run on; nothing "
                f"can be changed"
            )
        else:
            lost = [member.hostname or member.node_id for member in voters if not member.reachable]
            if lost and not answer.tolerates:
                warnings.append(f"{', '.join(lost)} cannot be reached, and no further manager may be lost")
        if len(voters) > 1 and (unwise := quorum.advice(len(voters))):
            warnings.append(unwise)
        return warnings

    # ---- backup --------------------------------------------------------------------------------------

    async def backup(self) -> AsyncIterator[control.BackupPart]:
        """The whole state as it is now: a header, its bytes, their digest.

        Raises:
            Unavailable: this manager has no state yet.
        """
        clusters = self._store.all(Cluster)
        if not clusters:
            raise Unavailable("cannot make a backup", "this manager has not received the state yet", "try again soon")
        status = self._store.engine.status()
        writer = self._store.snapshot()
        yield control.BackupPart(
            header=control.BackupHeader(
                format=BACKUP_FORMAT,
                cluster_id=clusters[0].id,
                index=status.applied_index,
                term=status.term,
                made_at_unix_ms=self._clock.unix_ms(),
                version=self._version,
                node_id=self._node_id,
            )
        )
        # The view is consistent from here on, whatever is written meanwhile; it is bounded by the store itself.
        stream = io.BytesIO()
        writer(stream)
        data = stream.getbuffer()
        for start in range(0, len(data), _PART_BYTES):
            yield control.BackupPart(data=bytes(data[start : start + _PART_BYTES]))
        digest = hashlib.sha256(data).digest()
        yield control.BackupPart(trailer=control.BackupTrailer(size_bytes=len(data), digest=digest))

    # ---- autolock ------------------------------------------------------------------------------------

    async def unlock_key(self, action: control.UnlockKeyAction.ValueType) -> control.UnlockKeyResponse:
        """Shows the unlock key, turns autolock on or off, or makes another key."""
        return control.UnlockKeyResponse(unlock_key=await self._unlock_keys.act(action))


def node_state_name(node: Node) -> str:
    """A node's state as people see it: ready."""
    return NodeState.Name(node.status.state).removeprefix("NODE_STATE_").lower()
