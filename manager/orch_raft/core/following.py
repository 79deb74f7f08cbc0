"""The follower's side of replication (Raft paper, figure 2, AppendEntries and InstallSnapshot)."""

from orch_raft.core import reconfiguration
from orch_raft.core.messages import Message, MessageKind
from orch_raft.core.state import MemberState


def handle_append(state: MemberState, message: Message) -> None:
    """Store a leader's entries if the one before them matches; else say where the logs may agree."""
    log = state.log
    if message.index < log.commit:
        # What is committed matches every leader.
        _accept(state, message.sender, log.commit)
        return
    if not log.matches(message.index, message.log_term):
        hint_index, hint_term = log.last_possible_match(min(message.index, log.last_index), message.log_term)
        state.send(
            Message(
                MessageKind.APPEND_ANSWER,
                state.raft_id,
                message.sender,
                state.term,
                index=message.index,
                reject=True,
                hint_index=hint_index,
                hint_term=hint_term,
            )
        )
        return
    log.merge(message.entries)
    if log.membership_indexes != state.known_changes:
        reconfiguration.refresh(state)
    matched = message.index + len(message.entries)
    # Only what was compared with the leader's may be committed by its word.
    log.commit_to(min(message.commit, matched))
    _accept(state, message.sender, matched)


def _accept(state: MemberState, leader_id: int, index: int) -> None:
    """Answer after the sync. One answer stands for all before it, as they are cumulative."""
    after_sync = state.outbox.after_sync
    if after_sync:
        last = after_sync[-1]
        if (
            last.kind is MessageKind.APPEND_ANSWER
            and last.to == leader_id
            and last.term == state.term
            and last.index <= index
        ):
            after_sync.pop()
    state.send_after_sync(Message(MessageKind.APPEND_ANSWER, state.raft_id, leader_id, state.term, index=index))


def handle_heartbeat(state: MemberState, message: Message) -> None:
    """Take over the commit index, which the leader bounded by what matches here."""
    state.log.commit_to(message.commit)
    state.send(
        Message(MessageKind.HEARTBEAT_ANSWER, state.raft_id, message.sender, state.term, context=message.context)
    )


def handle_snapshot(state: MemberState, message: Message) -> None:
    """Install a snapshot that is ahead of everything known here to be committed."""
    meta = message.snapshot
    if meta is None:
        return
    log = state.log
    if meta.index <= log.commit:
        _accept(state, message.sender, log.commit)
        return
    if log.matches(meta.index, meta.term):
        # The log has it all, and perhaps more that was acknowledged: keep it (Raft paper, figure 13, rule 6).
        log.commit_to(meta.index)
        _accept(state, message.sender, meta.index)
        return
    log.restore(meta)
    reconfiguration.restore(state, meta.membership)
    state.installing = meta.index
    state.outbox.snapshot = meta
    _accept(state, message.sender, meta.index)
