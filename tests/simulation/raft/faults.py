"""What goes wrong in one run.

Each seed draws a mix of its own: some defects show only where certain faults are frequent.
"""

import random
from dataclasses import dataclass

from orch_raft.core.config import CoreConfig

#: Length of a tick in the simulation's units of time.
TICK = 10


@dataclass(frozen=True, slots=True)
class FaultMix:
    """Rates are per event of the kind; durations are in units of time, of which a tick has ten.

    Attributes:
        voters: members at the start.
        drop, duplicate: chances of a message.
        longest_delay: of a message; anything above 1 reorders.
        told_of_drops: chance that the sender's driver notices a drop.
        tick_jitter: how far a member's clock may run off, as a share.
        longest_sync: of a write to disk.
        crash_at_send, crash_at_sync: chances of a crash at each point where something leaves or reaches the disk.
        torn_batches: a crash may leave part of a batch, record by record, and not only whole ones.
        failed_sync: chance that the disk refuses (full, broken), after which the process ends.
        impatience: chance that some voter stands for election though the leader lives, without a pre-vote, as the rules
            allow at any time; the busiest way to rare orders of events.
        leader_crash, power_loss, partition, one_way, transfer, membership, read, propose: chances per step of the
        world. snapshot_every: entries applied between two snapshots. keep: entries kept behind a snapshot.
        slow_apply: chance that applying waits for a later turn. small_windows: tight bounds of sizes and windows.
        lazy_commit: as in `CoreConfig`.
    """

    voters: int
    drop: float
    duplicate: float
    longest_delay: int
    told_of_drops: float
    tick_jitter: float
    longest_sync: int
    crash_at_send: float
    crash_at_sync: float
    torn_batches: bool
    failed_sync: float
    impatience: float
    leader_crash: float
    power_loss: float
    partition: float
    one_way: float
    transfer: float
    membership: float
    read: float
    propose: float
    snapshot_every: int
    keep: int
    slow_apply: float
    small_windows: bool
    lazy_commit: bool

    @classmethod
    def draw(cls, rng: random.Random) -> "FaultMix":
        """A mix in which each fault is absent, rare or frequent."""

        def rate(rare: float, frequent: float) -> float:
            return rng.choice((0.0, rare, frequent))

        return cls(
            voters=rng.choice((3, 3, 3, 4, 5, 5, 6, 7)),
            drop=rate(0.02, 0.15),
            duplicate=rate(0.02, 0.15),
            longest_delay=rng.choice((1, 5, 20, 60)),
            told_of_drops=rng.choice((0.0, 1.0)),
            tick_jitter=rng.choice((0.0, 0.1, 0.4)),
            longest_sync=rng.choice((1, 5, 30, 80)),
            crash_at_send=rate(0.0005, 0.003),
            crash_at_sync=rate(0.001, 0.008),
            torn_batches=rng.random() < 0.5,
            failed_sync=rate(0.0005, 0.003),
            impatience=rng.choice((0.0, 0.0, 0.05, 0.25)),
            leader_crash=rate(0.01, 0.05),
            power_loss=rate(0.002, 0.01),
            partition=rate(0.01, 0.05),
            one_way=rate(0.01, 0.05),
            transfer=rate(0.005, 0.05),
            membership=rate(0.02, 0.2),
            read=rate(0.1, 0.6),
            propose=rng.choice((0.3, 0.7, 1.0)),
            snapshot_every=rng.choice((5, 20, 1000)),
            keep=rng.choice((0, 3, 20)),
            slow_apply=rate(0.1, 0.5),
            small_windows=rng.random() < 0.5,
            lazy_commit=rng.random() < 0.7,
        )

    @classmethod
    def calm(cls, *, longest_sync: int = 1) -> "FaultMix":
        """Three members in a world without faults, under load."""
        return cls(
            voters=3,
            drop=0,
            duplicate=0,
            longest_delay=3,
            told_of_drops=1,
            tick_jitter=0,
            longest_sync=longest_sync,
            crash_at_send=0,
            crash_at_sync=0,
            torn_batches=True,
            failed_sync=0,
            impatience=0,
            leader_crash=0,
            power_loss=0,
            partition=0,
            one_way=0,
            transfer=0,
            membership=0,
            read=0.3,
            propose=1,
            snapshot_every=50,
            keep=5,
            slow_apply=0,
            small_windows=False,
            lazy_commit=True,
        )

    def core_config(self, raft_id: int) -> CoreConfig:
        """The bounds of a member's core."""
        if not self.small_windows:
            return CoreConfig(raft_id, lazy_commit=self.lazy_commit, promotion_lag_entries=10)
        return CoreConfig(
            raft_id,
            max_append_bytes=24,
            max_inflight_appends=3,
            max_inflight_bytes=64,
            max_uncommitted_bytes=400,
            max_apply_bytes=20,
            max_waiting_reads=4,
            memory_bytes=160,
            promotion_lag_entries=3,
            lazy_commit=self.lazy_commit,
        )
