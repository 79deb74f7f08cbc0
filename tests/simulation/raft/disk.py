"""A model of what the log on disk promises: batches become durable in order, a crash keeps a prefix of the rest."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from orch_raft.core.ready import NO_SNAPSHOT, Ready, Recovered
from orch_raft.log.records import Entry, HardState
from orch_raft.membership import SnapshotMeta


@dataclass(slots=True)
class Image:
    """What stands on a disk."""

    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta = NO_SNAPSHOT
    entries: list[Entry] = field(default_factory=list)

    def copy(self) -> "Image":
        """Another one that may go its own way."""
        return Image(self.hard_state, self.snapshot, list(self.entries))

    def install(self, meta: SnapshotMeta) -> None:
        """Put a received snapshot in the place of everything."""
        self.snapshot = meta
        self.entries = []

    def place(self, entry: Entry) -> None:
        """Write an entry; one at an index that is there replaces that one and all after it."""
        if self.entries and entry.index <= self.entries[-1].index:
            del self.entries[max(0, entry.index - self.entries[0].index) :]
        elif self.entries:
            assert entry.index == self.entries[-1].index + 1, "a gap in the log"
        if not self.entries:
            assert entry.index <= self.snapshot.index + 1, "a gap after the snapshot"
        self.entries.append(entry)


Record = HardState | SnapshotMeta | Entry


def records_of(ready: Ready) -> list[Record]:
    """What a Ready writes, in the order it is written in."""
    records: list[Record] = []
    if ready.snapshot is not None:
        records.append(ready.snapshot)
    if ready.hard_state is not None:
        records.append(ready.hard_state)
    records.extend(ready.entries)
    return records


class Disk:
    """One member's disk. Outlives its processes."""

    def __init__(self, rng: random.Random, image: Image) -> None:
        self._rng = rng
        self._durable = image
        #: Batches that were written and not synced.
        self._written: list[list[Record]] = []

    def write(self, records: list[Record]) -> None:
        """Write a batch."""
        self._written.append(records)

    def sync(self, batches: int) -> None:
        """Make the oldest batches durable."""
        for batch in self._written[:batches]:
            _replay(self._durable, batch)
        del self._written[:batches]

    def save_snapshot(self, meta: SnapshotMeta, keep_from: int) -> None:
        """Make an own snapshot durable, then drop the log before an index."""
        assert meta.index > self._durable.snapshot.index
        self._durable.snapshot = meta
        entries = self._durable.entries
        while entries and entries[0].index < keep_from:
            del entries[0]

    def lose_power(self, *, torn_batches: bool) -> None:
        """Keep a prefix of what was written and not synced; with torn batches, records of one more."""
        survivors = self._rng.randint(0, len(self._written))
        for batch in self._written[:survivors]:
            _replay(self._durable, batch)
        if torn_batches and survivors < len(self._written):
            torn = self._written[survivors]
            _replay(self._durable, torn[: self._rng.randint(0, len(torn))])
        self._written.clear()

    def recover(self) -> Recovered:
        """What a process finds."""
        image = self._durable.copy()
        return Recovered(image.hard_state, image.snapshot, image.entries)


def _replay(image: Image, records: Sequence[Record]) -> None:
    for record in records:
        if isinstance(record, HardState):
            image.hard_state = record
        elif isinstance(record, SnapshotMeta):
            if record.index > image.snapshot.index:
                image.install(record)
        else:
            image.place(record)
