"""Linearizable reads without a log entry: ReadIndex (thesis, section 6.4).

Reads join rounds. A round notes the commit index and rides on heartbeats; when a majority has answered, this member
still led when the round began, so everything acknowledged before is at or before that index. While one round is under
way the reads of the next gather.
"""

from orch_raft.core.messages import NOBODY, Message, MessageKind
from orch_raft.core.quorum import reached_by_quorum
from orch_raft.core.ready import ConfirmedRead, RefusalReason, Refused
from orch_raft.core.state import MemberState, ReadRequest


def has_room(state: MemberState) -> bool:
    """Whether another read may wait."""
    return len(state.reads.waiting) + len(state.reads.confirming) < state.config.max_waiting_reads


def enqueue(state: MemberState, context: bytes, reader_id: int) -> None:
    """Let a read wait for the next round."""
    state.reads.waiting.append(ReadRequest(context, reader_id))


def may_begin_round(state: MemberState) -> bool:
    """Whether a round can begin: a new leader knows what is committed only once an entry of its own term is."""
    return state.leads and bool(state.reads.waiting) and not state.reads.confirming and state.has_committed_in_term


def begin_round(state: MemberState) -> None:
    """Begin a round with all that wait; it rides on the next heartbeats, which the caller sends."""
    queue = state.reads
    queue.confirming, queue.waiting = queue.waiting, []
    queue.round += 1
    queue.index = state.log.commit
    state.peers[state.raft_id].read_round = queue.round


def round_context(state: MemberState) -> bytes:
    """What heartbeats carry for the round under way, empty when there is none."""
    return state.reads.round.to_bytes(8, "big") if state.reads.confirming else b""


def confirm(state: MemberState) -> None:
    """Answer the round's reads if a majority of voters has confirmed it."""
    queue = state.reads
    if not queue.confirming:
        return
    if reached_by_quorum(state.peers[voter_id].read_round for voter_id in state.voter_ids) < queue.round:
        return
    confirmed, queue.confirming = queue.confirming, []
    for request in confirmed:
        if request.reader_id == state.raft_id:
            state.outbox.reads.append(ConfirmedRead(request.context, queue.index))
        else:
            state.send(
                Message(
                    MessageKind.READ_INDEX_ANSWER,
                    state.raft_id,
                    request.reader_id,
                    state.term,
                    index=queue.index,
                    context=request.context,
                )
            )


def ask(state: MemberState, context: bytes) -> Refused | None:
    """Ask for an index on behalf of this member."""
    if state.leads:
        if not has_room(state):
            return Refused(RefusalReason.TOO_MANY_READS)
        enqueue(state, context, state.raft_id)
    elif state.leader_id == NOBODY:
        return Refused(RefusalReason.NO_LEADER)
    else:
        state.send(Message(MessageKind.READ_INDEX, state.raft_id, state.leader_id, state.term, context=context))
    return None


def handle_request(state: MemberState, message: Message) -> None:
    """Another member asks for a read."""
    if state.leads and has_room(state):
        enqueue(state, message.context, message.sender)
    else:
        state.refuse_read(ReadRequest(message.context, message.sender))


def handle_answer(state: MemberState, message: Message) -> None:
    """The leader answers a read of this member."""
    if message.reject:
        state.outbox.refused_reads.append(message.context)
    else:
        state.outbox.reads.append(ConfirmedRead(message.context, message.index))
