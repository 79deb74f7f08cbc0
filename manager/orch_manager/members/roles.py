"""What people want of the managers against what Raft has: which change of a role is refused, and why."""

from __future__ import annotations

from orch_manager.members import quorum
from orch_manager.members.view import MemberView, members_of
from orch_manager.store.tables import Reader
from orch_proto.objects_pb2 import Node
from orch_proto.specs_pb2 import NodeRole
from orch_raft.engine import Engine


def is_wanted_manager(node: Node | None) -> bool:
    """Whether a node is to be a manager; one that was removed is not."""
    if node is None:
        return False
    return (node.spec.desired_role or node.role) == NodeRole.NODE_ROLE_MANAGER


class Roles:
    """See the module.

    Args:
        engine: of consensus.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def member_of(self, node_id: str) -> MemberView | None:
        """The member that a node is; None for a worker."""
        return next((each for each in members_of(self._engine) if each.member.node_id == node_id), None)

    def removal_refusal(self, reader: Reader, node_id: str) -> str:
        """Why a manager cannot be taken out of the managers now; empty when it can.

        Those that are on their way out are counted as gone.
        """
        member = self.member_of(node_id)
        if member is None:
            return ""
        staying = [
            each.as_manager
            for each in members_of(self._engine)
            if each.member.node_id == node_id or is_wanted_manager(reader.get(Node, each.member.node_id))
        ]
        return quorum.removal_refusal(staying, member.member.raft_id)

    @staticmethod
    def advice(reader: Reader) -> list[str]:
        """What is unwise about the number of managers that are wanted."""
        unwise = quorum.advice(sum(1 for node in reader.all(Node) if is_wanted_manager(node)))
        return [unwise] if unwise else []
