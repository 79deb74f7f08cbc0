"""What a sequential object does: the rules that a history is checked against."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from linearizability.history import NEVER_NS, Action, Operation, Outcome

S = TypeVar("S", bound=Hashable)


_WRITES = frozenset({Action.CREATE, Action.WRITE})


class Model(Protocol[S]):
    """A sequential object with states of type S."""

    def initial(self) -> S:
        """The state before the first operation."""
        ...

    def step(self, state: S, operation: Operation) -> S | None:
        """The state after an operation, or None if it cannot have had its outcome in this state.

        An operation of unknown outcome is judged by what it would do if it took effect.
        """
        ...

    def bounded(self, operations: Sequence[Operation]) -> list[tuple[Operation, int]]:
        """Each operation with the time by which it took effect at the latest: when it was answered, or others saw it.

        NEVER_NS for what need not have taken effect; left out is what makes no difference whether it did.
        """
        ...

    def told(self, state: S) -> str:
        """A state, for people."""
        ...


@dataclass(frozen=True)
class RegisterState:
    """An object with a version, or none.

    Attributes:
        value: what it holds; None while there is no object.
        version: of the object; 0 while nobody was told it.
        above: the version is higher than this one; versions never fall, over removals as well.
    """

    value: str | None = None
    version: int = 0
    above: int = 0


class Register:
    """An object that is created, read, changed and removed; changes may name the version that they are based on.

    Values are written once each. A write whose outcome was unknown makes a version that nobody knows, until it is read.
    """

    def initial(self) -> RegisterState:
        """There is no object."""
        return RegisterState()

    def step(self, state: RegisterState, operation: Operation) -> RegisterState | None:  # noqa: PLR0911 - one a rule
        """See `Model.step`."""
        if operation.outcome is Outcome.MISSING:
            return state if state.value is None else None
        if operation.action is Action.CREATE:
            if operation.outcome is Outcome.EXISTS:
                return state if state.value is not None else None
            return self._written(state, operation) if state.value is None else None
        if state.value is None:
            return None
        if operation.outcome is Outcome.OUT_OF_DATE:
            return state if state.version != operation.base else None
        if operation.action is Action.REMOVE:
            return RegisterState(above=max(state.above, state.version))
        if operation.action is Action.READ:
            if state.value != operation.value:
                return None
            return self._at_version(state, operation.version)
        if operation.action is Action.WRITE:
            based = self._at_version(state, operation.base) if operation.base else state
            return None if based is None else self._written(based, operation)
        raise ValueError(f"a register has no {operation.action}")

    @staticmethod
    def _at_version(state: RegisterState, version: int) -> RegisterState | None:
        if state.version:
            return state if state.version == version else None
        return replace(state, version=version) if version > state.above else None

    @staticmethod
    def _written(state: RegisterState, operation: Operation) -> RegisterState | None:
        above = max(state.above, state.version)
        if operation.version and operation.version <= above:
            return None
        return RegisterState(operation.value, operation.version, above)

    def bounded(self, operations: Sequence[Operation]) -> list[tuple[Operation, int]]:
        """A write whose value was read took effect before that read was answered."""
        seen: dict[str, int] = {}
        for one in operations:
            if one.action is Action.READ and one.outcome is Outcome.DONE:
                seen[one.value] = min(seen.get(one.value, NEVER_NS), one.answered_ns)
        return [
            (
                one,
                seen.get(one.value, NEVER_NS)
                if one.action in _WRITES and one.outcome is Outcome.UNKNOWN
                else one.answered_ns,
            )
            for one in operations
        ]

    def told(self, state: RegisterState) -> str:
        """See `Model.told`."""
        if state.value is None:
            return "no object"
        return f"{state.value} at " + (
            f"version {state.version}" if state.version else f"a version above {state.above} that nobody was told"
        )


class GrowingSet:
    """A set to which unique elements are added; a list shows all of it."""

    def initial(self) -> frozenset[str]:
        """The empty set."""
        return frozenset()

    def step(self, state: frozenset[str], operation: Operation) -> frozenset[str] | None:
        """See `Model.step`."""
        if operation.action is Action.LIST:
            return state if state == operation.elements else None
        if operation.action is not Action.ADD:
            raise ValueError(f"a set has no {operation.action}")
        if operation.outcome is Outcome.EXISTS:
            return state if operation.value in state else None
        return None if operation.value in state else state | {operation.value}

    def bounded(self, operations: Sequence[Operation]) -> list[tuple[Operation, int]]:
        """An element that was listed had been added before that was answered; what nobody met may be left out."""
        seen: dict[str, int] = {}
        for one in operations:
            met = one.elements if one.action is Action.LIST else {one.value} if one.outcome is Outcome.EXISTS else ()
            for element in met:
                seen[element] = min(seen.get(element, NEVER_NS), one.answered_ns)
        return [
            (one, one.answered_ns if one.observes_only else min(one.answered_ns, seen.get(one.value, NEVER_NS)))
            for one in operations
            if one.outcome is not Outcome.UNKNOWN or one.value in seen
        ]

    def told(self, state: frozenset[str]) -> str:
        """See `Model.told`."""
        return f"{len(state)} elements: {', '.join(sorted(state))}"
