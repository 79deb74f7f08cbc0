"""All tasks of the node: a controller for each that is assigned, running containers found again, strays swept up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable

from orch_agent.build.runtime_runner import CONTAINER_PREFIX as BUILD_PREFIX
from orch_agent.errors import LinkLost, LinkRefused
from orch_agent.network_sync import NetworkSync
from orch_agent.node_state import new_id
from orch_agent.packets import JsonObject
from orch_agent.runtime import ContainerView, exit_of
from orch_agent.task.controller import Surroundings, TaskController, now_ms
from orch_agent.task.preparation import Preparation
from orch_agent.task.record import Record, Records
from orch_agent.worker import alone
from orch_agent.worker.assignments import Assignments, Holdings
from orch_agent.worker.reporter import StatusReporter
from orch_proto import defaults
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types
from orch_rpc import logs
from orch_runtime import protocol as runtime_protocol

ALONE_LOOK_S = 0.5
log = logs.get("worker")


class Worker:
    """The tasks of this node.

    Args:
        around: what controllers share.
        preparation: makes and removes what tasks need.
        records: what is remembered across restarts.
        reporter: where statuses go.
        network: kept told of networks and services.
        group: owns the controllers.
        clock_ms: Unix milliseconds.
    """

    def __init__(
        self,
        *,
        around: Surroundings,
        preparation: Preparation,
        records: Records,
        reporter: StatusReporter,
        network: NetworkSync,
        group: asyncio.TaskGroup,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self.controllers: dict[str, TaskController] = {}
        self._assignments = Assignments()
        self._around = around
        self._preparation = preparation
        self._records = records
        self._reporter = reporter
        self._network = network
        self._group = group
        self._clock_ms = clock_ms
        self._lives: dict[str, asyncio.Task[None]] = {}
        #: When the leader was heard last, on the loop's clock; None while it speaks to us.
        self._lost_at_s: float | None = asyncio.get_running_loop().time()
        #: Tasks made here that no leader has answered for, and those of whose end one knows.
        self._own: set[str] = set()
        self._told: set[str] = set()
        self._life_ended = asyncio.Event()
        reporter.on_end_told = self._ends_told
        self._found_again = asyncio.Event()

    @property
    def held(self) -> Holdings:
        """What is assigned now."""
        return self._assignments.held

    # ---- from the leader ---------------------------------------------------------------------------

    def assignments(self, received: dispatcher.AssignmentSet) -> None:
        """Takes an assignment set; new tasks begin, others get their new desired state.

        Raises:
            OutOfStep: the set does not continue from what is held.
        """
        delta = self._assignments.apply(received)
        if delta is None:
            return
        if delta.complete:
            self._lost_at_s = None
        for request in self._network.apply(self.held, delta):
            self._group.create_task(_quietly(request))
        if not self._found_again.is_set():
            return  # what runs already must be known first; then all that is held is taken up at once
        self._own -= self.held.tasks.keys()
        if delta.complete:
            self._adopt_complete()
        self._begin_or_update(delta.tasks)
        for task_id in delta.tasks_removed:
            self._give_up(task_id)

    def session_lost(self) -> None:
        """The session has ended; the next one begins with a COMPLETE set."""
        self._assignments.reset()
        if self._lost_at_s is None:
            self._lost_at_s = asyncio.get_running_loop().time()

    def _begin_or_update(self, task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            task = self.held.tasks[task_id]
            controller = self.controllers.get(task_id)
            if controller is not None:
                controller.update(task)
            elif task.status.state < types.TASK_STATE_COMPLETE:
                self._begin(TaskController(task, self._around))

    def _adopt_complete(self) -> None:
        """After a COMPLETE set: tasks that the leader no longer knows are stopped, final statuses are told again."""
        self._own -= self.held.tasks.keys()
        for task_id, controller in list(self.controllers.items()):
            task = self.held.tasks.get(task_id)
            if task_id in self._own:
                # It may not have been told of these yet, or the answer was lost.
                self._reporter.report_made(alone.as_told(controller.task))
                self._reporter.report(task_id, controller.as_it_is().status)
            elif task is None:
                self._give_up(task_id)
            elif controller.status.state > task.status.state:
                self._reporter.report(task_id, controller.status)
        known = {*self.held.tasks, *self.controllers}
        self._group.create_task(asyncio.to_thread(self._preparation.sweep_logs, known))

    def _begin(self, controller: TaskController) -> None:
        task_id = controller.task.id
        self.controllers[task_id] = controller
        life = self._group.create_task(self._live(controller))
        self._lives[task_id] = life

    async def _live(self, controller: TaskController) -> None:
        await self._found_again.wait()
        try:
            await controller.run()
        finally:
            self._life_ended.set()

    def _give_up(self, task_id: str) -> None:
        controller = self.controllers.get(task_id)
        self._own.discard(task_id)
        self._reporter.forget(task_id)
        if controller is not None:
            controller.give_up()
        self._group.create_task(self._forget_when_over(task_id))

    async def _forget_when_over(self, task_id: str) -> None:
        life = self._lives.get(task_id)
        if life is not None:
            await asyncio.wait({life})
        if task_id in self.held.tasks:
            return  # assigned again meanwhile
        self.controllers.pop(task_id, None)
        self._lives.pop(task_id, None)
        self._told.discard(task_id)
        self._reporter.forget(task_id)
        await asyncio.to_thread(self._remove_traces, task_id)

    def _remove_traces(self, task_id: str) -> None:
        self._records.forget(task_id)
        self._preparation.forget(task_id)

    # ---- without a leader --------------------------------------------------------------------------

    @property
    def is_alone(self) -> bool:
        """Whether no leader has spoken to this node for longer than a change of leader takes."""
        lost_at_s = self._lost_at_s
        if lost_at_s is None or not self._found_again.is_set():
            return False
        return asyncio.get_running_loop().time() - lost_at_s >= defaults.ALONE_AFTER_MS / 1000

    async def stand_in(self) -> None:
        """Does for this node's slots what the leader would, while there is none."""
        was_alone = False
        while True:
            self._life_ended.clear()
            if self.is_alone != was_alone:
                was_alone = self.is_alone
                log.warning("worker.alone" if was_alone else "worker.led", tasks=len(self.controllers))
            if was_alone:
                self._replace_ended()
                self._raise_waiting()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ALONE_LOOK_S):
                    await self._life_ended.wait()

    def _replace_ended(self) -> None:
        present = [controller.as_it_is() for controller in self.controllers.values()]
        made = alone.successors(present, self._told, now_ms=self._clock_ms(), new_id=new_id)
        for task in made:
            old = self.controllers[task.replaces]
            log.info("task.replaced_alone", old=old.task.id, new=task.id, service=task.service_name, slot=task.slot)
            # Written first: whoever finds the task must know that it is ours.
            self._records.write_task(task, old.needs)
            self._make_own(task)
            self._begin(TaskController(task, self._around, record=Record(task, None, old.needs)))
        for task_id in alone.superfluous([*present, *made], self._own) if made else ():
            self._drop_own(task_id)

    def _make_own(self, task: objects.Task) -> None:
        self._own.add(task.id)
        self._reporter.report_made(alone.as_told(task))

    def _drop_own(self, task_id: str) -> None:
        """Takes an ended task out of the middle of a chain that the leader has not seen yet."""
        dropped = self.controllers[task_id].task
        for controller in self.controllers.values():
            if controller.task.replaces == task_id:
                controller.task.replaces = dropped.replaces
                self._records.write_task(controller.task, controller.needs)
                self._make_own(controller.task)
        self._give_up(task_id)

    def _raise_waiting(self) -> None:
        assert self._lost_at_s is not None
        lost_for_ms = int((asyncio.get_running_loop().time() - self._lost_at_s) * 1000)
        present = [controller.as_it_is() for controller in self.controllers.values()]
        now = self._clock_ms()
        for task_id in alone.whose_turn_has_come(present, alone_since_ms=now - lost_for_ms, now_ms=now):
            controller = self.controllers[task_id]
            task = objects.Task()
            task.CopyFrom(controller.task)
            task.desired_state = types.TASK_STATE_RUNNING
            self._records.write_task(task, controller.needs)
            controller.update(task)
            if task_id in self._own:
                self._make_own(task)

    def _ends_told(self, task_ids: Collection[str]) -> None:
        for task_id in task_ids:
            if task_id in self.controllers:
                self._told.add(task_id)
                self._records.mark_told(task_id)

    # ---- from the runtime --------------------------------------------------------------------------

    def runtime_event(self, message: JsonObject) -> None:
        """Takes an event of the supervisor."""
        event = runtime_protocol.parse_event(message)
        controller = self.controllers.get(event.id) if event is not None else None
        if isinstance(event, runtime_protocol.ExitEvent) and controller is not None:
            controller.container_ended(exit_of(event))
        elif isinstance(event, runtime_protocol.OomEvent) and controller is not None:
            controller.note_oom()

    async def runtime_connected(self) -> None:
        """The supervisor is there (again): what it knows is the truth.

        Raises:
            LinkLost: it went away again.
        """
        await self._around.runtime.subscribe()
        containers = await self._around.runtime.containers()
        if not self._found_again.is_set():
            await self._find_again(containers)
        for container in containers.values():
            controller = self.controllers.get(container.id)
            if controller is not None and container.exit is not None:
                controller.container_ended(container.exit)
        for task_id, controller in self.controllers.items():
            if task_id not in containers:
                controller.container_vanished()

    async def _find_again(self, containers: dict[str, ContainerView]) -> None:
        """Takes up what a former agent left, then what the leader has assigned meanwhile.

        Raises:
            LinkLost: the supervisor went away; nothing lives yet, so the next connection may begin anew.
        """
        for record in sorted(self._records.load(), key=lambda each: each.task.meta.created_at_unix_ms):
            if record.task.id not in self.controllers:
                self._adopt(record, containers.get(record.task.id))
        await self._remove_leftovers(containers)
        self._found_again.set()
        if self._assignments.result:
            self._adopt_complete()
            self._begin_or_update(list(self.held.tasks))

    async def _remove_leftovers(self, containers: dict[str, ContainerView]) -> None:
        """Removes what an agent that was killed left halfway: steps of builds, root file systems of forgotten tasks."""
        for container_id in containers:
            if container_id.startswith(BUILD_PREFIX):
                await self._around.runtime.delete_now(container_id)
        await asyncio.to_thread(self._preparation.sweep, set(self.controllers))

    def _adopt(self, record: Record, found: ContainerView | None) -> None:
        if found is not None and found.being_made:
            found = None  # asked for again, the runtime tells how that start ends
        if record.told:
            self._told.add(record.task.id)
        if record.task.replaces:
            self._make_own(record.task)
        log.info("task.adopted", task=record.task.id, container=found is not None)
        self._begin(TaskController(record.task, self._around, record=record, found=found))

    async def sweep(self) -> None:
        """Removes containers that no task owns, such as one whose start was under way when the agent died."""
        strays: set[str] = set()
        while True:
            await asyncio.sleep(defaults.RECONCILE_INTERVAL_MS / 1000)
            try:
                containers = (await self._around.runtime.link.call("list"))["containers"]
                now = {str(container["id"]) for container in containers}
                unowned = {
                    container_id
                    for container_id in now - self.controllers.keys()
                    if not container_id.startswith(BUILD_PREFIX)
                }
                for container_id in unowned & strays:  # seen twice, so not one that is just being made
                    log.warning("container.stray_removed", container=container_id)
                    await self._around.runtime.delete(container_id)
                strays = unowned
            except (LinkLost, LinkRefused) as error:
                log.warning("sweep.failed", why=str(error))


async def _quietly(request: asyncio.Task[JsonObject]) -> None:
    """Waits for a request to the network process; a failure is logged, the next full telling repairs it."""
    try:
        await request
    except (LinkLost, LinkRefused) as error:
        log.warning("network.request_failed", why=str(error))
