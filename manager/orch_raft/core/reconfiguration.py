"""Changes of the members, one at a time (thesis, sections 4.1 and 4.2).

A change counts from the moment it is in a member's log, committed or not, and no longer when it is replaced there. Two
successive sets of members differ by one voter, so their majorities overlap. That holds as long as a leader begins no
change before it has committed an entry of its own term, and the last change was committed.
"""

from orch_raft.core import reads, replication, transfer
from orch_raft.core.messages import NOBODY, Message, MessageKind
from orch_raft.core.progress import Pace, Progress
from orch_raft.core.quorum import quorum
from orch_raft.core.ready import Proposed, RefusalReason, Refused
from orch_raft.core.roles import become_follower
from orch_raft.core.state import MemberState
from orch_raft.engine import MembershipAction, MembershipChange, Role
from orch_raft.errors import ApplyFailed
from orch_raft.log.records import Entry, EntryKind
from orch_raft.membership import Membership, decode_change, encode_change


def propose(state: MemberState, change: MembershipChange) -> Proposed | Refused:
    """Take a change into the log, or say why not."""
    if (refused := _refusal(state, change)) is not None:
        return refused
    index = state.log.last_index + 1
    state.log.append([Entry(index, state.term, EntryKind.MEMBERSHIP, encode_change(change))])
    refresh(state)
    state.replication_due = True
    return Proposed(state.term, index, index)


def _refusal(state: MemberState, change: MembershipChange) -> Refused | None:
    if not state.leads:
        return Refused(RefusalReason.NOT_LEADER)
    if state.transfer_target != NOBODY:
        return Refused(RefusalReason.TRANSFERRING)
    if not state.has_committed_in_term:
        return Refused(RefusalReason.TERM_NOT_COMMITTED)
    if state.log.membership_indexes:
        return Refused(RefusalReason.CHANGE_IN_FLIGHT)
    return _misfit(state, change) or _quorum_refusal(state, state.membership.after(change))


def _misfit(state: MemberState, change: MembershipChange) -> Refused | None:
    if (reason := state.membership.refusal(change)) is not None:
        return Refused(RefusalReason.CHANGE_INVALID, reason)
    if change.action is MembershipAction.PROMOTE and not is_caught_up(state, change.member.raft_id):
        return Refused(RefusalReason.LEARNER_BEHIND)
    return None


def is_caught_up(state: MemberState, raft_id: int) -> bool:
    """Whether a member follows closely enough to vote without making the cluster wait (thesis, section 4.2.1)."""
    peer = state.peers.get(raft_id)
    return (
        peer is not None
        and peer.pace is Pace.REPLICATE
        and state.is_reachable(peer)
        and state.log.last_index - peer.match <= state.config.promotion_lag_entries
    )


def _quorum_refusal(state: MemberState, membership: Membership) -> Refused | None:
    """Refuse to leave voters behind of which no majority can be reached now."""
    voters = [member.raft_id for member in membership.voters]
    if {*voters} == state.voter_ids:
        return None
    reachable = sum(1 for raft_id in voters if state.is_reachable(state.peers[raft_id]))
    if reachable >= quorum(len(voters)):
        return None
    return Refused(
        RefusalReason.QUORUM_AT_RISK,
        f"{reachable} of {len(voters)} would be reachable, {quorum(len(voters))} are needed",
    )


def refresh(state: MemberState) -> None:
    """Find out which members count: those as of the applied index, and the changes in the log after it.

    Raises:
        ApplyFailed: a change is of a newer version, so this member cannot know who belongs to the cluster.
    """
    membership = state.applied_membership
    for index in state.log.membership_indexes:
        membership = membership.after(_change_at(state, index))
    state.known_changes = list(state.log.membership_indexes)
    state.membership = membership
    state.voter_ids = frozenset(member.raft_id for member in membership.voters)
    state.removed = state.removed or state.raft_id in state.applied_membership.removed_ids
    if state.leads:
        _lead_changed_members(state)
    elif state.role is not Role.FOLLOWER and not state.may_be_needed:
        become_follower(state, state.term, NOBODY)


def _change_at(state: MemberState, index: int) -> MembershipChange:
    try:
        return decode_change(state.log.entry(index).data)
    except ValueError as error:
        raise ApplyFailed(index, error) from error


def apply_up_to(state: MemberState, index: int) -> None:
    """The entries up to an index are applied: what they change is final."""
    membership = state.applied_membership
    for place in [each for each in state.log.membership_indexes if each <= index]:
        membership = membership.after(_change_at(state, place))
    state.log.applied_to(index)
    if membership is not state.applied_membership:
        state.applied_membership = membership
    if state.known_changes != state.log.membership_indexes:
        refresh(state)


def restore(state: MemberState, membership: Membership) -> None:
    """Take over the members of a snapshot."""
    state.applied_membership = membership
    refresh(state)


def _lead_changed_members(state: MemberState) -> None:
    members = (*state.membership.members, *state.applied_membership.members)
    # A member whose removal is not committed may come back if another leader replaces that entry.
    present = {member.raft_id for member in members} | {state.raft_id}
    for raft_id in [each for each in state.peers if each not in present]:
        del state.peers[raft_id]
        tell_removed(state, raft_id)
    for raft_id in sorted(present - state.peers.keys()):
        state.peers[raft_id] = Progress(raft_id, state.log.last_index + 1, state.now)
    if not state.may_be_needed:
        _leave_leadership(state)
        return
    if state.transfer_target not in state.voter_ids:
        state.transfer_target = NOBODY
    # The majority may be smaller now.
    replication.advance_commit(state)
    reads.confirm(state)
    state.replication_due = True


def _leave_leadership(state: MemberState) -> None:
    """Step down after the own removal or demotion was committed, and let the most complete voter follow at once.

    Until then it leads without counting itself in a majority (thesis, section 4.2.2).
    """
    voters = [state.peers[voter_id] for voter_id in state.voter_ids]
    best = max(voters, key=lambda peer: (peer.match, peer.raft_id))
    transfer.tell_to_campaign(state, best.raft_id)
    replication.announce_commit(state)
    become_follower(state, state.term, NOBODY)


def tell_removed(state: MemberState, raft_id: int) -> None:
    """Let a removed member know, so that it can end itself."""
    state.send(Message(MessageKind.REMOVED, state.raft_id, raft_id, state.term))


def handle_removed(state: MemberState) -> None:
    """This member was removed. Ids are never used again, so this stays true."""
    state.removed = True
    if state.role is not Role.FOLLOWER:
        become_follower(state, state.term, NOBODY)
