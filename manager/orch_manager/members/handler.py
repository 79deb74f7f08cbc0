"""Answers managers that want to join, to leave, or to know where another one is."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from orch_manager.faults import NotLeading, told_as
from orch_manager.forwarding.leader import Leader
from orch_manager.members import quorum
from orch_manager.members.changes import Changes
from orch_manager.members.roles import Roles, is_wanted_manager
from orch_manager.store.store import Store
from orch_manager.store.transaction import Transaction
from orch_proto import defaults
from orch_proto import raft_pb2 as raft
from orch_proto.objects_pb2 import Node
from orch_proto.raft_pb2_grpc import RaftStub
from orch_proto.specs_pb2 import NodeRole
from orch_raft.engine import Member, MembershipAction, Suffrage
from orch_raft.errors import MembershipError
from orch_rpc import logs
from orch_rpc.addresses import Address, parse_address
from orch_rpc.authorization import current_call
from orch_rpc.errors import FailedPrecondition, InvalidArgument, NotFound, OrchError, PermissionDenied, rpc_errors
from orch_rpc.tls import ManagerChannels

_log = logs.get("members")
_Context = Any
_DIAL_TIMEOUT_S: Final = defaults.NODE_CALL_TIMEOUT_MS / 1000


class MembershipHandler:
    """See the module.

    Args:
        store: the Nodes; has the engine.
        leader: knows who leads.
        changes: of the members.
        roles: what is wanted.
        channels: to dial a joiner back.
        own_address: where this manager is reached.
    """

    def __init__(
        self,
        store: Store,
        leader: Leader,
        changes: Changes,
        roles: Roles,
        *,
        channels: ManagerChannels,
        own_address: str,
    ) -> None:
        self._store = store
        self._leader = leader
        self._changes = changes
        self._roles = roles
        self._channels = channels
        self._own_address = own_address

    # ---- join ----------------------------------------------------------------------------------------

    async def join(self, request: raft.RaftJoinRequest, context: _Context) -> raft.RaftJoinResponse:
        """Admits a manager as learner; the keeper makes it a voter when it has caught up.

        Raises:
            OrchError: it is not wanted as a manager, cannot be reached, or its id cannot be used.
        """
        what = f"cannot admit node {request.node_id} to the managers"
        current_call().require_node(request.node_id)
        if not self._leader.acts_here:
            raise NotLeading(what)
        if not 0 < request.raft_id < 1 << 63:
            raise InvalidArgument(what, "it names no member id", "use a manager of this version")
        node = self._store.get(Node, request.node_id)
        if not is_wanted_manager(node):
            raise FailedPrecondition(what, "it is not to be a manager", f"orch node promote {request.node_id}")
        address = _reachable_address(request.address, context, what)
        member = Member(request.raft_id, request.node_id, str(address), Suffrage.LEARNER)
        with told_as(what):
            async with self._changes.lock:
                try:
                    await self._admit(member, address, what)
                except MembershipError as error:
                    raise FailedPrecondition(what, str(error), "it tries again by itself") from error
        return self._joined(request.raft_id)

    async def _admit(self, member: Member, address: Address, what: str) -> None:
        status = self._store.engine.status()
        known = next((each for each in status.members if each.raft_id == member.raft_id), None)
        if known is not None and known.node_id != member.node_id:
            raise PermissionDenied(what, "its member id is another node's", "remove the manager's state, and join anew")
        if known is not None and known.address == member.address:
            return
        if member.raft_id in status.removed_ids:
            raise FailedPrecondition(
                what,
                "this member was removed, and ids are never used again",
                "orch cluster leave --force there, then join anew",
            )
        await self._dial_back(member.raft_id, address, what)
        if known is not None:
            await self._changes.make(MembershipAction.UPDATE_ADDRESS, member)
            return
        for other in status.members:
            if other.node_id == member.node_id:
                # Its state was lost: what that member had acknowledged must not be believed any more.
                why = self._roles.removal_refusal(self._store, member.node_id)
                if why:
                    raise FailedPrecondition(what, f"its former member cannot be removed: {why}", "bring others back")
                await self._changes.make(MembershipAction.REMOVE, other)
        await self._changes.make(MembershipAction.ADD_LEARNER, member)

    async def _dial_back(self, raft_id: int, address: Address, what: str) -> None:
        """Whether the joiner is reached at its address: one that is not would only cost the quorum."""
        stub = RaftStub(self._channels.get(address))
        try:
            with rpc_errors("reach it"):
                await stub.ResolveAddress(raft.RaftResolveAddressRequest(raft_id=raft_id), timeout=_DIAL_TIMEOUT_S)
        except OrchError as error:
            self._channels.drop(address)
            raise FailedPrecondition(
                what,
                f"it cannot be reached at {address} from the leader ({error.why or error.what})",
                "check --advertise-addr, and that the firewall lets managers reach each other",
            ) from error

    def _joined(self, raft_id: int) -> raft.RaftJoinResponse:
        members = self._store.engine.status().members
        answer = raft.RaftJoinResponse(raft_id=raft_id, advice=quorum.advice(len(members)))
        for member in members:
            answer.membership.members.add(
                raft_id=member.raft_id,
                node_id=member.node_id,
                address=member.address,
                learner=member.suffrage is Suffrage.LEARNER,
            )
        return answer

    # ---- leave, and the rest -------------------------------------------------------------------------

    async def leave(self, request: raft.RaftLeaveRequest, context: _Context) -> raft.RaftLeaveResponse:
        """A manager does not want to be one any more: the keeper takes it out.

        Raises:
            FailedPrecondition: the others could not go on without it.
        """
        del context
        what = "cannot leave the managers"
        member = self._member(request.raft_id, what)
        current_call().require_node(member.node_id)

        def write(transaction: Transaction) -> None:
            why = self._roles.removal_refusal(transaction, member.node_id)
            if why:
                raise FailedPrecondition(what, why, "bring unreachable managers back, or add others, first")
            if transaction.get(Node, member.node_id) is not None:
                edited = transaction.edit(Node, member.node_id)
                edited.spec.desired_role = NodeRole.NODE_ROLE_WORKER
                transaction.update(edited)

        with told_as(what):
            await self._store.update(write, reason="manager leaves")
        return raft.RaftLeaveResponse()

    async def resolve_address(
        self, request: raft.RaftResolveAddressRequest, context: _Context
    ) -> raft.RaftResolveAddressResponse:
        """Where a member is reached; a joiner tells of itself before it is one.

        Raises:
            NotFound: no such member is known here.
        """
        del context
        await asyncio.sleep(0)
        if request.raft_id == self._store.engine.status().member_id:
            return raft.RaftResolveAddressResponse(address=self._own_address)
        return raft.RaftResolveAddressResponse(address=self._member(request.raft_id, "cannot tell its address").address)

    def _member(self, raft_id: int, what: str) -> Member:
        for member in self._store.engine.status().members:
            if member.raft_id == raft_id:
                return member
        raise NotFound(what, f"no manager has the member id {raft_id:x}", "look at them: orch cluster info")


def _reachable_address(text: str, context: _Context, what: str) -> Address:
    """The address that a joiner tells; where it only knows that it listens everywhere, the one it is seen at."""
    address = parse_address(text, "the joiner's address")
    if not address.is_unspecified:
        return address
    kind, _, rest = str(context.peer()).partition(":")
    if kind not in ("ipv4", "ipv6") or current_call().caller.forwarded_by:
        raise InvalidArgument(what, "it does not say where it is reached", "name it: --advertise-addr ADDRESS")
    return Address(rest.rpartition(":")[0].strip("[]").replace("%5B", "").replace("%5D", ""), address.port)
