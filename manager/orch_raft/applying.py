"""Committed entries on their way into the state machine."""

import time
from collections import deque
from collections.abc import Iterable

from orch_raft.engine import StateMachine
from orch_raft.errors import ApplyFailed
from orch_raft.log.records import Entry, EntryKind
from orch_raft.membership import SnapshotMeta
from orch_raft.proposals import ProposalBook

#: Time that entries are applied before the event loop gets a turn.
_APPLY_SLICE_S = 0.01
#: Entries applied between two looks at the clock.
_APPLY_STEP = 64


class Applier:
    """Applies what is committed, in order, and tells who waits for it.

    Args:
        book: knows who waits.
        index: of the last entry that the state machine holds already, and its `term`.
    """

    def __init__(self, state_machine: StateMachine, book: ProposalBook, *, index: int, term: int) -> None:
        self._state_machine = state_machine
        self._book = book
        self._waiting: deque[Entry] = deque()
        self.index = index
        self.term = term
        #: Data applied since `index` was last that of a snapshot.
        self.bytes_since_snapshot = 0

    @property
    def has_work(self) -> bool:
        """Whether entries wait."""
        return bool(self._waiting)

    def add(self, entries: Iterable[Entry]) -> None:
        """These are committed."""
        self._waiting.extend(entries)

    def drop_waiting(self) -> None:
        """A snapshot that holds them takes their place."""
        self._waiting.clear()

    def restored(self, meta: SnapshotMeta) -> None:
        """The state machine is at a snapshot's entry now."""
        self.index, self.term = meta.index, meta.term
        self.bytes_since_snapshot = 0

    def apply_some(self) -> bool:
        """Apply for a moment; whether anything was.

        Raises:
            ApplyFailed: the state machine has a defect.
        """
        waiting = self._waiting
        if not waiting:
            return False
        until_s = time.monotonic() + _APPLY_SLICE_S
        while waiting:
            for _ in range(min(_APPLY_STEP, len(waiting))):
                self._apply(waiting.popleft())
            if time.monotonic() > until_s:
                break
        return True

    def _apply(self, entry: Entry) -> None:
        result: object = None
        if entry.kind is EntryKind.COMMAND:
            try:
                result = self._state_machine.apply(entry.index, entry.term, entry.data)
            except Exception as error:
                raise ApplyFailed(entry.index, error) from error
        self.index, self.term = entry.index, entry.term
        self.bytes_since_snapshot += len(entry.data)
        self._book.settle(entry, result)
