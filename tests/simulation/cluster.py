"""A whole manager with simulated agents, in one loop of virtual time, from one seed."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

from orch_manager import tasks as states
from orch_manager.clock import IdSource
from orch_manager.process import Manager, Options
from orch_manager.store.schema import unwrap
from orch_manager.store.watch import Watch
from orch_proto.control_pb2 import ApplyStackRequest, RemoveStackRequest, ScaleServicesRequest, ServiceScale
from orch_proto.objects_pb2 import Cluster, Node, Object, Service, Task
from orch_proto.specs_pb2 import NodeAvailability, NodeRole, ServiceSpec, StackSpec
from orch_raft.engine import Engine, Observer, StateMachine
from simulation.agents import Behaviour, SimulatedAgent
from simulation.invariants import Invariants
from simulation.memory_engine import MemoryEngine, SharedLog
from simulation.virtual_time import LoopClock

MIB = 1024 * 1024


def service(name: str, replicas: int, *, stack: str = "shop", memory_mib: int = 0) -> ServiceSpec:
    """A service of a stack with a network, quick restarts and quick updates."""
    spec = ServiceSpec()
    spec.annotations.name = f"{stack}_{name}"
    spec.mode.replicated.replicas = replicas
    spec.task.container.image = f"{name}:1"
    spec.task.networks.add(target=f"{stack}_default")
    spec.task.restart.delay_ms = 100
    spec.task.restart.max_delay_ms = 1000
    spec.task.resources.reservations.memory_bytes = memory_mib * MIB
    spec.update.parallelism = 2
    spec.update.monitor_ms = 100
    spec.update.max_failure_ratio = 1.0
    return spec


def stack(*services: ServiceSpec, name: str = "shop") -> StackSpec:
    """A stack of these services, on its default network."""
    spec = StackSpec(name=name, services=services)
    spec.networks.add().annotations.name = f"{name}_default"
    return spec


class SimulatedCluster:
    """See the module."""

    def __init__(self, seed: int, *, nodes: int = 3, memory_mib: int = 1024) -> None:
        self.chance = random.Random(seed)
        self.log = SharedLog()
        self.behaviour = Behaviour()
        self.agents = [
            SimulatedAgent(
                f"node{number}", random.Random(seed * 100 + number), self.behaviour, memory_bytes=memory_mib * MIB
            )
            for number in range(nodes)
        ]
        self.invariants = Invariants()
        self.lost_outcomes = 0.0
        self._seed = seed
        self._tasks: list[asyncio.Task[None]] = []
        self._watch: Watch | None = None
        self._alone: list[asyncio.Task[None]] = []

    # ---- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts, or starts again, the manager over the log that there is; agents attach by themselves."""
        loop = asyncio.get_running_loop()
        options = Options(run_dir=Path("/nonexistent"), node_id="node0", version="simulation")
        self.engine: MemoryEngine | None = None

        def make_engine(machine: StateMachine, _observer: Observer) -> Engine:
            self.engine = MemoryEngine(self.log, machine, self.chance, lost_outcomes=self.lost_outcomes)
            return self.engine

        self.manager = Manager(
            options, make_engine, clock=LoopClock(loop), ids=IdSource(random.Random(self.chance.random()))
        )
        self.store = self.manager.store
        await self.store.start()
        if not self.store.all(Cluster):
            await self._found()
        self._watch = self.store.watch()
        if not self._alone:
            self._alone = [asyncio.create_task(agent.stand_in()) for agent in self.agents]
        self._tasks = [
            asyncio.create_task(self.manager.leading.run()),
            asyncio.create_task(self._check()),
            *(asyncio.create_task(agent.serve(self.manager.hub)) for agent in self.agents),
        ]

    async def _found(self) -> None:
        assert self.engine is not None
        self.engine.lost_outcomes = 0.0
        items = [Object(cluster=Cluster(id="cluster"))]
        for agent in self.agents:
            node = Node(id=agent.node_id, role=NodeRole.NODE_ROLE_MANAGER)
            node.spec.availability = NodeAvailability.NODE_AVAILABILITY_ACTIVE
            items.append(Object(node=node))
        await self.store.update(lambda tx: [tx.create(unwrap(item)) for item in items], reason="found")
        self.engine.lost_outcomes = self.lost_outcomes

    async def stop(self) -> None:
        """Kills the manager and the agents' sessions; programs on the nodes go on."""
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.store.stop()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def finish(self) -> None:
        """Stops everything."""
        await self.stop()
        for task in self._alone:
            task.cancel()
        await asyncio.gather(*self._alone, return_exceptions=True)
        for agent in self.agents:
            agent.stop()
        await asyncio.sleep(0)

    async def _check(self) -> None:
        signal = self.store.signal()
        assert self._watch is not None
        while True:
            await signal.wait()
            self.invariants.follow(self._watch, self.store)

    # ---- what people do ------------------------------------------------------------------------------

    async def apply(self, spec: StackSpec) -> None:
        """Deploys."""
        await self.manager.control._stacks.apply(ApplyStackRequest(spec=spec, prune=True))

    async def remove(self, name: str) -> None:
        """Removes a stack."""
        await self.manager.control._stacks.remove(RemoveStackRequest(name=name))

    async def scale(self, name: str, replicas: int) -> None:
        """Scales a service."""
        scales = [ServiceScale(service=name, replicas=replicas)]
        await self.manager.control._objects.scale(ScaleServicesRequest(scales=scales))

    # ---- what must come true -------------------------------------------------------------------------

    def unconverged(self) -> str:
        """Why the cluster is not as wanted yet; empty when it is."""
        running = {task_id for agent in self.agents for task_id in agent.running()}
        wanted_ids: set[str] = set()
        for service_now in self.store.all(Service):
            name = service_now.spec.annotations.name
            if service_now.pending_delete:
                return f"{name} is being removed"
            tasks = [task for task in self.store.find(Task, service_id=service_now.id) if states.is_wanted(task)]
            up = [
                task
                for task in tasks
                if task.status.state == states.RUNNING
                and task.desired_state == states.RUNNING
                and task.spec_version == service_now.spec_version
            ]
            wanted = service_now.spec.mode.replicated.replicas
            if len(up) != wanted or len(tasks) != wanted:
                stuck = [
                    f"{t.slot}:{t.status.state}/{t.desired_state} {t.status.message}" for t in tasks if t not in up
                ][:5]
                return f"{name}: {len(up)} of {wanted} run, {stuck}"
            wanted_ids |= {task.id for task in up}
        if running != wanted_ids:
            return f"programs that run and should not: {running - wanted_ids}, that should: {wanted_ids - running}"
        return ""

    async def converge(self, *, within_s: float = 120.0) -> None:
        """Waits, in virtual time, until the cluster is as wanted.

        Raises:
            AssertionError: it is not, or an invariant is broken.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        why = self.unconverged()
        while why and loop.time() < deadline_s:
            await asyncio.sleep(0.25)
            why = self.unconverged()
            self._fail_on_dead_loops()
        assert not self.invariants.broken, f"seed {self._seed}: {self.invariants.broken[:5]}"
        assert not why, f"seed {self._seed}: not converged in {within_s} s: {why}"

    def _fail_on_dead_loops(self) -> None:
        for task in self._tasks:
            if task.done():
                with suppress(asyncio.CancelledError):
                    error = task.exception()
                    assert error is None, f"seed {self._seed}: {error!r}"
