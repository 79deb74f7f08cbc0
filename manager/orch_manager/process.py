"""The manager process: the parts joined, and their life from start to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orch_manager import audit
from orch_manager.allocator.loop import Allocator
from orch_manager.clock import Clock, IdSource, SystemClock
from orch_manager.control.objects import Objects
from orch_manager.control.service import ControlService
from orch_manager.control.stacks.service import Stacks
from orch_manager.control.streams import Streams
from orch_manager.dispatcher.calls import NodeCalls
from orch_manager.dispatcher.hub import Hub
from orch_manager.dispatcher.service import DispatcherService
from orch_manager.founding import write_founding_objects
from orch_manager.keepers.nodes import NodeKeeper
from orch_manager.keepers.reaper import TaskReaper
from orch_manager.keepers.removal import Removal
from orch_manager.loops import LoopDriver
from orch_manager.metrics import ManagerMetrics, RaftObserver, StateCollector
from orch_manager.metrics_http import MetricsServer
from orch_manager.orchestrator.loop import Orchestrator
from orch_manager.relay.broker import RelayBroker
from orch_manager.scheduler.loop import Scheduler
from orch_manager.store.store import Store
from orch_proto import defaults
from orch_proto.control_pb2_grpc import add_ControlServicer_to_server
from orch_proto.dispatcher_pb2_grpc import add_DispatcherServicer_to_server, add_RelayServicer_to_server
from orch_proto.objects_pb2 import Cluster, StoreChanges
from orch_raft.engine import Engine, Observer, StateMachine
from orch_raft.errors import EngineStopped, NotLeader
from orch_rpc import logs, servers
from orch_rpc.errors import Internal

_log = logs.get("manager")
SOCKET_NAME: Final = "manager.sock"
SOCKET_GROUP: Final = "orch"
#: Milliseconds to wait for leadership before serving.
_LEADER_WAIT_POLLS: Final = 200
#: Makes the engine that a store writes through.
EngineMaker = Callable[[StateMachine, Observer], Engine]


@dataclass(frozen=True, slots=True)
class Options:
    """What a manager is started with.

    Attributes:
        run_dir: where its socket stands.
        node_id: the node it runs on.
        version: of this software.
        metrics_address: where /metrics is served; empty: nowhere.
        founding: first objects of a new cluster, None for one that exists.
    """

    run_dir: Path
    node_id: str
    version: str
    metrics_address: str = ""
    founding: StoreChanges | None = None


class Manager:
    """One manager.

    Args:
        options: see there.
        make_engine: the consensus engine.
        clock: what time it is.
        ids: chance.
    """

    def __init__(
        self, options: Options, make_engine: EngineMaker, *, clock: Clock | None = None, ids: IdSource | None = None
    ) -> None:
        self._options = options
        self._clock = clock or SystemClock()
        self._ids = ids or IdSource()
        self.metrics = ManagerMetrics()
        observer = RaftObserver(self.metrics)
        self.store = Store(lambda machine: make_engine(machine, observer), clock_unix_ms=self._clock.unix_ms)
        self.hub = Hub(self.store, clock=self._clock, ids=self._ids, heartbeat_period_ms=defaults.HEARTBEAT_PERIOD_MS)
        calls = NodeCalls(self.hub)
        self._broker = RelayBroker(self.hub)
        self.control = ControlService(
            self.store,
            stacks=Stacks(self.store, calls, clock=self._clock, ids=self._ids),
            objects=Objects(self.store, calls, clock=self._clock, ids=self._ids),
            streams=Streams(self.store, self._broker, options.node_id),
            calls=calls,
            node_id=options.node_id,
            version=options.version,
        )
        self._metrics_server = MetricsServer(self.metrics.registry, options.metrics_address)
        self._leading: asyncio.Task[None] | None = None
        self._broken: BaseException | None = None
        self._broke = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set.

        Raises:
            StorageError, FatalError: the state cannot be used or kept; the process must end.
            OrchError: the socket cannot be used.
        """
        await self.store.start()
        try:
            self.metrics.registry.register(
                StateCollector(
                    self.store,
                    clock=self._clock,
                    version=self._options.version,
                    node_id=self._options.node_id,
                    dropped=self.hub.dropped_statuses,
                )
            )
            if self._options.founding is not None:
                await write_founding_objects(self.store, self._options.founding)
            await self._serve(stop)
        finally:
            await self.store.stop()

    async def _serve(self, stop: asyncio.Event) -> None:
        server = servers.new_server(self.metrics.rpc_served)
        add_ControlServicer_to_server(self.control, server)
        add_DispatcherServicer_to_server(DispatcherService(self.hub, version=self._options.version), server)
        add_RelayServicer_to_server(self._broker, server)
        following = asyncio.create_task(self._follow_leadership(), name="leadership")
        fatal = asyncio.create_task(self.store.engine.wait_stopped(), name="engine")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        breaking = asyncio.create_task(self._broke.wait(), name="loops-broke")
        try:
            await self._leads_or_knows_who()
            await servers.start_on_unix_socket(server, self._options.run_dir / SOCKET_NAME, group=SOCKET_GROUP)
            await self._metrics_server.start()
            _log.info("manager serves", node=self._options.node_id, socket=self._options.run_dir / SOCKET_NAME)
            await asyncio.wait((following, fatal, stopping, breaking), return_when=asyncio.FIRST_COMPLETED)
            if self._broken is not None:
                why = f"{type(self._broken).__name__}: {self._broken}"
                raise Internal("the control loops ended", why, "this is a defect of orch; its log has the details")
            if fatal.done():
                fatal.result()
            if following.done():
                following.result()
        finally:
            await self._metrics_server.stop()
            for session in list(self.hub.sessions.values()):
                session.end("this manager stops", reconnect=True)
            await servers.stop(server, grace_s=0.5)
            (self._options.run_dir / SOCKET_NAME).unlink(missing_ok=True)
            for task in (following, fatal, stopping, breaking):
                task.cancel()
            await asyncio.gather(following, fatal, stopping, breaking, return_exceptions=True)
            await self._stop_leading()

    # ---- leadership ----------------------------------------------------------------------------------

    async def _leads_or_knows_who(self) -> None:
        """Waits a moment for the hub, so that the first agent is not turned away."""
        for _ in range(_LEADER_WAIT_POLLS):
            if self.hub.leading:
                return
            await asyncio.sleep(0.001)

    async def _follow_leadership(self) -> None:
        async for change in self.store.engine.leadership():
            self.metrics.leader_changes.inc()
            await self._stop_leading()
            if change.is_leader:
                _log.info("leads", term=change.term)
                self._leading = asyncio.create_task(self._lead(), name="leader")
                self._leading.add_done_callback(self._loops_ended)

    async def _lead(self) -> None:
        """Runs everything that only the leader runs."""
        cluster = next(iter(self.store.all(Cluster)), Cluster())
        period_ms = cluster.spec.dispatcher.heartbeat_period_ms
        if period_ms:
            self.hub.set_heartbeat_period(period_ms)
        loops = (
            Orchestrator(self.metrics.task_failed),
            Allocator(),
            Scheduler(self.metrics.scheduled),
            NodeKeeper(),
            TaskReaper(),
            Removal(),
        )
        driver = LoopDriver(
            self.store, loops, clock=self._clock, ids=self._ids, on_step=self.metrics.step_duration.observe
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.hub.run(), name="dispatcher")
                group.create_task(driver.run(), name="control-loops")
                group.create_task(audit.run(self.store), name="audit")
        except* (NotLeader, EngineStopped):
            _log.info("leads no longer")

    def _loops_ended(self, task: asyncio.Task[None]) -> None:
        """A control loop that died is a defect: it is told, and ends the process, which orchd restarts."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.exception("the control loops ended", error)
            self._broken = error
            self._broke.set()

    async def _stop_leading(self) -> None:
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.gather(self._leading, return_exceptions=True)
            self._leading = None
