"""Where a message goes, after its term was looked at (Raft paper, section 5.1)."""

from collections.abc import Callable

from orch_raft.core import election, following, reads, reconfiguration, replication, transfer
from orch_raft.core.messages import NOBODY, Message, MessageKind
from orch_raft.core.roles import become_follower
from orch_raft.core.state import MemberState
from orch_raft.engine import Role
from orch_raft.errors import SafetyBroken

_FROM_LEADER = frozenset({MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT})
_REQUESTS_FOR_VOTES = frozenset({MessageKind.PRE_VOTE, MessageKind.VOTE})

_ANYONE: dict[MessageKind, Callable[[MemberState, Message], None]] = {
    MessageKind.PRE_VOTE: election.handle_request,
    MessageKind.VOTE: election.handle_request,
    MessageKind.PRE_VOTE_ANSWER: election.handle_answer,
    MessageKind.VOTE_ANSWER: election.handle_answer,
    MessageKind.READ_INDEX: reads.handle_request,
    MessageKind.READ_INDEX_ANSWER: reads.handle_answer,
}
_FOLLOWER: dict[MessageKind, Callable[[MemberState, Message], None]] = {
    MessageKind.APPEND: following.handle_append,
    MessageKind.HEARTBEAT: following.handle_heartbeat,
    MessageKind.SNAPSHOT: following.handle_snapshot,
}
_LEADER: dict[MessageKind, Callable[[MemberState, Message], None]] = {
    MessageKind.APPEND_ANSWER: replication.handle_append_answer,
    MessageKind.HEARTBEAT_ANSWER: replication.handle_heartbeat_answer,
}


def receive(state: MemberState, message: Message) -> None:
    """Act on a message.

    Raises:
        SafetyBroken: members disagree about what is committed, or about who leads in a term.
    """
    if message.to != state.raft_id or message.sender == state.raft_id:
        return
    kind = message.kind
    if kind is MessageKind.REMOVED:
        reconfiguration.handle_removed(state)
    elif message.sender in state.applied_membership.removed_ids and not _is_last_word(state, message):
        reconfiguration.tell_removed(state, message.sender)
    elif message.term == state.term or _come_to_terms(state, message):
        _dispatch(state, message)


def _is_last_word(state: MemberState, message: Message) -> bool:
    """Whether a leader that has just removed itself hands over."""
    return message.kind is MessageKind.TIMEOUT_NOW and message.sender == state.leader_id


def _come_to_terms(state: MemberState, message: Message) -> bool:
    """Follow a later term, tell those of an earlier one; whether the message still counts."""
    if message.term < state.term:
        _answer_earlier_term(state, message)
        return False
    kind = message.kind
    if kind in _REQUESTS_FOR_VOTES and election.holds_lease(state) and not message.transfer:
        return False
    is_pre_vote = kind is MessageKind.PRE_VOTE or (kind is MessageKind.PRE_VOTE_ANSWER and not message.reject)
    if not is_pre_vote:
        become_follower(state, message.term, message.sender if kind in _FROM_LEADER else NOBODY)
    return True


def _answer_earlier_term(state: MemberState, message: Message) -> None:
    """Let a leader or a candidate of the past learn the present term; what else is of the past counts for nothing."""
    if message.kind in _FROM_LEADER:
        state.send(Message(MessageKind.HEARTBEAT_ANSWER, state.raft_id, message.sender, state.term))
    elif message.kind is MessageKind.PRE_VOTE:
        state.send(Message(MessageKind.PRE_VOTE_ANSWER, state.raft_id, message.sender, state.term, reject=True))


def _dispatch(state: MemberState, message: Message) -> None:
    kind = message.kind
    if (handle := _FOLLOWER.get(kind)) is not None:
        _heed_leader(state, message.sender)
        handle(state, message)
    elif (handle := _LEADER.get(kind)) is not None:
        if state.leads:
            handle(state, message)
    elif kind is MessageKind.TIMEOUT_NOW:
        if message.sender == state.leader_id:
            transfer.handle_timeout_now(state)
    else:
        _ANYONE[kind](state, message)


def _heed_leader(state: MemberState, leader_id: int) -> None:
    """Follow the leader of the present term. There is one at most (Raft paper, figure 3, election safety)."""
    if state.leads or (state.leader_id not in {NOBODY, leader_id}):
        raise SafetyBroken(f"{state.leader_id:x} and {leader_id:x} both lead in term {state.term}")
    if state.role is not Role.FOLLOWER or state.leader_id == NOBODY:
        become_follower(state, state.term, leader_id)
    state.election_elapsed = 0
