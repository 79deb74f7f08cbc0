"""What changes when a member takes a role (Raft paper, figure 4)."""

from orch_raft.core.messages import NOBODY
from orch_raft.core.progress import Progress
from orch_raft.core.state import MemberState, ReadQueue
from orch_raft.engine import Role
from orch_raft.log.records import Entry, EntryKind


def become_follower(state: MemberState, term: int, leader_id: int) -> None:
    """Follow in a term. The vote is forgotten only with the term it was given in."""
    if term != state.term:
        state.term = term
        state.vote = NOBODY
    _leave_role(state)
    state.role = Role.FOLLOWER
    state.leader_id = leader_id


def become_pre_candidate(state: MemberState) -> None:
    """Ask who would vote for it. Neither the term nor the vote changes (thesis, section 9.6)."""
    _leave_role(state)
    state.role = Role.PRE_CANDIDATE
    state.leader_id = NOBODY


def become_candidate(state: MemberState, *, transferred: bool) -> None:
    """Stand for election in the next term. Its own vote counts once it is on disk (`election.own_vote_persisted`)."""
    _leave_role(state)
    state.role = Role.CANDIDATE
    state.term += 1
    state.vote = state.raft_id
    state.leader_id = NOBODY
    state.transferred = transferred


def become_leader(state: MemberState) -> None:
    """Lead in the present term, and begin it with an entry, by which all before it gets committed (section 5.4.2)."""
    _leave_role(state)
    state.role = Role.LEADER
    state.leader_id = state.raft_id
    log = state.log
    members = (*state.membership.members, *state.applied_membership.members)
    state.peers = {member.raft_id: Progress(member.raft_id, log.last_index + 1, state.now) for member in members}
    state.peers[state.raft_id].match = log.persisted
    log.append([Entry(log.last_index + 1, state.term, EntryKind.NEW_TERM, b"")])
    state.replication_due = True


def _leave_role(state: MemberState) -> None:
    """Drop what belonged to the role until now."""
    for request in (*state.reads.confirming, *state.reads.waiting):
        state.refuse_read(request)
    state.reads = ReadQueue()
    state.votes = {}
    state.transferred = False
    state.peers = {}
    state.transfer_target = NOBODY
    state.heartbeat_elapsed = 0
    state.replication_due = False
    state.reset_election_timer()
