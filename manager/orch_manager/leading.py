"""What only the leader runs: control loops, the dispatcher's hub, the audit of transitions. Begins and ends as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from orch_manager import audit
from orch_manager.allocator.loop import Allocator
from orch_manager.ca.keeper import CertificateKeeper
from orch_manager.clock import Clock, IdSource
from orch_manager.dispatcher.hub import Hub
from orch_manager.keepers.nodes import NodeKeeper
from orch_manager.keepers.reaper import TaskReaper
from orch_manager.keepers.removal import Removal
from orch_manager.loops import LoopDriver
from orch_manager.metrics import ManagerMetrics
from orch_manager.orchestrator.loop import Orchestrator
from orch_manager.scheduler.loop import Scheduler
from orch_manager.store.store import Store
from orch_proto.objects_pb2 import Cluster
from orch_raft.errors import EngineStopped, NotLeader
from orch_rpc import logs
from orch_rpc.errors import Internal

_log = logs.get("manager")
#: How often, and how many milliseconds apart, the hub of a manager that starts is looked at before it serves.
_SETTLE_POLLS: Final = 200
#: Further work of a leader, such as keeping the managers: a coroutine that runs until cancelled.
Duty = Callable[[], Coroutine[Any, Any, None]]


class Leading:
    """See the module.

    Args:
        store: read and written.
        hub: runs while this manager leads.
        metrics: told of the loops.
        clock: what time it is.
        ids: for new objects.
        duties: what else runs while this manager leads, by name.
    """

    def __init__(
        self,
        store: Store,
        hub: Hub,
        metrics: ManagerMetrics,
        *,
        clock: Clock,
        ids: IdSource,
        duties: dict[str, Duty] | None = None,
    ) -> None:
        self._store = store
        self._hub = hub
        self._metrics = metrics
        self._clock = clock
        self._ids = ids
        self._duties = duties or {}
        self._life: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._broke = asyncio.Event()

    def start(self) -> None:
        """Begins."""
        self._life = asyncio.create_task(self.run(), name="leader")
        self._life.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Ends, before anything else goes on: a manager that leads no longer decides nothing."""
        life, self._life = self._life, None
        if life is not None:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)

    async def settle(self) -> None:
        """Gives a manager that leads alone a moment to begin, so that its first agent is not turned away."""
        for _ in range(_SETTLE_POLLS):
            if self._hub.leading:
                return
            await asyncio.sleep(0.001)

    async def broken(self) -> None:
        """Waits until something that must not end has ended.

        Raises:
            Internal: always: it is a defect, and ends the process, which orchd starts again.
        """
        await self._broke.wait()
        error = self._error
        raise Internal(
            "the control loops ended",
            f"{type(error).__name__}: {error}",
            "this is a defect of orch; its log has the details",
        )

    async def run(self) -> None:
        """Works until cancelled, or until the store says that this manager leads no longer."""
        cluster = next(iter(self._store.all(Cluster)), Cluster())
        period_ms = cluster.spec.dispatcher.heartbeat_period_ms
        if period_ms:
            self._hub.set_heartbeat_period(period_ms)
        loops = (
            Orchestrator(self._metrics.task_failed),
            Allocator(),
            Scheduler(self._metrics.scheduled),
            NodeKeeper(),
            TaskReaper(),
            Removal(),
            CertificateKeeper(),
        )
        driver = LoopDriver(
            self._store, loops, clock=self._clock, ids=self._ids, on_step=self._metrics.step_duration.observe
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._hub.run(), name="dispatcher")
                group.create_task(driver.run(), name="control-loops")
                group.create_task(audit.run(self._store), name="audit")
                for name, duty in self._duties.items():
                    group.create_task(duty(), name=name)
        except* (NotLeader, EngineStopped):
            _log.info("leads no longer")

    def _ended(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled() and (error := life.exception()) is not None:
            _log.exception("the control loops ended", error)
            self._error = error
            self._broke.set()
