"""Checks a whole history and says, for people, the smallest part of it that no order explains."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

from linearizability.checker import Finding, Search, Verdict
from linearizability.history import NEVER_NS, Operation, by_key, cut
from linearizability.models import Model

S = TypeVar("S", bound=Hashable)

#: Bound of each search while a counter-example is made smaller: this is for reading, and may stay a little too long.
_SHRINK_CONFIGURATIONS = 20_000
#: Searches for one counter-example.
_SHRINK_SEARCHES = 2_000
_SHOWN_OPERATIONS = 24


class NotLinearizable(AssertionError):  # noqa: N818 - says it all
    """Raised when no order of the operations on an object obeys its model, or when none was found within the bound."""


def assert_linearizable(model: Model[S], operations: Sequence[Operation]) -> int:
    """Checks each key of a history.

    Args:
        model: the rules of one key.
        operations: the history.

    Returns:
        How many configurations were looked at.

    Raises:
        NotLinearizable: with a small counter-example in words.
    """
    total = 0
    for key, part in by_key(operations).items():
        finding = Search(model, part).run()
        total += finding.configurations
        if finding.verdict is Verdict.UNDECIDED:
            raise NotLinearizable(
                f"key {key!r}: undecided after {finding.configurations} configurations of {len(part)} operations; "
                f"shorten the run, or use more keys"
            )
        if finding.verdict is Verdict.NOT_LINEARIZABLE:
            raise NotLinearizable(f"key {key!r}: {counter_example(model, part)}")
    return total


def counter_example(model: Model[S], operations: Sequence[Operation]) -> str:
    """The words for one key's history that is not linearizable."""
    failing = _shortest_prefix(model, operations)
    before, failing = _from_last_rest(model, failing)
    failing = _without_needless(model, failing, before)
    start = sorted(failing, key=lambda one: one.invoked_ns)
    shown = start[-_SHOWN_OPERATIONS:]
    start_ns = shown[0].invoked_ns if shown else 0
    deepest = max((Search(model, failing).run(state) for state in before), key=lambda found: len(found.order))
    lines = [
        f"no order of these {len(failing)} operations (of {len(operations)}) obeys the rules.",
        "  at first: " + ", or ".join(sorted(model.told(state) for state in before)),
        *([f"  ... {len(start) - len(shown)} earlier operations ..."] if len(start) > len(shown) else []),
        *(f"  {one.told(start_ns)}" for one in shown),
        *_how_far(model, failing, deepest, start_ns),
    ]
    return "\n".join(lines)


def _how_far(model: Model[S], failing: Sequence[Operation], deepest: Finding[S], start_ns: int) -> list[str]:
    """The longest order that the rules allow, and what could not follow."""
    done = {id(one) for one in deepest.order}
    left = [one for one in failing if id(one) not in done and one.answered_ns != NEVER_NS]
    return [
        f"  the longest order that obeys them, {len(deepest.order)} operations, ends with: {model.told(deepest.state)}",
        "  where none of these may follow:",
        *(f"  {one.told(start_ns)}" for one in sorted(left, key=lambda one: one.answered_ns)[:5]),
    ]


def _fails(model: Model[S], operations: Sequence[Operation], initial: S) -> bool:
    search = Search(model, operations, max_configurations=_SHRINK_CONFIGURATIONS)
    return search.run(initial).verdict is Verdict.NOT_LINEARIZABLE


def _shortest_prefix(model: Model[S], operations: Sequence[Operation]) -> list[Operation]:
    """The history up to the answer that made it impossible; halving finds it, as each prefix of a good one is good."""
    answers = sorted({one.answered_ns for one in operations if one.answered_ns != NEVER_NS})
    low, high = 0, len(answers) - 1
    while low < high:
        middle = (low + high) // 2
        if _fails(model, cut(operations, answers[middle]), model.initial()):
            high = middle
        else:
            low = middle + 1
    prefix = cut(operations, answers[high])
    return prefix if _fails(model, prefix, model.initial()) else list(operations)


def _from_last_rest(model: Model[S], operations: Sequence[Operation]) -> tuple[set[S], list[Operation]]:
    """The history from the last moment at which nothing was under way, and the states that were possible then."""
    bounded = model.bounded(operations)
    events = sorted([(one.invoked_ns, 1) for one, _ in bounded] + [(latest_ns, -1) for _, latest_ns in bounded])
    # An answer and a question of the same moment overlap.
    events.sort(key=lambda event: (event[0], -event[1]))
    under_way, rests = 0, []
    for at_ns, change in events:
        under_way += change
        if under_way == 0 and at_ns != NEVER_NS:
            rests.append(at_ns)
    for rest_ns in reversed(rests):
        before = [one for one, latest_ns in bounded if latest_ns <= rest_ns]
        after = [one for one in operations if one.invoked_ns > rest_ns]
        if not after:
            continue
        states = Search(model, before, max_configurations=_SHRINK_CONFIGURATIONS).final_states()
        if states and all(_fails(model, after, state) for state in states):
            return states, after
    return {model.initial()}, list(operations)


def _without_needless(model: Model[S], operations: Sequence[Operation], before: set[S]) -> list[Operation]:
    """Leaves out reads and refusals, one at a time, while no order explains the rest.

    Writes stay: without them what others read would be a riddle of its own.
    """
    kept = sorted(operations, key=lambda one: one.invoked_ns)
    searches = 0
    for one in [each for each in kept if each.observes_only]:
        searches += len(before)
        if searches > _SHRINK_SEARCHES:
            break
        fewer = [each for each in kept if each is not one]
        if all(_fails(model, fewer, state) for state in before):
            kept = fewer
    return kept
