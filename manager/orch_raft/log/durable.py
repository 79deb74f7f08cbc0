"""The durable log: an ordered set of segments.

`recover` reads it, `append` makes entries durable, `release` removes what a snapshot has made needless.
An entry at an index that was written before replaces that one and all after it: this is how a follower drops a
suffix that conflicts with its leader's log (Raft paper, figure 2, AppendEntries 3). A received snapshot voids
everything before its mark. Recovery replays both, so that it gives the exact state.
Not safe for use by two threads at once; the engine calls it from one worker thread.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from orch_raft.engine import Observer
from orch_raft.errors import DurabilityLost, LogCorrupt
from orch_raft.limits import EngineOptions
from orch_raft.log.files import Files
from orch_raft.log.keys import Keyring
from orch_raft.log.records import Batch, Entry, HardState, ReceivedMark, encoded_bytes
from orch_raft.log.segment import (
    ASIDE_SUFFIX,
    HEADER_BYTES,
    SegmentContents,
    SegmentWriter,
    read_segment,
    segment_name,
    segment_number,
)
from orch_raft.log.snapshots import FOUNDING_INDEX


@dataclass(frozen=True, slots=True)
class RecoveredLog:
    """What the disk held.

    Attributes:
        hard_state: the latest one.
        entries: in order, without gaps; the first may stand at or before the snapshot's index.
        received: the latest snapshot that the log began anew after.
    """

    hard_state: HardState
    entries: tuple[Entry, ...]
    received: ReceivedMark | None = None


@dataclass(slots=True)
class _Kept:
    """A segment that is on disk."""

    path: Path
    number: int
    key_id: bytes
    last_index: int


@dataclass(frozen=True, slots=True)
class LogContents:
    """What the segments were found to hold, before anything is repaired.

    Attributes:
        names: every file in the folder.
        received: the latest snapshot that the log began anew after.
    """

    names: tuple[str, ...]
    segments: tuple[SegmentContents, ...]
    received: ReceivedMark | None


class DurableLog:
    """The log in one folder."""

    def __init__(
        self, files: Files, folder: Path, keyring: Keyring, options: EngineOptions, observer: Observer | None = None
    ) -> None:
        self._files = files
        self._folder = folder
        self._keyring = keyring
        self._options = options
        self._observer = observer or Observer()
        self._hard_state = HardState()
        self._kept: list[_Kept] = []
        self._writer: SegmentWriter | None = None
        self._next_number = 1
        self._next_sequence = 1
        self._failed: DurabilityLost | None = None

    @property
    def segment_count(self) -> int:
        """Segments on disk."""
        return len(self._kept)

    @property
    def last_index(self) -> int:
        """An upper bound of the index of every entry in the segments."""
        return max((kept.last_index for kept in self._kept), default=0)

    @property
    def key_ids(self) -> frozenset[bytes]:
        """The data keys that the segments need."""
        return frozenset(kept.key_id for kept in self._kept)

    def read(self) -> LogContents:
        """Read every segment and check that none is missing. Changes nothing.

        Raises:
            LogCorrupt: an acknowledged record cannot be read.
            DataKeyError: a key is missing.
            DurabilityLost: the disk refused to be read.
        """
        try:
            names = self._files.list(self._folder)
            numbers = sorted(number for name in names if (number := segment_number(name)) is not None)
            segments = tuple(
                read_segment(self._files, self._folder / segment_name(number), self._keyring) for number in numbers
            )
        except OSError as error:
            raise DurabilityLost(f"read the log in {self._folder}", error) from error
        self._check_chain(segments)
        marks = [batch.received for segment in segments for batch in segment.batches if batch.received is not None]
        return LogContents(tuple(names), segments, marks[-1] if marks else None)

    def recover(self, snapshot_index: int, contents: LogContents | None = None) -> RecoveredLog:
        """Give what the segments hold, and cut the torn tail of the last.

        Nothing is changed before everything was checked.

        Args:
            snapshot_index: index of the snapshot that the log goes on from; 0 for a joiner that has none yet.
            contents: what `read` found, when it was called already.

        Raises:
            LogCorrupt: an acknowledged record cannot be read, or entries are missing.
            DataKeyError: a key is missing.
            DurabilityLost: the disk refused to be read or repaired.
        """
        contents = contents or self.read()
        if not contents.segments and snapshot_index > FOUNDING_INDEX:
            raise LogCorrupt(self._folder, 0, f"there is a snapshot at index {snapshot_index}, but no segment")
        entries = self._collect(contents.segments, snapshot_index)
        try:
            self._repair(contents.segments, contents.names)
        except OSError as error:
            raise DurabilityLost(f"repair the log in {self._folder}", error) from error
        return RecoveredLog(self._hard_state, entries, contents.received)

    def append(
        self, entries: Sequence[Entry], hard_state: HardState | None = None, received: ReceivedMark | None = None
    ) -> None:
        """Make entries, and a changed hard state, durable: one write and one sync for each full batch.

        An entry at or before an index that was written already replaces that one and everything after it. A cut
        between two batches leaves a prefix.

        Args:
            entries: in order, without gaps.
            hard_state: when it has changed; it comes before the entries.
            received: a snapshot that voids every entry so far; `entries` follow it.

        Raises:
            DurabilityLost: the disk refused; the log takes nothing any more.
        """
        if self._failed is not None:
            raise self._failed
        if hard_state is not None:
            self._hard_state = hard_state
        first, rest = self._split(entries)
        self._write(Batch(hard_state, first, received))
        while rest:
            first, rest = self._split(rest)
            self._write(Batch(None, first))

    def _split(self, entries: Sequence[Entry]) -> tuple[tuple[Entry, ...], Sequence[Entry]]:
        """The entries of one batch, and the others."""
        if len(entries) == 1:
            return tuple(entries), ()
        size_bytes = 0
        for position, entry in enumerate(entries[: self._options.max_batch_entries]):
            size_bytes += len(entry.data)
            if position and size_bytes > self._options.max_batch_bytes:
                return tuple(entries[:position]), entries[position:]
        return tuple(entries[: self._options.max_batch_entries]), entries[self._options.max_batch_entries :]

    def _write(self, batch: Batch) -> None:
        started_s = time.monotonic()
        try:
            if self._writer is None or not self._writer.has_room(encoded_bytes(batch)):
                self._roll()
                # A segment must be understood without those before it, which may be removed.
                batch = Batch(self._hard_state, batch.entries, batch.received)
            assert self._writer is not None
            size_bytes = self._writer.append(batch)
        except OSError as error:
            self._failed = DurabilityLost(f"write to the log in {self._folder}", error)
            raise self._failed from error
        if batch.received is not None:
            for kept in self._kept:
                kept.last_index = 0
            self._kept[-1].last_index = batch.received.index
        if batch.entries:
            self._kept[-1].last_index = max(self._kept[-1].last_index, batch.entries[-1].index)
        self._observer.synced(time.monotonic() - started_s, len(batch.entries), size_bytes)

    def change_key(self, keyring: Keyring) -> None:
        """Go on in a new segment, under the current key of another keyring, which also has the keys so far.

        Raises:
            DurabilityLost: the disk refused; the log takes nothing any more.
        """
        if self._failed is not None:
            raise self._failed
        self._keyring = keyring
        try:
            self._roll()
        except OSError as error:
            self._failed = DurabilityLost(f"write to the log in {self._folder}", error)
            raise self._failed from error
        self._write(Batch(self._hard_state, ()))

    def release(self, through_index: int) -> None:
        """Remove the segments that hold no entry after an index.

        Raises:
            DurabilityLost: the disk refused.
        """
        if self._failed is not None:
            raise self._failed
        try:
            while len(self._kept) > 1 and self._kept[0].last_index <= through_index:
                self._files.remove(self._kept[0].path)
                # One at a time: after a loss of power the segments that are left must have no gap.
                self._files.sync_folder(self._folder)
                del self._kept[0]
        except OSError as error:
            self._failed = DurabilityLost(f"remove old segments in {self._folder}", error)
            raise self._failed from error

    def close(self) -> None:
        """Give unwritten space back. Everything acknowledged is on disk already."""
        if self._writer is not None and self._failed is None:
            self._writer.finish()
        self._writer = None

    def _roll(self) -> None:
        if self._writer is not None:
            self._next_sequence = self._writer.sequence
            self._writer.finish()
        self._writer = SegmentWriter(
            self._files,
            self._folder,
            self._keyring,
            number=self._next_number,
            sequence=self._next_sequence,
            size_bytes=self._options.segment_bytes,
        )
        self._kept.append(_Kept(self._writer.path, self._next_number, self._keyring.current_id, 0))
        self._next_number += 1
        self._observer.log_rolled(len(self._kept))

    def _check_chain(self, segments: Sequence[SegmentContents]) -> None:
        """Refuse a set of segments of which one is missing, or one but the last ends early."""
        for earlier, later in pairwise(segments):
            if earlier.torn:
                raise LogCorrupt(earlier.path, earlier.end_offset, "the record is cut short, but later segments exist")
            if later.number != earlier.number + 1:
                missing = segment_name(earlier.number + 1)
                raise LogCorrupt(later.path, 0, f"segment {missing}, which comes before it, is missing")
            if later.first_sequence != earlier.next_sequence:
                lost = later.first_sequence - earlier.next_sequence
                raise LogCorrupt(earlier.path, earlier.end_offset, f"{lost} records are missing at its end")

    def _collect(self, segments: Sequence[SegmentContents], snapshot_index: int) -> tuple[Entry, ...]:
        """Replay the batches: the latest hard state, and the entries that were not replaced."""
        entries: list[Entry] = []
        for segment in segments:
            last_index = 0
            for batch in segment.batches:
                self._hard_state = batch.hard_state or self._hard_state
                if batch.received is not None:
                    entries.clear()
                    last_index = batch.received.index
                    for kept in self._kept:
                        kept.last_index = 0
                for entry in batch.entries:
                    _place(entries, entry, segment)
                    last_index = max(last_index, entry.index)
            self._kept.append(_Kept(segment.path, segment.number, segment.key_id, last_index))
        if entries and entries[0].index > snapshot_index + 1:
            raise LogCorrupt(
                segments[0].path,
                HEADER_BYTES,
                f"entries {snapshot_index + 1} to {entries[0].index - 1}, after the snapshot, are missing",
            )
        if entries and entries[-1].term > self._hard_state.term:
            raise LogCorrupt(segments[-1].path, HEADER_BYTES, "an entry is of a later term than the hard state")
        return tuple(entries)

    def _repair(self, segments: Sequence[SegmentContents], names: Sequence[str]) -> None:
        """Cut the torn tail, remove an empty last segment and files that never got their name."""
        for name in names:
            if name.endswith(ASIDE_SUFFIX):
                self._files.remove(self._folder / name)
        if not segments:
            return
        last = segments[-1]
        self._next_number = last.number + 1
        self._next_sequence = last.next_sequence
        if not last.batches:
            self._files.remove(last.path)
            self._files.sync_folder(self._folder)
            self._kept.pop()
            self._next_number = last.number
        elif last.size_bytes > last.end_offset:
            # Now, and synced: once another segment follows, a torn tail would be taken for damage.
            file = self._files.open(last.path)
            try:
                file.truncate(last.end_offset)
                file.sync_data()
            finally:
                file.close()


def _place(entries: list[Entry], entry: Entry, segment: SegmentContents) -> None:
    """Put an entry where its index says, as the log did when it was written."""
    if entries and entry.index <= entries[-1].index:
        del entries[max(0, entry.index - entries[0].index) :]
    elif entries and entry.index > entries[-1].index + 1:
        raise LogCorrupt(
            segment.path, HEADER_BYTES, f"entries {entries[-1].index + 1} to {entry.index - 1} are missing in it"
        )
    entries.append(entry)
