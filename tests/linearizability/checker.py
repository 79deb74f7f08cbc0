"""Whether a history is linearizable: whether one order of its operations, in keeping with time, obeys the model.

The search is that of Wing and Gong (1993) with the memory of Lowe (2017): a set of operations done that led to a state
once is not tried again. Deciding it is NP-complete, so the search has a bound, and says when it met it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from linearizability.history import NEVER_NS, Operation
from linearizability.models import Model

S = TypeVar("S", bound=Hashable)

#: Configurations (operations done, state) that one search may look at; it keeps them, about 300 bytes each.
MAX_CONFIGURATIONS = 1_000_000


class Verdict(Enum):
    """What a search found."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    #: The bound was met first.
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Finding(Generic[S]):
    """The end of a search.

    Attributes:
        verdict: the answer.
        order: operations in an order that obeys the model: all of them, or as many as were ever reached.
        state: after ``order``.
        configurations: how many were looked at.
    """

    verdict: Verdict
    order: list[Operation]
    state: S
    configurations: int


@dataclass
class _Frame(Generic[S]):
    """A place in the search: what was done to get here, and what may be tried next."""

    state: S
    candidates: Iterator[int]
    chosen: int = -1


@dataclass
class Search(Generic[S]):
    """One search through a history.

    Args:
        model: the rules.
        operations: the history, in any order.
        max_configurations: the bound.
    """

    model: Model[S]
    operations: Sequence[Operation]
    max_configurations: int = MAX_CONFIGURATIONS
    #: Operations that must take effect, then those that may, each in the order in which they were asked.
    _sorted: list[Operation] = field(init=False)
    _latest_ns: list[int] = field(init=False)
    _required: int = field(init=False)
    _next: list[int] = field(init=False)
    _previous: list[int] = field(init=False)

    def __post_init__(self) -> None:
        ranked = sorted(
            self.model.bounded(self.operations), key=lambda each: (each[1] == NEVER_NS, each[0].invoked_ns, each[1])
        )
        self._sorted = [one for one, _ in ranked]
        self._latest_ns = [latest for _, latest in ranked]
        self._required = sum(1 for latest in self._latest_ns if latest != NEVER_NS)
        # A list linked both ways of the required operations not done yet; its ends are joined at the place beyond.
        self._next = [(number + 1) % (self._required + 1) for number in range(self._required + 1)]
        self._previous = [(number - 1) % (self._required + 1) for number in range(self._required + 1)]

    def run(self, initial: S | None = None) -> Finding[S]:
        """Looks for one order; deterministic."""
        for finding in self._search(self.model.initial() if initial is None else initial):
            return finding
        raise AssertionError("a search ends with a finding")

    def final_states(self, initial: S | None = None) -> set[S] | None:
        """Every state that a history without unknown outcomes may end in; None when the bound was met."""
        if self._required != len(self._sorted):
            raise ValueError("an operation of unknown outcome may take effect after the history's end")
        states = set()
        for finding in self._search(self.model.initial() if initial is None else initial):
            if finding.verdict is Verdict.UNDECIDED:
                return None
            if finding.verdict is Verdict.LINEARIZABLE:
                states.add(finding.state)
        return states

    def _search(self, initial: S) -> Iterator[Finding[S]]:
        """Yields each way to the end, and last how the search ended, unless a way was found."""
        end = self._required
        done, longest = 0, 0
        seen: set[tuple[int, int, S]] = set()
        frames = [_Frame(initial, self._candidates(0))]
        best, best_state = self._order(frames), initial
        found = False
        while frames:
            frame = frames[-1]
            if self._next[end] == end:
                found = True
                yield Finding(Verdict.LINEARIZABLE, self._order(frames), frame.state, len(seen))
                done = self._go_back(frames, done)
                continue
            chosen = next(frame.candidates, None)
            if chosen is None:
                if len(frames) > longest:
                    longest, best, best_state = len(frames), self._order(frames), frame.state
                done = self._go_back(frames, done)
                continue
            state = self.model.step(frame.state, self._sorted[chosen])
            if state is None:
                continue
            now_done = done | 1 << chosen
            # All before the first that is not done are: leaving them out keeps the numbers small.
            first = self._next[end] if self._next[end] != chosen else self._next[chosen]
            configuration = (first, now_done >> first, state)
            if configuration in seen:
                continue
            if len(seen) >= self.max_configurations:
                yield Finding(Verdict.UNDECIDED, best, best_state, len(seen))
                return
            seen.add(configuration)
            frame.chosen, done = chosen, now_done
            if chosen < end:
                self._take_out(chosen)
            frames.append(_Frame(state, self._candidates(done)))
        if not found:
            yield Finding(Verdict.NOT_LINEARIZABLE, best, best_state, len(seen))

    def _candidates(self, done: int) -> Iterator[int]:
        """What may come next: whatever was asked before the first answer among all that is left.

        Computed at once, as the list changes below this frame.
        """
        first_answer_ns = NEVER_NS
        found = []
        number = self._next[self._required]
        while number != self._required and self._sorted[number].invoked_ns <= first_answer_ns:
            found.append(number)
            first_answer_ns = min(first_answer_ns, self._latest_ns[number])
            number = self._next[number]
        found = [number for number in found if self._sorted[number].invoked_ns <= first_answer_ns]
        # What need not take effect comes last: mostly it did not.
        for number in range(self._required, len(self._sorted)):
            if self._sorted[number].invoked_ns > first_answer_ns:
                break
            if not done >> number & 1:
                found.append(number)
        return iter(found)

    def _go_back(self, frames: list[_Frame[S]], done: int) -> int:
        """Leaves a frame and undoes what led to it; what is done then."""
        frames.pop()
        if not frames:
            return 0
        chosen = frames[-1].chosen
        frames[-1].chosen = -1
        if chosen < self._required:
            self._put_back(chosen)
        return done & ~(1 << chosen)

    def _order(self, frames: list[_Frame[S]]) -> list[Operation]:
        return [self._sorted[frame.chosen] for frame in frames if frame.chosen >= 0]

    def _take_out(self, number: int) -> None:
        before, after = self._previous[number], self._next[number]
        self._next[before], self._previous[after] = after, before

    def _put_back(self, number: int) -> None:
        self._next[self._previous[number]] = self._previous[self._next[number]] = number


def check(model: Model[S], operations: Sequence[Operation], *, initial: S | None = None) -> Finding[S]:
    """Looks for an order of the operations on one object; see `Search`."""
    return Search(model, operations).run(initial)
