"""The members of Raft, with what the leader knows of each."""

from __future__ import annotations

from dataclasses import dataclass

from orch_manager.members.quorum import Manager
from orch_raft.engine import Engine, EngineStatus, Member, Role, Suffrage


@dataclass(frozen=True, slots=True)
class MemberView:
    """One member.

    Attributes:
        member: who.
        leads: it is the leader.
        reachable: heard of within an election timeout; known to the leader only, elsewhere False but for the manager
            itself and the leader it follows.
        match: last index known to be on its disk; 0 where that is not known.
    """

    member: Member
    leads: bool
    reachable: bool
    match: int

    @property
    def votes(self) -> bool:
        """Whether it counts towards the quorum."""
        return self.member.suffrage is Suffrage.VOTER

    @property
    def as_manager(self) -> Manager:
        """For the arithmetic of quorums."""
        return Manager(self.member.raft_id, votes=self.votes, reachable=self.reachable)


def members_of(engine: Engine) -> list[MemberView]:
    """All members, as this one sees them."""
    status = engine.status()
    peers = {peer.raft_id: peer for peer in status.peers}
    views = []
    for member in status.members:
        peer = peers.get(member.raft_id)
        leads = member.raft_id == status.leader_id
        if member.raft_id == status.member_id:
            views.append(MemberView(member, leads, reachable=True, match=status.last_index))
        elif peer is not None:
            views.append(MemberView(member, leads, peer.reachable, peer.match_index))
        else:
            views.append(MemberView(member, leads, reachable=leads, match=0))
    return views


def own_member(status: EngineStatus) -> Member | None:
    """This manager's own membership; None before it has joined, and after it was removed."""
    return next((member for member in status.members if member.raft_id == status.member_id), None)


def leads(status: EngineStatus) -> bool:
    """Whether this member is the leader, as Raft sees it."""
    return status.role is Role.LEADER
