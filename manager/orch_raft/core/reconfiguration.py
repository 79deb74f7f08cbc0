"""Changes of the members, one at a time (thesis, section 4.1 and 4.2; etcd's manner: in force once applied).

Two successive sets of members differ by one voter, so their majorities overlap. That holds as long as a leader begins
no change before the last one is committed and applied here, and nobody campaigns with a committed change not yet
applied.
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
    state.pending_change = index
    state.replication_due = True
    return Proposed(state.term, index, index)


def _refusal(state: MemberState, change: MembershipChange) -> Refused | None:
    if not state.leads:
        return Refused(RefusalReason.NOT_LEADER)
    if state.transfer_target != NOBODY:
        return Refused(RefusalReason.TRANSFERRING)
    if not state.has_committed_in_term:
        return Refused(RefusalReason.TERM_NOT_COMMITTED)
    if state.pending_change > state.log.applied:
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


def apply_up_to(state: MemberState, index: int) -> None:
    """Put the changes among the entries up to an index in force.

    Raises:
        ApplyFailed: one of them is of a newer version, so this member cannot know who belongs to the cluster.
    """
    for place in [each for each in state.log.membership_indexes if each <= index]:
        entry = state.log.entry(place)
        try:
            change = decode_change(entry.data)
        except ValueError as error:
            raise ApplyFailed(place, error) from error
        adopt(state, state.membership.after(change))


def adopt(state: MemberState, membership: Membership) -> None:
    """Make a set of members the one in force."""
    state.membership = membership
    state.voter_ids = frozenset(member.raft_id for member in membership.voters)
    state.removed = state.removed or state.raft_id in membership.removed_ids
    if state.leads:
        _lead_changed_members(state)
    elif state.role is not Role.FOLLOWER and not state.is_voter:
        become_follower(state, state.term, NOBODY)


def _lead_changed_members(state: MemberState) -> None:
    present = {member.raft_id for member in state.membership.members}
    for raft_id in [each for each in state.peers if each not in present and each != state.raft_id]:
        del state.peers[raft_id]
        tell_removed(state, raft_id)
    for raft_id in sorted(present - state.peers.keys()):
        state.peers[raft_id] = Progress(raft_id, state.log.last_index + 1, state.now)
    if not state.is_voter:
        _leave_leadership(state)
        return
    if state.transfer_target not in state.voter_ids:
        state.transfer_target = NOBODY
    # The majority may be smaller now.
    replication.advance_commit(state)
    reads.confirm(state)
    state.replication_due = True


def _leave_leadership(state: MemberState) -> None:
    """Step down after the own removal or demotion was committed, and let the most complete voter follow at once."""
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
