"""A consensus engine in memory: its log outlives the manager that uses it, and it can lie about outcomes on purpose."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

from orch_raft.engine import Applied, EngineStatus, LeadershipChange, Member, MembershipChange, Role, StateMachine
from orch_raft.errors import EngineStopped, MembershipError, OutcomeUnknown


class SharedLog:
    """What survives a restart of the manager."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.term = 1


class MemoryEngine:
    """Implements `Engine` over a `SharedLog`.

    Args:
        log: the entries.
        machine: applied to.
        chance: how long a commit takes, and whether its outcome gets lost.
        lost_outcomes: share of the writes that raise OutcomeUnknown, whether applied or not.
    """

    def __init__(
        self, log: SharedLog, machine: StateMachine, chance: random.Random, *, lost_outcomes: float = 0.0
    ) -> None:
        self._log = log
        self._machine = machine
        self._chance = chance
        self.lost_outcomes = lost_outcomes
        self._running = False
        self._stopped = asyncio.Event()

    async def start(self) -> None:
        """Replays the log."""
        self._log.term += 1
        for number, data in enumerate(self._log.entries):
            if data:
                self._machine.apply(number + 2, self._log.term, data)
        self._running = True

    async def stop(self) -> None:
        """Refuses writes from now on."""
        self._running = False
        self._stopped.set()

    async def wait_stopped(self) -> None:
        """Returns when stopped."""
        await self._stopped.wait()

    async def propose(self, data: bytes, *, timeout_s: float) -> Applied:
        """Applies an entry after a short while."""
        del timeout_s
        await asyncio.sleep(self._chance.uniform(0.0005, 0.004))
        if not self._running:
            raise EngineStopped("the simulation stopped it")
        lost = bool(data) and self._chance.random() < self.lost_outcomes
        if lost and self._chance.random() < 0.5:
            raise OutcomeUnknown("the simulation says so, and it was not written")
        self._log.entries.append(data)
        index = len(self._log.entries) + 1
        result = self._machine.apply(index, self._log.term, data) if data else None
        if lost:
            raise OutcomeUnknown("the simulation says so, and it was written")
        return Applied(index, self._log.term, result)

    async def read_barrier(self) -> int:
        """Everything is applied already."""
        return len(self._log.entries) + 1

    def status(self) -> EngineStatus:
        """A leader of one."""
        index = len(self._log.entries) + 1
        return EngineStatus(1, Role.LEADER, self._log.term, 1, index, index, index, 1, 0, (Member(1, "node"),))

    async def leadership(self) -> AsyncIterator[LeadershipChange]:
        """Leads until stopped."""
        yield LeadershipChange(self._log.term, is_leader=True, leader_id=1)
        await self._stopped.wait()

    async def change_membership(self, change: MembershipChange, *, timeout_s: float) -> Applied:
        """Refused, as by the engine of one member."""
        del timeout_s
        raise MembershipError(f"cannot {change.action.value} a member: this engine serves a single manager")

    async def transfer_leadership(self, to_raft_id: int, *, timeout_s: float) -> None:
        """Refused, as by the engine of one member."""
        del timeout_s
        raise MembershipError(f"cannot hand over to {to_raft_id:x}: this engine serves a single manager")
