"""Bounds and cadences of the consensus engine, each with its unit and its reason."""

from dataclasses import dataclass

from orch_proto.defaults import (
    KEEP_ENTRIES,
    MIB,
    RAFT_ELECTION_MS,
    RAFT_HEARTBEAT_MS,
    SNAPSHOT_INTERVAL_ENTRIES,
    TRANSACTION_BYTES,
)

#: Periods of the core's clock in one heartbeat: the election timer is drawn at this grain.
TICKS_PER_HEARTBEAT = 2


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an operator or a test may tune.

    Attributes:
        max_proposal_bytes: largest proposal; larger ones are refused before anything is written.
        max_batch_bytes: most bytes of entries written with one sync.
        max_batch_entries: most entries written with one sync.
        max_waiting_proposals: proposals that may wait for the disk; bounds memory, more are refused.
        segment_bytes: size a log segment is preallocated to; at least one full batch.
        snapshot_every_entries: entries applied between two snapshots; bounds replay at start.
        snapshot_every_bytes: bytes of entries between two snapshots; bounds replay when entries are large.
        keep_entries: entries kept behind a snapshot, so that a slow follower needs no snapshot.
        snapshot_chunk_bytes: size of an encrypted piece of a snapshot; bounds memory while it is written and read.
        heartbeat_ms: between two heartbeats of a leader.
        election_ms: silence of the leader until an election, at least; at most twice that.
        commit_notice_ms: how long a new commit index waits for a message that it can ride on.
        max_uncommitted_batches: batches of proposals under way at once. Few make large batches, which cost less.
        max_inbox_messages: messages of other members that wait to be stepped; then no more are read from them.
        max_inbox_bytes: data in them.
    """

    max_proposal_bytes: int = TRANSACTION_BYTES
    max_batch_bytes: int = 4 * MIB
    max_batch_entries: int = 1024
    max_waiting_proposals: int = 4096
    segment_bytes: int = 16 * MIB
    snapshot_every_entries: int = SNAPSHOT_INTERVAL_ENTRIES
    snapshot_every_bytes: int = 64 * MIB
    keep_entries: int = KEEP_ENTRIES
    snapshot_chunk_bytes: int = 256 * 1024
    heartbeat_ms: int = RAFT_HEARTBEAT_MS
    election_ms: int = RAFT_ELECTION_MS
    commit_notice_ms: float = 2.0
    max_uncommitted_batches: int = 1
    max_inbox_messages: int = 4096
    max_inbox_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        """Refuse combinations that could not work.

        Raises:
            ValueError: a bound is below what another bound needs.
        """
        if self.max_batch_bytes < self.max_proposal_bytes:
            raise ValueError("max_batch_bytes must be at least max_proposal_bytes: a batch holds at least one proposal")
        # A frame adds its own header, tag and padding, and each entry some thirty bytes.
        largest_frame_bytes = self.max_batch_bytes + 64 * self.max_batch_entries + 4096
        if self.segment_bytes < largest_frame_bytes:
            raise ValueError(
                f"segment_bytes must be at least {largest_frame_bytes}: a segment holds at least one full batch"
            )
        if self.heartbeat_ms < TICKS_PER_HEARTBEAT or self.election_ms < 3 * self.heartbeat_ms:
            raise ValueError("election_ms must be at least three times heartbeat_ms, or a lost message elects a leader")
        if self.max_batch_entries < 1 or self.max_waiting_proposals < 1 or self.snapshot_every_entries < 1:
            raise ValueError("max_batch_entries, max_waiting_proposals and snapshot_every_entries must be at least 1")

    @property
    def tick_s(self) -> float:
        """Period of the core's clock."""
        return self.heartbeat_ms / 1000 / TICKS_PER_HEARTBEAT

    @property
    def election_ticks(self) -> int:
        """Of `election_ms`, in periods of the core's clock."""
        return round(self.election_ms / 1000 / self.tick_s)
