"""What must hold at every step of every run (Raft paper, figure 3), and what clients were promised."""

from collections.abc import Sequence
from dataclasses import dataclass

from orch_raft.core.node import RaftNode
from orch_raft.log.records import Entry, EntryKind


class BrokenPromiseError(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True, slots=True)
class _Committed:
    term: int
    kind: EntryKind
    data: bytes
    #: The lowest term of a member that knew it to be committed.
    known_in_term: int


class History:
    """Everything that ever happened in a run, seen from outside."""

    def __init__(self, first_index: int) -> None:
        self._leaders: dict[int, int] = {}
        #: (index, term) to what stood there and the term before it: log matching by induction.
        self._written: dict[tuple[int, int], tuple[EntryKind, bytes, int]] = {}
        self._first_index = first_index
        self._committed: list[_Committed] = []
        self._acknowledged_floor = first_index
        self.acknowledged: dict[int, tuple[int, bytes]] = {}
        self.elections = 0
        self.reads = 0

    @property
    def last_committed(self) -> int:
        """The last index that some member knows to be committed."""
        return self._first_index + len(self._committed)

    @property
    def floor(self) -> int:
        """What a read that begins now must see at least: all acknowledged writes and all that was read."""
        return self._acknowledged_floor

    def saw_leader(self, node: RaftNode) -> None:
        """Election safety and leader completeness."""
        known = self._leaders.setdefault(node.term, node.raft_id)
        if known != node.raft_id:
            raise BrokenPromiseError(f"{known} and {node.raft_id} both lead in term {node.term}")
        self.elections += 1
        log = node._state.log
        for place, committed in enumerate(self._committed):
            index = self._first_index + 1 + place
            term = log.term(index)
            if (
                committed.known_in_term < node.term
                and term != committed.term
                and not (term is None and index <= log.applied)
            ):
                raise BrokenPromiseError(
                    f"leader {node.raft_id} of term {node.term} lacks entry {index} of term {committed.term}"
                )

    def saw_written(self, entries: Sequence[Entry], previous_term: int | None) -> None:
        """Log matching: what has the same index and term is the same, and so is all before it."""
        for entry in entries:
            if previous_term is not None:
                value = (entry.kind, entry.data, previous_term)
                if self._written.setdefault((entry.index, entry.term), value) != value:
                    raise BrokenPromiseError(f"two entries {entry.index} of term {entry.term}")
            previous_term = entry.term

    def saw_committed(self, node: RaftNode, index: int) -> None:
        """State machine safety, as soon as an entry counts as committed and before it is applied."""
        log = node._state.log
        if index <= self._first_index or log.term(index) is None or index <= log._base_index:
            return
        entry = log.entry(index)
        place = index - self._first_index - 1
        if place < len(self._committed):
            known = self._committed[place]
            if (known.term, known.kind, known.data) != (entry.term, entry.kind, entry.data):
                raise BrokenPromiseError(
                    f"{node.raft_id} committed entry {index} of term {entry.term}, others one of term {known.term}"
                )
            if node.term < known.known_in_term:
                self._committed[place] = _Committed(known.term, known.kind, known.data, node.term)
        elif place == len(self._committed):
            self._committed.append(_Committed(entry.term, entry.kind, entry.data, node.term))
        else:
            raise BrokenPromiseError(f"{node.raft_id} committed entry {index}, and nobody the one before")

    def saw_applied(self, raft_id: int, entry: Entry, expected_index: int) -> None:
        """Entries are applied in order, each once, the same everywhere."""
        if entry.index != expected_index:
            raise BrokenPromiseError(f"{raft_id} applied entry {entry.index} in the place of {expected_index}")
        if entry.index <= self._first_index:
            return
        known = self._committed[entry.index - self._first_index - 1]
        if (known.term, known.kind, known.data) != (entry.term, entry.kind, entry.data):
            raise BrokenPromiseError(f"{raft_id} applied another entry {entry.index} than others")

    def saw_acknowledged(self, entry: Entry) -> None:
        """A client was told that its write is kept."""
        self.acknowledged[entry.index] = (entry.term, entry.data)
        self._acknowledged_floor = max(self._acknowledged_floor, entry.index)

    def saw_read(self, index: int, floor: int) -> None:
        """Linearizability: states are prefixes of one log, so a read must see what had been seen when it began."""
        self.reads += 1
        if index < floor:
            raise BrokenPromiseError(f"a read at {index} began after {floor} was acknowledged or read")
        if index > self.last_committed:
            raise BrokenPromiseError(f"a read at {index}, which nobody knows to be committed")
        self._acknowledged_floor = max(self._acknowledged_floor, index)

    def check_acknowledged_kept(self) -> None:
        """What was acknowledged is in the one committed log."""
        for index, (term, data) in self.acknowledged.items():
            known = self._committed[index - self._first_index - 1]
            if (known.term, known.data) != (term, data):
                raise BrokenPromiseError(f"the acknowledged entry {index} is lost")
