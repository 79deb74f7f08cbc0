"""Histories as a linearizable object makes them, and every way to order a small one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from linearizability.history import NEVER_NS, Action, Operation, Outcome
from linearizability.models import Model, S


class SimpleRegister:
    """A register in a few lines, to make histories with; versions rise with time."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.value: str | None = None
        self.version = 0
        self.known = 0

    def do(self, action: Action, word: str, next_version: int) -> dict[str, Any]:  # noqa: PLR0911 - one an answer
        """Carries out an action: what a client knows of it."""
        if action is Action.CREATE:
            if self.value is not None:
                return {"value": word, "outcome": Outcome.EXISTS}
            self.value, self.version = word, next_version
            return {"value": word, "version": next_version}
        if self.value is None:
            return {"outcome": Outcome.MISSING}
        if action is Action.READ:
            self.known = self.version
            return {"value": self.value, "version": self.version}
        if action is Action.REMOVE:
            self.value = None
            return {}
        base = self._chance.choice([0, self.known, self.version])
        if base not in {0, self.version}:
            return {"value": word, "base": base, "outcome": Outcome.OUT_OF_DATE}
        self.value, self.version = word, next_version
        return {"value": word, "base": base, "version": next_version}


_ACTIONS = [Action.READ] * 4 + [Action.WRITE] * 4 + [Action.CREATE] * 2 + [Action.REMOVE]


def moments(chance: random.Random, clients: int, count: int) -> list[tuple[int, int, int, int, str]]:
    """When operations take effect, their numbers, when they were asked and answered, and whose they are, by effect."""
    free_ns = dict.fromkeys(range(clients), 0)
    made = []
    for number in range(count):
        client = chance.randrange(clients)
        asked = free_ns[client] + chance.randint(1, 20)
        effect = asked + chance.randint(0, 40)
        free_ns[client] = effect + chance.randint(0, 40)
        made.append((effect, number, asked, free_ns[client], f"c{client}"))
    return sorted(made)


def register_history(chance: random.Random, clients: int, count: int, unknown: float = 0.1) -> list[Operation]:
    """A history of one object, in no order."""
    register = SimpleRegister(chance)
    made = []
    for effect, number, asked, answered, client in moments(chance, clients, count):
        action = chance.choice(_ACTIONS)
        known = register.do(action, f"v{number}", effect * 1000 + number)
        one = Operation(client, action, "k", asked, answered, **known)
        if not one.observes_only and chance.random() < unknown:
            one = replace(one, outcome=Outcome.UNKNOWN, answered_ns=NEVER_NS, version=0)
        made.append(one)
    for number in range(int(count * unknown)):  # these never take effect
        base = register.known or 1
        asked = chance.randint(0, 200)
        made.append(Operation("cx", Action.WRITE, "k", asked, NEVER_NS, Outcome.UNKNOWN, value=f"n{number}", base=base))
    chance.shuffle(made)
    return made


def set_history(chance: random.Random, clients: int, count: int, unknown: float = 0.1) -> list[Operation]:
    """A history of a set that grows."""
    elements: frozenset[str] = frozenset()
    made = []
    for _, number, asked, answered, name in moments(chance, clients, count):
        if chance.random() < 0.4:
            made.append(Operation(name, Action.LIST, "", asked, answered, elements=elements))
            continue
        fate = chance.random()
        if fate >= unknown / 2:
            elements |= {f"e{number}"}
        outcome = Outcome.UNKNOWN if fate < unknown else Outcome.DONE
        answered_ns = NEVER_NS if fate < unknown else answered
        made.append(Operation(name, Action.ADD, "", asked, answered_ns, outcome, value=f"e{number}"))
    chance.shuffle(made)
    return made


def any_order_obeys(model: Model[S], operations: Sequence[Operation]) -> bool:
    """Tries every order of every choice of unknown outcomes: slow, and plainly right."""
    known = [one for one in operations if one.outcome is not Outcome.UNKNOWN]
    unknown = [one for one in operations if one.outcome is Outcome.UNKNOWN]
    for count in range(len(unknown) + 1):
        for taken in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *taken]):
                if _keeps_time(order) and _obeys(model, order):
                    return True
    return False


def _keeps_time(order: Sequence[Operation]) -> bool:
    latest_ns = -1
    for one in order:
        if one.answered_ns < latest_ns:
            return False
        latest_ns = max(latest_ns, one.invoked_ns)
    return True


def _obeys(model: Model[S], order: Sequence[Operation]) -> bool:
    state: S | None = model.initial()
    for one in order:
        state = model.step(state, one) if state is not None else None
    return state is not None
