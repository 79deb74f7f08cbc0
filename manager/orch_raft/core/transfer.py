"""Handing leadership to another voter (thesis, section 3.10)."""

from orch_raft.core import election
from orch_raft.core.messages import NOBODY, Message, MessageKind
from orch_raft.core.ready import RefusalReason, Refused
from orch_raft.core.state import MemberState


def begin(state: MemberState, raft_id: int) -> Refused | None:
    """Take no more proposals, bring the target up to date, then tell it to campaign."""
    if not state.leads:
        return Refused(RefusalReason.NOT_LEADER)
    if raft_id == state.raft_id:
        return Refused(RefusalReason.CANNOT_TAKE_OVER, "it leads already")
    if raft_id not in state.voter_ids:
        return Refused(RefusalReason.CANNOT_TAKE_OVER, "it does not vote")
    if not state.is_reachable(state.peers[raft_id]):
        return Refused(RefusalReason.CANNOT_TAKE_OVER, "it does not answer")
    if state.transfer_target != raft_id:
        state.transfer_target = raft_id
        state.transfer_elapsed = 0
    state.replication_due = True
    hand_over_when_caught_up(state)
    return None


def tick(state: MemberState) -> None:
    """Give up after an election timeout, so that proposals are taken again."""
    if state.transfer_target != NOBODY:
        state.transfer_elapsed += 1
        if state.transfer_elapsed >= state.config.election_ticks:
            state.transfer_target = NOBODY


def hand_over_when_caught_up(state: MemberState) -> None:
    """Tell the target to campaign once it has the whole log."""
    target = state.peers.get(state.transfer_target)
    if target is not None and target.match == state.log.last_index:
        tell_to_campaign(state, target.raft_id)


def tell_to_campaign(state: MemberState, raft_id: int) -> None:
    """Send TIMEOUT_NOW."""
    state.send(Message(MessageKind.TIMEOUT_NOW, state.raft_id, raft_id, state.term))


def handle_timeout_now(state: MemberState) -> None:
    """Campaign at once, without a pre-vote, which the others would refuse while the leader lives."""
    if election.may_campaign(state):
        election.stand_for_election(state, transferred=True)
