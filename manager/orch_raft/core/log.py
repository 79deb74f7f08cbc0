"""The member's log as the core sees it: recent entries in memory, older ones through `LogView`."""

from bisect import bisect_right
from collections.abc import Sequence

from orch_raft.core.log_view import LogView
from orch_raft.core.ready import Recovered
from orch_raft.errors import SafetyBroken
from orch_raft.log.records import Entry, EntryKind
from orch_raft.membership import SnapshotMeta


class RaftLog:
    """Entries, and how far they were handed to disk, persisted, committed, handed out and applied.

    Attributes:
        commit: last index known to be committed.
        applied: last index that was applied.
        persisted: last index known to be on this member's disk.
        snapshot: the newest snapshot of this member.
        membership_indexes: where entries of kind MEMBERSHIP stand that were not applied yet, in order.
    """

    def __init__(self, recovered: Recovered, view: LogView | None, memory_bytes: int) -> None:
        self._view = view
        self._memory_bytes = memory_bytes
        self.snapshot = recovered.snapshot
        self._entries: list[Entry] = []
        #: Bytes of data up to and with the entry at the same place of `_entries`, counted from an arbitrary origin.
        self._ends: list[int] = []
        self._base_index = recovered.snapshot.index
        self._base_term = recovered.snapshot.term
        self._base_end = 0
        self.membership_indexes: list[int] = []
        self.applied = self._handed_out = self.snapshot.index
        self._take_recovered(recovered.entries)
        self.commit = max(self.snapshot.index, min(recovered.hard_state.commit, self.last_index))
        self.persisted = self._handed_to_disk = self.last_index
        self._sliced: tuple[int, int, Sequence[Entry]] = (0, 0, ())

    def _take_recovered(self, entries: Sequence[Entry]) -> None:
        """Keep the entries that agree with the snapshot: it is committed, they may not be."""
        snapshot = self.snapshot
        if not entries or entries[-1].index < snapshot.index:
            return
        first_index = entries[0].index
        if first_index > snapshot.index + 1:
            raise ValueError(f"entries {snapshot.index + 1} to {first_index - 1}, after the snapshot, are missing")
        if first_index <= snapshot.index:
            own_term = entries[snapshot.index - first_index].term
            if own_term != snapshot.term:
                raise ValueError(f"entry {snapshot.index} is of term {own_term}, the snapshot of term {snapshot.term}")
            # The first one stands for what came before it, whose term nobody knows.
            self._base_index, self._base_term = first_index, entries[0].term
            entries = entries[1:]
        self.append(entries)
        self.membership_indexes = [index for index in self.membership_indexes if index > snapshot.index]

    # ---- reading ---------------------------------------------------------------------------------

    @property
    def last_index(self) -> int:
        """The last entry."""
        return self._base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        """Its term."""
        return self._entries[-1].term if self._entries else self._base_term

    @property
    def uncommitted_bytes(self) -> int:
        """Data of the entries after the commit index."""
        return self.end_bytes(self.last_index) - self.end_bytes(self.commit)

    def end_bytes(self, index: int) -> int:
        """Bytes of data up to and with an entry, from an arbitrary origin; differences count."""
        place = index - self._base_index
        if place <= 0:
            return self._base_end
        return self._ends[min(place, len(self._ends)) - 1] if self._ends else self._base_end

    def term(self, index: int) -> int | None:
        """Term of the entry at an index, None when there is none or it is held no longer."""
        place = index - self._base_index
        if place > 0:
            return self._entries[place - 1].term if place <= len(self._entries) else None
        if place == 0:
            return self._base_term
        if index == self.snapshot.index:
            return self.snapshot.term
        return self._view.term(index) if self._view else None

    def matches(self, index: int, term: int) -> bool:
        """Whether the log has that very entry (Raft paper, section 5.3)."""
        return self.term(index) == term

    def entry(self, index: int) -> Entry:
        """An entry that is in memory, as those are that were not applied yet."""
        return self._entries[index - self._base_index - 1]

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so is at least as complete as this one (Raft paper, section 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def slice(self, first_index: int, max_bytes: int) -> Sequence[Entry]:
        """Entries from an index on, at least one, up to a size; none when that index is held no longer."""
        place = first_index - self._base_index - 1
        if place < 0:
            return self._view.entries(first_index, self._base_index, max_bytes) if self._view else ()
        end = bisect_right(self._ends, self.end_bytes(first_index - 1) + max_bytes, place)
        end = max(end, place + 1)
        if self._sliced[0] == first_index and self._sliced[1] == end + self._base_index:
            return self._sliced[2]
        entries = self._entries[place:end]
        self._sliced = (first_index, end + self._base_index, entries)
        return entries

    def last_possible_match(self, index: int, term: int) -> tuple[int, int]:
        """The last entry up to an index whose term is at most `term`, and its term (0 when that is held no longer).

        Another log that has `term` at `index` can agree with this one there or before, nowhere after
        (Raft paper, end of section 5.3: a whole term is skipped in one round).
        """
        while index > 0:
            own_term = self.term(index)
            if own_term is None:
                return index, 0
            if own_term <= term:
                return index, own_term
            index -= 1
        return 0, 0

    # ---- writing ---------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at the end."""
        self._entries.extend(entries)
        end = self._ends[-1] if self._ends else self._base_end
        for entry in entries:
            end += len(entry.data)
            self._ends.append(end)
            if entry.kind is EntryKind.MEMBERSHIP:
                self.membership_indexes.append(entry.index)

    def merge(self, entries: Sequence[Entry]) -> None:
        """Store a leader's entries, of which the one before the first matches.

        What is there already stays, as a late message may bring less than is stored; what conflicts goes, with all
        after it (Raft paper, figure 2, AppendEntries 3 and 4).
        """
        if not entries:
            return
        first_index = entries[0].index
        if first_index > self.last_index:
            self.append(entries)
            return
        for place, entry in enumerate(entries):
            if entry.index > self.last_index:
                self.append(entries[place:])
                return
            if not self.matches(entry.index, entry.term):
                if entry.index <= self.commit:
                    raise SafetyBroken(f"a leader sent another entry {entry.index} than the committed one")
                self._truncate(entry.index)
                self.append(entries[place:])
                return

    def _truncate(self, first_index: int) -> None:
        place = first_index - self._base_index - 1
        del self._entries[place:]
        del self._ends[place:]
        self.membership_indexes = [index for index in self.membership_indexes if index < first_index]
        self.persisted = min(self.persisted, first_index - 1)
        self._handed_to_disk = min(self._handed_to_disk, first_index - 1)
        self._sliced = (0, 0, ())

    def commit_to(self, index: int) -> bool:
        """Raise the commit index; whether it rose. It never falls, and never passes the end."""
        index = min(index, self.last_index)
        if index <= self.commit:
            return False
        self.commit = index
        return True

    def restore(self, meta: SnapshotMeta) -> None:
        """Begin again after a snapshot, which replaces the whole log."""
        self.snapshot = meta
        self._entries.clear()
        self._ends.clear()
        self._base_index, self._base_term = meta.index, meta.term
        self.membership_indexes = []
        self.commit = self.persisted = self._handed_to_disk = self._handed_out = meta.index
        self._sliced = (0, 0, ())

    # ---- handing out -----------------------------------------------------------------------------

    def take_unwritten(self) -> Sequence[Entry]:
        """Entries that were not handed to the disk yet; they count as handed now."""
        place = self._handed_to_disk - self._base_index
        self._handed_to_disk = self.last_index
        return self._entries[place:] if place < len(self._entries) else ()

    @property
    def has_unwritten(self) -> bool:
        """Whether `take_unwritten` would give any."""
        return self._handed_to_disk < self.last_index

    def take_committed(self, max_bytes: int) -> Sequence[Entry]:
        """Committed entries that were not handed out yet, up to a size and at least one; they count as handed now."""
        place = self._handed_out - self._base_index
        end = bisect_right(self._ends, self.end_bytes(self._handed_out) + max_bytes, place)
        end = min(max(end, place + 1), self.commit - self._base_index)
        self._handed_out = self._base_index + end
        return self._entries[place:end]

    @property
    def has_committed(self) -> bool:
        """Whether `take_committed` would give any."""
        return self._handed_out < self.commit

    def persisted_to(self, index: int, term: int) -> None:
        """What ends with this entry is on disk. It does not count if it has been replaced since."""
        if index > self.persisted and self.matches(index, term):
            self.persisted = index

    def applied_to(self, index: int) -> None:
        """Everything up to an index was applied."""
        self.applied = max(self.applied, index)
        if self.membership_indexes and self.membership_indexes[0] <= index:
            self.membership_indexes = [place for place in self.membership_indexes if place > index]
        if self._ends and self._ends[-1] - self._base_end > self._memory_bytes:
            keep_from = bisect_right(self._ends, self._ends[-1] - self._memory_bytes // 2)
            # Without a view, what is forgotten can be had from the snapshot alone.
            self._forget(self._base_index + keep_from if self._view else self.snapshot.index)

    def compacted(self, first_index: int) -> None:
        """The log on disk begins with this entry now."""
        self._forget(min(first_index - 1, self.snapshot.index))

    def _forget(self, through_index: int) -> None:
        """Drop entries from memory, but never one that is not applied and on disk."""
        count = min(through_index, self.applied, self.persisted) - self._base_index
        if count <= 0:
            return
        self._base_term = self._entries[count - 1].term
        self._base_end = self._ends[count - 1]
        self._base_index += count
        del self._entries[:count]
        del self._ends[:count]
        self._sliced = (0, 0, ())
