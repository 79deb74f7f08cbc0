"""What is done to a cluster while clients write: each fault is made, held for a while, and ended."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from cluster.playground_driver import Playground, wait_for
from orch_proto import control_pb2, control_pb2_grpc, types_pb2

#: Longer than two elections at default settings, so that a fault is met by whoever follows.
HOLD_S = 2.2
_ALL_KINDS = (types_pb2.OBJECT_KIND_CONFIG, types_pb2.OBJECT_KIND_SECRET, types_pb2.OBJECT_KIND_SERVICE)


@dataclass
class Nemesis:
    """Breaks the managers of a playground, the same way for the same seed.

    Args:
        playground: with at least three managers.
        chance: which node is hit.
        hold_s: how long a fault lasts.
    """

    playground: Playground
    chance: random.Random
    hold_s: float = HOLD_S

    def _managers(self) -> list[int]:
        return list(range(1, self.playground.managers + 1))

    def _name(self, node: int) -> str:
        return self.playground.place(node).hostname

    def _hold(self) -> None:
        time.sleep(self.hold_s)  # the length of the fault

    def kill_leader(self) -> None:
        """Kill -9 of the leading manager; its daemon starts another."""
        self.playground.kill("manager", self.playground.leader())
        self._hold()

    def kill_any(self) -> None:
        """Kill -9 of some manager."""
        self.playground.kill("manager", self.chance.choice(self._managers()))
        self._hold()

    def kill_all(self) -> None:
        """Kill -9 of all managers at once."""
        victims = [self.playground.process("manager", node) for node in self._managers()]
        for victim in victims:
            victim.kill()
        self._hold()

    def power_off(self) -> None:
        """A node loses its power, and starts again."""
        node = self.chance.choice(self._managers())
        self.playground.power_off(node)
        self._hold()
        self.playground.start(node)

    def pause_leader(self) -> None:
        """The leader stops where it is, and afterwards goes on as if nothing had been."""
        leader = self.playground.leader()
        self.playground.freeze(leader, "manager")
        try:
            self._hold()
        finally:
            self.playground.thaw(leader, "manager")

    def part_leader(self) -> None:
        """The leader reaches nobody, and nobody reaches it; clients of its node still reach it."""
        self._part(self._name(self.playground.leader()))

    def part_any(self) -> None:
        """Some manager reaches nobody."""
        self._part(self._name(self.chance.choice(self._managers())))

    def deafen_leader(self) -> None:
        """The leader is heard by all and hears nobody."""
        leader = self.playground.leader()
        others = ",".join(self._name(node) for node in self._managers() if node != leader)
        self._part(f"{others}>{self._name(leader)}")

    def silence_leader(self) -> None:
        """The leader hears all and is heard by nobody."""
        leader = self.playground.leader()
        others = ",".join(self._name(node) for node in self._managers() if node != leader)
        self._part(f"{self._name(leader)}>{others}")

    def part_in_a_chain(self) -> None:
        """Two managers do not reach each other; both reach the third."""
        one, other = self.chance.sample(self._managers(), 2)
        self._part(f"{self._name(one)}|{self._name(other)}")

    def _part(self, expression: str) -> None:
        self.playground.partition(expression)
        try:
            self._hold()
        finally:
            self.playground.heal()

    def all_faults(self) -> list[Callable[[], None]]:
        """Every fault once."""
        return [
            self.kill_leader,
            self.part_leader,
            self.pause_leader,
            self.deafen_leader,
            self.kill_all,
            self.silence_leader,
            self.part_any,
            self.power_off,
            self.kill_any,
            self.part_in_a_chain,
        ]


def converged(playground: Playground, limit_s: float = 40.0) -> None:
    """Waits until every manager answers, and all of them hold the same state."""
    playground.calm(limit_s)

    def same() -> bool:
        managers = range(1, playground.managers + 1)
        if any(ask(playground, node, types_pb2.OBJECT_KIND_CONFIG) is None for node in managers):
            return False
        states = [held(playground, node) for node in managers]
        return None not in states and all(state == states[0] for state in states)

    wait_for(same, "the same state on every manager", limit_s)


def held(playground: Playground, node: int) -> list[tuple[str, int]] | None:
    """What a manager itself holds, stale or not: ids and versions; None while it does not answer."""
    found: list[tuple[str, int]] = []
    answers = [ask(playground, node, kind, stale=True) for kind in _ALL_KINDS]
    for answer in answers:
        if answer is None:
            return None
        for one in answer.objects:
            item = getattr(one, one.WhichOneof("object") or "")
            found.append((item.id, item.meta.version_index))
    return sorted(found)


def ask(
    playground: Playground, node: int, kind: types_pb2.ObjectKind.ValueType, *, stale: bool = False
) -> control_pb2.ListResponse | None:
    """What the manager of one node answers; None when it does not."""
    socket = playground.place(node).manager_socket
    if not socket.exists():
        return None
    metadata = (("orch-stale", "1"),) if stale else ()
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        try:
            request = control_pb2.ListRequest(kind=kind, stale=stale)
            return control_pb2_grpc.ControlStub(channel).List(request, timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise
            return None
