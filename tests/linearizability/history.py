"""What clients saw: operations with the times at which they were asked and answered, on one clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

#: The time of an answer that never came: the operation may take effect at any moment after it was asked, or never.
NEVER_NS = 1 << 62


class Action(StrEnum):
    """What was asked for; the models say what it means."""

    CREATE = "create"
    READ = "read"
    WRITE = "write"
    REMOVE = "remove"
    ADD = "add"
    LIST = "list"


class Outcome(StrEnum):
    """What a client was told."""

    DONE = "done"
    #: Nothing was changed, for a reason that says something of the state.
    EXISTS = "exists"
    MISSING = "missing"
    OUT_OF_DATE = "out of date"
    #: It may take effect at any later time, or never.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Operation:
    """One call of one client.

    Attributes:
        client: who asked, for people.
        action: what was asked for.
        key: of which object; what has different keys is independent. Empty for sets.
        invoked_ns: when it was asked.
        answered_ns: when the answer came; NEVER_NS for an unknown outcome.
        outcome: the answer.
        value: written or read; for sets the element added.
        base: the version that a write was based on; 0: whatever it is.
        version: the version that was made or read; 0: none was told.
        elements: what a list held.
    """

    client: str
    action: Action
    key: str
    invoked_ns: int
    answered_ns: int
    outcome: Outcome = Outcome.DONE
    value: str = ""
    base: int = 0
    version: int = 0
    elements: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.answered_ns < self.invoked_ns:
            raise ValueError(f"{self.client} had an answer before it asked: {self.invoked_ns} > {self.answered_ns}")
        if (self.outcome is Outcome.UNKNOWN) != (self.answered_ns == NEVER_NS):
            raise ValueError(f"{self.client}: exactly an unknown outcome has no time of an answer")

    @property
    def observes_only(self) -> bool:
        """Whether it leaves the state as it is."""
        refused = self.outcome in {Outcome.EXISTS, Outcome.MISSING, Outcome.OUT_OF_DATE}
        return refused or self.action in {Action.READ, Action.LIST}

    def told(self, start_ns: int) -> str:
        """One line for people, with times in milliseconds since ``start_ns``."""
        begun_ms = (self.invoked_ns - start_ns) / 1e6
        ended = "   never" if self.answered_ns == NEVER_NS else f"{(self.answered_ns - start_ns) / 1e6:8.3f}"
        return f"{begun_ms:8.3f} to {ended} ms  {self.client:8} {self._asked():34} -> {self._answered()}"

    def _asked(self) -> str:
        words = [self.action.value]
        if self.key:
            words.append(self.key)
        if self.action not in {Action.READ, Action.LIST, Action.REMOVE}:
            words.append(self.value)
        if self.base:
            words.append(f"if version {self.base}")
        return " ".join(words)

    def _answered(self) -> str:
        if self.outcome is not Outcome.DONE:
            return str(self.outcome)
        version = f" at version {self.version}" if self.version else ""
        if self.action is Action.READ:
            return f"{self.value}{version}"
        if self.action is Action.LIST:
            return "{" + ", ".join(sorted(self.elements)) + "}"
        return f"done{version}"


class History:
    """Records operations as clients end them.

    Args:
        now_ns: the clock, one for all clients.
        limit: operations that are kept; the recorder refuses more, so that memory is bounded.
    """

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns, limit: int = 200_000) -> None:
        self.now_ns = now_ns
        self._limit = limit
        self.operations: list[Operation] = []
        #: What was certainly not done, and says nothing of the state: how often, by reason.
        self.refused: dict[str, int] = {}

    def add(self, operation: Operation) -> None:
        """Keeps an operation.

        Raises:
            OverflowError: the history is full.
        """
        if len(self.operations) >= self._limit:
            raise OverflowError(f"a history holds at most {self._limit} operations: make the run shorter")
        if operation.outcome is Outcome.UNKNOWN and operation.observes_only:
            return  # a read that was not answered says nothing
        self.operations.append(operation)

    def refuse(self, reason: str) -> None:
        """Counts a call that was not done."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def save(self, file: Path) -> None:
        """Writes a line of JSON for each operation."""
        with file.open("w", encoding="utf-8") as out:
            for one in self.operations:
                out.write(json.dumps({**asdict(one), "elements": sorted(one.elements)}) + "\n")

    def summary(self) -> str:
        """How many operations had which outcome."""
        counts: dict[str, int] = {}
        for one in self.operations:
            name = f"{one.action} {one.outcome}"
            counts[name] = counts.get(name, 0) + 1
        parts = [f"{name}: {count}" for name, count in sorted(counts.items())]
        parts += [f"not done, {reason}: {count}" for reason, count in sorted(self.refused.items())]
        return ", ".join(parts)


def load(file: Path) -> list[Operation]:
    """Reads what `History.save` wrote."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        fields |= {
            "action": Action(fields["action"]),
            "outcome": Outcome(fields["outcome"]),
            "elements": frozenset(fields["elements"]),
        }
        found.append(Operation(**fields))
    return found


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The operations on each key: a history is linearizable if each of these is (Herlihy and Wing, 1990, locality)."""
    parts: dict[str, list[Operation]] = {}
    for one in operations:
        parts.setdefault(one.key, []).append(one)
    return parts


def cut(operations: Iterable[Operation], at_ns: int) -> list[Operation]:
    """The history as it stood at one moment: what was not answered by then had an unknown outcome."""
    kept = []
    for one in operations:
        if one.answered_ns <= at_ns:
            kept.append(one)
        elif one.invoked_ns <= at_ns and not one.observes_only:
            fields = {**one.__dict__, "answered_ns": NEVER_NS, "outcome": Outcome.UNKNOWN, "version": 0}
            kept.append(Operation(**fields))
    return kept


@contextmanager
def saved_on_failure(history: History, file: Path) -> Iterator[None]:
    """Keeps the history of a test that failed, and says where."""
    try:
        yield
    except BaseException as error:
        history.save(file)
        error.add_note(f"the recorded history: {file}")
        raise
