"""Who leads, as this manager knows it, and since when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from orch_manager.clock import Clock
from orch_raft.engine import EngineStatus, Role
from orch_rpc.errors import Unavailable

#: A leader may be known by its id alone; its address then comes with a log entry, of which no change of leaders tells.
_LOOK_AGAIN_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the leader is.

    Attributes:
        here: this manager leads, and its control loops and dispatcher run.
        address: of the manager that leads, when it is another one.
    """

    here: bool
    address: str = ""


class Leader:
    """See the module. Asked by whoever has a call for the leader, told by the process.

    Args:
        status: the consensus engine's.
        clock: what time it is.
    """

    def __init__(self, status: Callable[[], EngineStatus], *, clock: Clock) -> None:
        self._status = status
        self._clock = clock
        self._acts_here = False
        self._lost_at_s: float | None = clock.monotonic_s()
        self._changed = asyncio.Event()

    def changed(self, *, acts_here: bool) -> None:
        """Leadership changed, or this manager began or ceased to act as leader."""
        self._acts_here = acts_here
        if acts_here or self._status().leader_id is not None:
            self._lost_at_s = None
        elif self._lost_at_s is None:
            self._lost_at_s = self._clock.monotonic_s()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    @property
    def acts_here(self) -> bool:
        """True while this manager leads and does what a leader does."""
        return self._acts_here

    def where(self) -> Whereabouts | None:
        """Where the leader is now; None when nobody leads, or its address is not known here."""
        status = self._status()
        if self._acts_here and status.role is Role.LEADER:
            return Whereabouts(here=True)
        if status.leader_id is None or status.leader_id == status.member_id:
            return None
        address = next((member.address for member in status.members if member.raft_id == status.leader_id), "")
        return Whereabouts(here=False, address=address) if address else None

    def missing_for_s(self) -> float:
        """For how many seconds no leader has been known; 0 while one is."""
        return 0.0 if self._lost_at_s is None else max(0.0, self._clock.monotonic_s() - self._lost_at_s)

    def addresses(self) -> list[str]:
        """Addresses of all managers: what agents are told."""
        return [member.address for member in self._status().members if member.address]

    async def wait(self, until_s: float) -> Whereabouts | None:
        """Where the leader is, as soon as that is known; None when it is not by `until_s`, in the event loop's time."""
        loop = asyncio.get_running_loop()
        while True:
            changed, found = self._changed, self.where()
            if found is not None or loop.time() >= until_s:
                return found
            await self._wait_for(changed, until_s)

    async def moved_from(self, address: str) -> None:
        """Returns once somebody else leads than the manager at an address."""
        while True:
            changed, found = self._changed, self.where()
            if found is not None and (found.here or found.address != address):
                return
            await self._wait_for(changed)

    async def changes(self, *, known: bool) -> None:
        """Returns once a leader is known, or is not, contrary to what the caller knew."""
        while (self.where() is not None) is known:
            # Only an address may come without a change of leaders.
            await (self._changed.wait() if known else self._wait_for(self._changed))

    async def _wait_for(self, changed: asyncio.Event, until_s: float | None = None) -> None:
        """Returns when it is worth looking again."""
        look_again_s = asyncio.get_running_loop().time() + _LOOK_AGAIN_S
        try:
            async with asyncio.timeout_at(look_again_s if until_s is None else min(look_again_s, until_s)):
                await changed.wait()
        except TimeoutError:
            pass

    def nobody_leads(self, what: str, last_failure: str = "") -> Unavailable:
        """The error of a call that needs a leader while there is none.

        Args:
            what: the first part of the message.
            last_failure: why the last manager that was taken for the leader did not answer.
        """
        found = self.where()
        if found is not None:
            reason = f" ({last_failure})" if last_failure else ""
            why = f"the leader ({found.address or 'this manager'}) does not answer{reason}; nothing was changed"
            return Unavailable(what, why, "try again soon, and look at the managers with orch cluster info")
        voters = len(self._status().members)
        needed = f"more than half of the {voters} managers must reach each other" if voters > 1 else "it is starting"
        return Unavailable(
            what,
            f"there has been no leader for {self.missing_for_s():.0f} s ({needed}); nothing was changed",
            "try again soon, and look at the managers with `orch --stale cluster info`; tasks run on meanwhile. "
            "If most managers are lost for good: `orch cluster recover` on one that is left",
        )
