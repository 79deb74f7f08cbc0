"""The control loops, run on the leader only, and what drives them.

Every loop has one shape (`ControlLoop`): it is told the state once (`reset`), then every change (`observe`), and is
asked to `step`. The driver steps all loops one after the other, in the order in which data flows (orchestrate,
allocate, schedule, tidy), inside one transaction: a failed task, its replacement, the replacement's address and its
node cost one sync of the log, not four.

Nothing a loop keeps is truth: `reset` rebuilds it from the store, and does so whenever a write fails or is repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from orch_manager.clock import Clock, IdSource
from orch_manager.store.errors import StoreBusy, TransactionError, TransactionTooLarge
from orch_manager.store.schema import Kind, StoreObject
from orch_manager.store.store import Store
from orch_manager.store.tables import Reader
from orch_manager.store.transaction import Transaction
from orch_manager.store.watch import Resync, Watch
from orch_manager.workspace import Workspace
from orch_proto import defaults
from orch_raft.errors import OutcomeUnknown, ProposalQueueFull
from orch_rpc import logs

_log = logs.get("loops")
#: Longest sleep when nothing is due: a clock that jumped is noticed by then.
_LONGEST_WAIT_S: Final = 30.0
_RETRY_S: Final = 0.1
#: Shortest time between two steps. In a deploy each batch of statuses changes the same services, and a step looks at
#: all tasks of each; the first change of a quiet time is dealt with at once.
_STEP_INTERVAL_S: Final = 0.02


class ControlLoop(Protocol):
    """One concern of the manager: watches, decides, writes."""

    def reset(self, reader: Reader) -> None:
        """Forget everything; learn the state from `reader`."""
        ...

    def observe(self, kind: Kind, object_id: str, old: StoreObject | None, new: StoreObject | None) -> None:
        """An object changed: by anybody, this loop's own writes included."""
        ...

    def step(self, workspace: Workspace) -> int | None:
        """Do what is to be done now.

        Returns:
            Unix milliseconds at which to step again though nothing has changed; None: not before a change.
        """
        ...

    def has_work(self) -> bool:
        """True when something was observed that `step` has not dealt with."""
        ...


class LoopDriver:
    """Steps the loops while this manager leads.

    Args:
        store: read and written.
        loops: in the order in which they step.
        clock: what time it is.
        ids: for new objects.
        on_step: told the seconds each step took, for metrics.
    """

    def __init__(
        self,
        store: Store,
        loops: Sequence[ControlLoop],
        *,
        clock: Clock,
        ids: IdSource,
        on_step: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._store = store
        self._loops = loops
        self._clock = clock
        self._ids = ids
        self._on_step = on_step
        self._room = defaults.TRANSACTION_CHANGES
        self._deadline_ms: int | None = None
        self._own: set[tuple[Kind, str]] = set()
        self._began = False

    async def run(self) -> None:
        """Step until cancelled, or until the store refuses writes for good.

        Raises:
            NotLeader, EngineStopped, FatalError: leadership or the engine ended.
        """
        signal = self._store.signal()
        loop = asyncio.get_running_loop()
        try:
            with self._store.watch() as watch:
                self._reset(self._store)
                while True:
                    began_s = loop.time()
                    stepped = await self._once(watch)
                    more = any(each.has_work() for each in self._loops)
                    await signal.wait(self._wait_s())
                    if stepped and not more:
                        await asyncio.sleep(max(0.0, began_s + _STEP_INTERVAL_S - loop.time()))
        finally:
            signal.close()

    def _wait_s(self) -> float:
        if any(loop.has_work() for loop in self._loops):
            return 0.0
        if self._deadline_ms is None:
            return _LONGEST_WAIT_S
        return min(_LONGEST_WAIT_S, max(0.0, (self._deadline_ms - self._clock.unix_ms()) / 1000))

    def _reset(self, reader: Reader) -> None:
        self._own.clear()
        for loop in self._loops:
            loop.reset(reader)

    def _tell(self, kind: Kind, object_id: str, old: StoreObject | None, new: StoreObject | None) -> None:
        for loop in self._loops:
            loop.observe(kind, object_id, old, new)

    def _catch_up(self, watch: Watch) -> None:
        """Tells the loops what was committed; the echo of their own last step they know already."""
        for event in watch.drain():
            if isinstance(event, Resync):
                self._reset(self._store)
                return
            key = (event.kind, event.object_id)
            if key in self._own:
                self._own.discard(key)
            else:
                self._tell(event.kind, event.object_id, event.old, event.new)

    async def _once(self, watch: Watch) -> bool:
        """One step, when one is due; returns whether there was."""
        self._catch_up(watch)
        due = self._deadline_ms is not None and self._deadline_ms <= self._clock.unix_ms()
        if not due and not any(loop.has_work() for loop in self._loops):
            return False
        self._began = False
        try:
            await self._store.update(lambda transaction: self._step(transaction, watch), reason="control loops")
        except TransactionTooLarge:
            self._room = max(1, self._room // 2)
            self._reset(self._store)
        except (TransactionError, StoreBusy, OutcomeUnknown, ProposalQueueFull) as error:
            _log.warning("step refused, starting over", error=error)
            watch.drain()
            self._reset(self._store)
            self._deadline_ms = self._clock.unix_ms() + int(_RETRY_S * 1000)
        else:
            self._room = min(defaults.TRANSACTION_CHANGES, self._room * 2)
        return True

    def _step(self, transaction: Transaction, watch: Watch) -> None:
        """Steps every loop in one transaction. May be run again by the store, with the first run's writes undone."""
        started = time.perf_counter()
        self._catch_up(watch)
        if self._began:
            self._reset(transaction)
        self._began = True
        workspace = Workspace(transaction, term=self._store.term, ids=self._ids, room=self._room, on_write=self._tell)
        deadlines = [loop.step(workspace) for loop in self._loops]
        self._deadline_ms = min((deadline for deadline in deadlines if deadline is not None), default=None)
        workspace.flush()
        self._own = set(workspace.touched)
        self._on_step(time.perf_counter() - started)
