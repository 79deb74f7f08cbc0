"""The leader's loop over the managers: roles, membership, promotion of learners, and what Nodes say of it all.

    wanted as manager      Node.role follows at once: its next certificate is a manager's, and it joins with that
    learner caught up      becomes a voter
    not wanted any more    leaves Raft first, then Node.role follows: its next certificate is a worker's
    the leader unwanted    hands leadership over; the next leader does the rest

(SwarmKit: manager/role_manager.go)
"""

from __future__ import annotations

from typing import Final

from orch_manager.members.changes import Changes
from orch_manager.members.roles import Roles, is_wanted_manager
from orch_manager.members.view import MemberView, members_of
from orch_manager.store.errors import StoreError
from orch_manager.store.store import Store
from orch_manager.store.transaction import Transaction
from orch_proto.objects_pb2 import Cluster, ManagerStatus, Node, Reachability
from orch_proto.specs_pb2 import NodeRole
from orch_raft.engine import MembershipAction
from orch_raft.errors import MembershipError, OutcomeUnknown, ProposalQueueFull
from orch_rpc import logs

_log = logs.get("members")
_PERIOD_S: Final = 0.5
#: While a learner catches up.
_SHORT_PERIOD_S: Final = 0.05


class MemberKeeper:
    """See the module.

    Args:
        store: read and written.
        changes: of the members.
        roles: what is wanted.
    """

    def __init__(self, store: Store, changes: Changes, roles: Roles) -> None:
        self._store = store
        self._changes = changes
        self._roles = roles
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Works until cancelled.

        Raises:
            NotLeader, EngineStopped: this manager leads no longer.
        """
        signal = self._store.signal(Node)
        try:
            while True:
                try:
                    await self._once()
                except (MembershipError, OutcomeUnknown, ProposalQueueFull, StoreError) as error:
                    _log.warning("cannot keep the managers, trying again", reason=error)
                learns = any(not each.votes for each in members_of(self._store.engine))
                await signal.wait(_SHORT_PERIOD_S if learns else _PERIOD_S)
        finally:
            signal.close()

    async def _once(self) -> None:
        if not self._store.all(Cluster):
            return  # it is being founded
        await self._write_nodes()
        async with self._changes.lock:
            for each in members_of(self._store.engine):
                await self._keep(each)
        await self._write_nodes()

    # ---- membership ----------------------------------------------------------------------------------

    async def _keep(self, each: MemberView) -> None:
        """What one member needs."""
        member = each.member
        progress = {peer.raft_id: peer for peer in self._store.engine.status().peers}.get(member.raft_id)
        if is_wanted_manager(self._store.get(Node, member.node_id)):
            if not each.votes and progress is not None and progress.caught_up:
                await self._changes.make(MembershipAction.PROMOTE, member)
            return
        why = self._roles.removal_refusal(self._store, member.node_id)
        if why:
            if self._told.get(member.node_id) != why:
                _log.warning("a manager that is not wanted must stay", node=member.node_id, reason=why)
            self._told[member.node_id] = why
            return
        self._told.pop(member.node_id, None)
        if each.leads:
            unwanted = {node.id for node in self._store.all(Node) if not is_wanted_manager(node)}
            await self._changes.hand_over(unwanted=unwanted)
            return
        await self._changes.make(MembershipAction.REMOVE, member)

    # ---- what Nodes say ------------------------------------------------------------------------------

    async def _write_nodes(self) -> None:
        """Roles in force, and the status of managers."""
        members = {each.member.node_id: each for each in members_of(self._store.engine)}
        wrong = [node.id for node in self._store.all(Node) if _as_it_should_be(node, members.get(node.id)) is not None]
        if not wrong:
            return

        def write(transaction: Transaction) -> None:
            for node_id in wrong:
                node = transaction.get(Node, node_id)
                right = _as_it_should_be(node, members.get(node_id)) if node is not None else None
                if right is not None:
                    edited = transaction.edit(Node, node_id)
                    edited.role = right.role
                    edited.ClearField("manager")
                    if right.HasField("manager"):
                        edited.manager.CopyFrom(right.manager)
                    transaction.update(edited)

        await self._store.update(write, reason="managers")


def _as_it_should_be(node: Node, member: MemberView | None) -> Node | None:
    """The node with its role and manager status as they are; None when it says so already."""
    right = Node()
    if member is not None or is_wanted_manager(node):
        right.role = NodeRole.NODE_ROLE_MANAGER
    else:
        right.role = NodeRole.NODE_ROLE_WORKER
    if member is not None:
        reachable = Reachability.REACHABILITY_REACHABLE if member.reachable else Reachability.REACHABILITY_UNREACHABLE
        right.manager.CopyFrom(
            ManagerStatus(
                raft_id=member.member.raft_id,
                address=member.member.address,
                leader=member.leads,
                reachability=reachable,
            )
        )
    same = node.role == right.role and node.HasField("manager") == right.HasField("manager")
    return None if same and node.manager == right.manager else right
