"""The leader's side of replication (Raft paper, section 5.3; thesis, section 10.2.1 for pipelining)."""

from collections.abc import Sequence

from orch_raft.core import reads, transfer
from orch_raft.core.messages import NOBODY, Message, MessageKind
from orch_raft.core.progress import Pace, Progress
from orch_raft.core.quorum import reached_by_quorum
from orch_raft.core.ready import Proposed, RefusalReason, Refused
from orch_raft.core.roles import become_follower
from orch_raft.core.state import MemberState
from orch_raft.log.records import Entry, EntryKind


def tick(state: MemberState) -> None:
    """Send heartbeats when due, and step down without a quorum."""
    if not hears_quorum(state):
        become_follower(state, state.term, NOBODY)
        return
    state.heartbeat_elapsed += 1
    if state.heartbeat_elapsed >= state.config.heartbeat_ticks:
        state.heartbeat_elapsed = 0
        send_heartbeats(state)


def hears_quorum(state: MemberState) -> bool:
    """Whether a majority of voters was heard of within an election timeout (thesis, section 6.2)."""
    reachable = sum(1 for voter_id in state.voter_ids if state.is_reachable(state.peers[voter_id]))
    return reachable >= state.quorum


def propose(state: MemberState, data: Sequence[bytes]) -> Proposed | Refused:
    """Take commands into the log, all or none."""
    if not state.leads:
        return Refused(RefusalReason.NOT_LEADER)
    if state.transfer_target != NOBODY:
        return Refused(RefusalReason.TRANSFERRING)
    log, term = state.log, state.term
    uncommitted_bytes = log.uncommitted_bytes
    if uncommitted_bytes and uncommitted_bytes + sum(map(len, data)) > state.config.max_uncommitted_bytes:
        return Refused(RefusalReason.TOO_MUCH_UNCOMMITTED)
    first_index = log.last_index + 1
    command = EntryKind.COMMAND
    log.append([Entry(index, term, command, each) for index, each in enumerate(data, first_index)])
    state.replication_due = True
    return Proposed(term, first_index, log.last_index)


# ---- sending -------------------------------------------------------------------------------------


def send_heartbeats(state: MemberState) -> None:
    """Say to everyone that it leads, with the commit index and the round of reads under way."""
    context = reads.round_context(state)
    for peer in state.peers.values():
        if peer.raft_id != state.raft_id:
            _send_heartbeat(state, peer, context)


def announce_commit(state: MemberState) -> None:
    """Tell those followers of the commit index that do not know it and have its entry."""
    for peer in state.peers.values():
        if peer.raft_id != state.raft_id and peer.commit_sent < min(peer.match, state.log.commit):
            _send_heartbeat(state, peer, b"")


def commit_unannounced(state: MemberState) -> bool:
    """Whether `announce_commit` would send anything."""
    commit = state.log.commit
    return any(
        peer.commit_sent < commit and peer.commit_sent < peer.match and peer.raft_id != state.raft_id
        for peer in state.peers.values()
    )


def _send_heartbeat(state: MemberState, peer: Progress, context: bytes) -> None:
    # What lies behind the match may be another leader's; it must not be committed by this message.
    commit = min(peer.match, state.log.commit)
    peer.commit_sent = max(peer.commit_sent, commit)
    state.send(Message(MessageKind.HEARTBEAT, state.raft_id, peer.raft_id, state.term, commit=commit, context=context))


def replicate(state: MemberState) -> None:
    """Send each member what it lacks and may be sent."""
    state.replication_due = False
    for peer in state.peers.values():
        if peer.raft_id != state.raft_id:
            while _may_send(state, peer) and _send_entries(state, peer):
                pass


def _may_send(state: MemberState, peer: Progress) -> bool:
    if peer.pace is Pace.PROBE:
        return not peer.probe_sent
    return peer.pace is Pace.REPLICATE and not _window_full(state, peer)


def _window_full(state: MemberState, peer: Progress) -> bool:
    if len(peer.inflight) >= state.config.max_inflight_appends:
        return True
    inflight_bytes = state.log.end_bytes(peer.next_index - 1) - state.log.end_bytes(peer.match)
    return bool(peer.inflight) and inflight_bytes >= state.config.max_inflight_bytes


def _send_entries(state: MemberState, peer: Progress) -> bool:
    """Send one APPEND, or a snapshot where entries are held no longer; whether anything went out."""
    log = state.log
    if peer.next_index > log.last_index and peer.pace is not Pace.PROBE:
        return False
    previous = peer.next_index - 1
    previous_term = log.term(previous)
    if previous_term is None:
        return _send_snapshot(state, peer)
    entries = log.slice(peer.next_index, state.config.max_append_bytes) if previous < log.last_index else ()
    if previous < log.last_index and not entries:
        return _send_snapshot(state, peer)
    _send_append(
        state,
        peer,
        Message(
            MessageKind.APPEND,
            state.raft_id,
            peer.raft_id,
            state.term,
            index=previous,
            log_term=previous_term,
            commit=log.commit,
            entries=entries,
        ),
    )
    return bool(entries)


def _send_append(state: MemberState, peer: Progress, message: Message) -> None:
    last_index = message.index + len(message.entries)
    peer.sent(last_index)
    peer.commit_sent = max(peer.commit_sent, min(message.commit, last_index))
    state.send(message)


def _send_snapshot(state: MemberState, peer: Progress) -> bool:
    if not state.is_reachable(peer):
        peer.probe_sent = peer.pace is Pace.PROBE
        return False
    meta = state.log.snapshot
    peer.become_snapshot(meta.index)
    state.send(Message(MessageKind.SNAPSHOT, state.raft_id, peer.raft_id, state.term, snapshot=meta))
    return True


# ---- answers -------------------------------------------------------------------------------------


def handle_append_answer(state: MemberState, message: Message) -> None:
    """Learn how far a follower's log matches."""
    peer = state.peers.get(message.sender)
    if peer is None:
        return
    peer.contact_tick = state.now
    if message.reject:
        _handle_refusal(state, peer, message)
    elif message.index <= state.log.last_index:
        _handle_acceptance(state, peer, message.index)


def _handle_refusal(state: MemberState, peer: Progress, message: Message) -> None:
    hint_index = message.hint_index
    if message.hint_term:
        hint_index, _ = state.log.last_possible_match(min(hint_index, state.log.last_index), message.hint_term)
    if peer.refused(message.index, hint_index):
        state.replication_due = True


def _handle_acceptance(state: MemberState, peer: Progress, index: int) -> None:
    news = peer.accepted(index)
    probe_found_it = peer.pace is Pace.PROBE and index >= peer.match
    snapshot_arrived = peer.pace is Pace.SNAPSHOT and peer.match >= peer.pending_snapshot
    if probe_found_it or snapshot_arrived:
        peer.become_replicate()
    state.replication_due = True
    if news:
        advance_commit(state)
        transfer.hand_over_when_caught_up(state)


def handle_heartbeat_answer(state: MemberState, message: Message) -> None:
    """A follower lives. What it lacks though all of it was sent has been lost on the way."""
    peer = state.peers.get(message.sender)
    if peer is None:
        return
    peer.contact_tick = state.now
    peer.probe_sent = False
    if message.context:
        peer.read_round = max(peer.read_round, int.from_bytes(message.context, "big"))
        reads.confirm(state)
    if peer.pace is Pace.REPLICATE and peer.match < state.log.last_index:
        _probe_for_loss(state, peer)
    state.replication_due = True


def _probe_for_loss(state: MemberState, peer: Progress) -> None:
    """Send an APPEND without entries after the last one sent: it is refused if one before it was lost."""
    previous_term = state.log.term(peer.next_index - 1)
    if previous_term is None:
        peer.become_probe()
        return
    state.send(
        Message(
            MessageKind.APPEND,
            state.raft_id,
            peer.raft_id,
            state.term,
            index=peer.next_index - 1,
            log_term=previous_term,
            commit=state.log.commit,
        )
    )


def own_entries_persisted(state: MemberState) -> None:
    """The leader's own disk counts like any other's, and not before."""
    peer = state.peers.get(state.raft_id)
    if peer is not None and state.log.persisted > peer.match:
        peer.match = state.log.persisted
        advance_commit(state)


def advance_commit(state: MemberState) -> None:
    """Commit what a majority has on disk, if it is of the present term (Raft paper, section 5.4.2, figure 8)."""
    index = reached_by_quorum(state.peers[voter_id].match for voter_id in state.voter_ids)
    if index > state.log.commit and state.log.term(index) == state.term:
        state.log.commit_to(index)
        state.replication_due = True


def report_unreachable(state: MemberState, raft_id: int) -> None:
    """What was sent without waiting may be lost."""
    peer = state.peers.get(raft_id)
    if peer is not None and peer.pace is Pace.REPLICATE:
        peer.become_probe()


def report_snapshot(state: MemberState, raft_id: int, *, ok: bool) -> None:
    """Go on after a snapshot, or try again. Either waits for word from the follower, so as not to flood it."""
    peer = state.peers.get(raft_id)
    if peer is not None and peer.pace is Pace.SNAPSHOT:
        peer.become_probe(peer.pending_snapshot + 1 if ok else None)
        peer.probe_sent = True
