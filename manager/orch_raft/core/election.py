"""Elections (Raft paper, sections 5.2 and 5.4.1).

With pre-vote (thesis, section 9.6) and the leader's lease (section 4.2.3).
"""

from orch_raft.core.messages import NOBODY, Message, MessageKind
from orch_raft.core.roles import become_candidate, become_follower, become_leader, become_pre_candidate
from orch_raft.core.state import MemberState
from orch_raft.engine import Role

_ANSWERS = {MessageKind.PRE_VOTE: MessageKind.PRE_VOTE_ANSWER, MessageKind.VOTE: MessageKind.VOTE_ANSWER}


def tick(state: MemberState) -> None:
    """Campaign when nothing was heard of a leader for a whole timeout."""
    state.election_elapsed += 1
    if state.election_elapsed >= state.election_timeout:
        state.reset_election_timer()
        if may_campaign(state):
            campaign(state)


def may_campaign(state: MemberState) -> bool:
    """Whether this member may stand for election."""
    return not state.leads and state.may_be_needed and not state.removed and not state.installing


def campaign(state: MemberState) -> None:
    """Ask whether an election could be won, before any term is disturbed."""
    become_pre_candidate(state)
    state.votes[state.raft_id] = True
    if not _won(state):
        _ask(state, MessageKind.PRE_VOTE, state.term + 1)
    else:
        stand_for_election(state)


def stand_for_election(state: MemberState, *, transferred: bool = False) -> None:
    """Ask for votes in a new term."""
    become_candidate(state, transferred=transferred)
    _ask(state, MessageKind.VOTE, state.term)


def own_vote_persisted(state: MemberState) -> None:
    """The vote for itself is on disk, so it counts: after a crash it cannot be given to another."""
    if state.role is Role.CANDIDATE and state.raft_id not in state.votes:
        state.votes[state.raft_id] = True
        _judge(state)


def _ask(state: MemberState, kind: MessageKind, term: int) -> None:
    # A request for votes waits for the disk, as it claims a log: a candidate that lost its end in a crash must not be
    # elected by answers to what it claimed before. A pre-vote elects nobody.
    send = state.send_after_sync if kind is MessageKind.VOTE else state.send
    for voter_id in sorted(state.voter_ids):
        if voter_id != state.raft_id:
            send(
                Message(
                    kind,
                    state.raft_id,
                    voter_id,
                    term,
                    index=state.log.last_index,
                    log_term=state.log.last_term,
                    transfer=state.transferred,
                )
            )


def holds_lease(state: MemberState) -> bool:
    """Whether a leader was heard of within the shortest election timeout, so that nobody should campaign."""
    return state.leads or (state.leader_id != NOBODY and state.election_elapsed < state.config.election_ticks)


def handle_request(state: MemberState, message: Message) -> None:
    """Answer a request for a vote or a pre-vote of the present term, or a pre-vote of a later one.

    The candidate need not be a member as known here, which may be out of date (thesis, section 4.1).
    """
    is_pre_vote = message.kind is MessageKind.PRE_VOTE
    free = (
        state.vote == message.sender
        or (state.vote == NOBODY and state.leader_id == NOBODY)
        or (is_pre_vote and message.term > state.term)
    )
    granted = free and state.log.is_up_to_date(message.index, message.log_term)
    answer = Message(
        _ANSWERS[message.kind],
        state.raft_id,
        message.sender,
        message.term if granted else state.term,
        reject=not granted,
    )
    if is_pre_vote:
        state.send(answer)
        return
    if granted:
        state.vote = message.sender
        state.election_elapsed = 0
    state.send_after_sync(answer)


def handle_answer(state: MemberState, message: Message) -> None:
    """Count a vote, if it was given in this campaign."""
    if message.kind is MessageKind.PRE_VOTE_ANSWER:
        if state.role is not Role.PRE_CANDIDATE or (not message.reject and message.term != state.term + 1):
            return
    elif state.role is not Role.CANDIDATE:
        return
    state.votes.setdefault(message.sender, not message.reject)
    _judge(state)


def _won(state: MemberState) -> bool:
    granted = sum(1 for voter_id in state.voter_ids if state.votes.get(voter_id) is True)
    return granted >= state.quorum


def _lost(state: MemberState) -> bool:
    refused = sum(1 for voter_id in state.voter_ids if state.votes.get(voter_id) is False)
    return refused > len(state.voter_ids) - state.quorum


def _judge(state: MemberState) -> None:
    """Go on when a majority has answered alike. Only voters count."""
    if _won(state):
        if state.role is Role.PRE_CANDIDATE:
            stand_for_election(state)
        else:
            become_leader(state)
    elif _lost(state):
        become_follower(state, state.term, NOBODY)
