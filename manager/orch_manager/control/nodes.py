"""What may be changed of a node, and when it may be removed: its role is the managers' quorum too."""

from __future__ import annotations

from typing import Any

from orch_manager import tasks as states
from orch_manager.members.changes import Changes
from orch_manager.members.roles import Roles, is_wanted_manager
from orch_manager.store.tables import Reader
from orch_proto.objects_pb2 import Node
from orch_proto.specs_pb2 import NodeRole
from orch_raft.engine import MembershipAction
from orch_raft.errors import MembershipError
from orch_rpc.errors import FailedPrecondition, InvalidArgument

_QUORUM_TODO = "bring unreachable managers back, or add others, first; orch cluster info shows them"


class NodeRules:
    """See the module.

    Args:
        roles: what is wanted against what Raft has.
        changes: of the members of Raft.
    """

    def __init__(self, roles: Roles, changes: Changes) -> None:
        self._roles = roles
        self._changes = changes

    def check_update(self, reader: Reader, node: Node, spec: Any, what: str) -> None:
        """Refuses a specification; fills in the role that it leaves out.

        Raises:
            InvalidArgument: there is no such role.
            FailedPrecondition: the managers that stay would be no quorum.
        """
        if not spec.desired_role:
            spec.desired_role = node.spec.desired_role or node.role
        if spec.desired_role not in (NodeRole.NODE_ROLE_MANAGER, NodeRole.NODE_ROLE_WORKER):
            raise InvalidArgument(what, "a node is a manager or a worker")
        if spec.desired_role == NodeRole.NODE_ROLE_WORKER and is_wanted_manager(node):
            why = self._roles.removal_refusal(reader, node.id)
            if why:
                raise FailedPrecondition(what, why, _QUORUM_TODO)

    def warnings(self, reader: Reader, before: Node | None, after: Node | None) -> list[str]:
        """What is unwise after a change of a node that changed the number of managers."""
        if is_wanted_manager(before) == is_wanted_manager(after):
            return []
        return self._roles.advice(reader)

    async def leave_managers(self, reader: Reader, node: Node, what: str, *, force: bool) -> None:
        """Takes a node that is to be removed out of Raft, if it is in it.

        Raises:
            FailedPrecondition: it may not be removed now.
        """
        why = removal_refusal(node, force=force)
        if why:
            raise FailedPrecondition(what, *why)
        async with self._changes.lock:
            member = self._roles.member_of(node.id)
            if member is None:
                return
            if member.leads:
                raise FailedPrecondition(what, "it leads the cluster", f"demote it first: orch node demote {node.id}")
            refusal = self._roles.removal_refusal(reader, node.id)
            if refusal:
                raise FailedPrecondition(what, refusal, _QUORUM_TODO)
            try:
                await self._changes.make(MembershipAction.REMOVE, member.member)
            except MembershipError as error:
                raise FailedPrecondition(what, str(error), "try again") from error


def removal_refusal(node: Node, *, force: bool) -> tuple[str, str] | None:
    """Why a node may not be removed, and what to do; None when it may."""
    if force:
        return None
    if is_wanted_manager(node) or node.role == NodeRole.NODE_ROLE_MANAGER:
        return "it is a manager", "demote it first (orch node demote), or repeat with --force"
    if states.node_is_up(node):
        return "it is not down", "stop orchd there, or let it leave (orch cluster leave), or repeat with --force"
    return None
