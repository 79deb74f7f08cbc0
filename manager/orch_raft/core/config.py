"""What the core may be tuned by."""

from dataclasses import dataclass

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Bounds and timers. A tick is whatever period the driver calls `RaftNode.tick` at.

    Attributes:
        raft_id: this member, above 0.
        election_ticks: without word from a leader for this long, and up to twice as long at random, a voter
            campaigns. A leader that has not heard from a quorum for this long steps down.
        heartbeat_ticks: between two heartbeats of a leader; well below `election_ticks`.
        max_append_bytes: most data in one APPEND; a larger entry travels alone. Bounds the size of a message.
        max_inflight_appends: unanswered APPENDs to one follower. Bounds what a slow one makes others hold.
        max_inflight_bytes: data in them.
        max_uncommitted_bytes: data of entries that a leader has taken and not committed; proposals beyond it are
            refused.
        max_apply_bytes: most data of committed entries in one `Ready`, at least one entry.
        max_waiting_reads: reads that may wait for confirmation; more are refused.
        memory_bytes: data of entries kept in memory once they are on disk and applied; older ones are asked of
            `LogView`.
        promotion_lag_entries: how far behind the leader's log a learner may be when it is promoted.
        lazy_commit: a leader tells its followers of a new commit index with the next APPEND, a heartbeat, or when the
            driver calls `RaftNode.announce_commit`; otherwise at once.
    """

    raft_id: int
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    max_append_bytes: int = 1 * _MIB
    max_inflight_appends: int = 256
    max_inflight_bytes: int = 16 * _MIB
    max_uncommitted_bytes: int = 64 * _MIB
    max_apply_bytes: int = 4 * _MIB
    max_waiting_reads: int = 4096
    memory_bytes: int = 64 * _MIB
    promotion_lag_entries: int = 1024
    lazy_commit: bool = True

    def __post_init__(self) -> None:
        """Refuse what could not work.

        Raises:
            ValueError: a bound is out of range.
        """
        if self.raft_id <= 0:
            raise ValueError("raft_id must be above 0, which means nobody")
        if self.heartbeat_ticks < 1 or self.election_ticks <= self.heartbeat_ticks:
            raise ValueError("election_ticks must be above heartbeat_ticks, which must be at least 1")
        bounds = (
            self.max_append_bytes,
            self.max_inflight_appends,
            self.max_inflight_bytes,
            self.max_uncommitted_bytes,
            self.max_apply_bytes,
            self.max_waiting_reads,
        )
        if min(bounds) < 1:
            raise ValueError("every bound must be at least 1")
