"""Agents that accept, run and fail tasks by chance, and go away and come back."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field

from orch_agent.worker import alone
from orch_manager import tasks as states
from orch_manager.clock import IdSource
from orch_manager.dispatcher import statuses
from orch_manager.dispatcher.hub import Hub
from orch_manager.dispatcher.session import Session
from orch_manager.store.errors import StoreError
from orch_proto import defaults
from orch_proto.dispatcher_pb2 import AssignmentAction, AssignmentChange, Replacement, TaskStatusUpdate
from orch_proto.node_pb2 import NodeCallResult
from orch_proto.objects_pb2 import EngineDescription, NodeDescription, Task
from orch_proto.types_pb2 import Platform, Resources, TaskState, TaskStatus
from orch_raft.errors import ProposalError
from orch_rpc.errors import OrchError

STEPS = (
    TaskState.TASK_STATE_ACCEPTED,
    TaskState.TASK_STATE_PREPARING,
    TaskState.TASK_STATE_READY,
    TaskState.TASK_STATE_STARTING,
    TaskState.TASK_STATE_RUNNING,
)


@dataclass
class Behaviour:
    """How the programs on a node behave."""

    fail_starting: float = 0.0
    #: Programs with this in their environment never start.
    broken_env: str = ""
    crash_each_s: float = 0.0
    step_s: float = 0.05


@dataclass
class _Local:
    """A task as the node has it."""

    task: Task
    state: TaskState.ValueType = states.ASSIGNED
    started_ms: int = 0
    ended_ms: int = 0
    work: asyncio.Task[None] | None = None
    reported: list[TaskStatusUpdate] = field(default_factory=list)


class SimulatedAgent:
    """One node's agent. Its programs go on while it is away from the manager."""

    def __init__(self, node_id: str, chance: random.Random, behaviour: Behaviour, *, memory_bytes: int) -> None:
        self.node_id = node_id
        self.behaviour = behaviour
        self.description = NodeDescription(
            hostname=node_id,
            platform=Platform(os="linux", architecture="amd64"),
            resources=Resources(nano_cpus=4_000_000_000, memory_bytes=memory_bytes),
            engine=EngineDescription(version="simulation"),
        )
        self._chance = chance
        self._local: dict[str, _Local] = {}
        self._pending: dict[str, TaskStatus] = {}
        self._news = asyncio.Event()
        self._made: dict[str, Replacement] = {}
        self._told: set[str] = set()
        self._ids = IdSource(chance)
        self._heard_s = float("inf")
        self.connected = True

    def running(self) -> list[str]:
        """Ids of the tasks whose program runs now."""
        return [task_id for task_id, local in self._local.items() if local.state == states.RUNNING]

    # ---- the session ---------------------------------------------------------------------------------

    async def stand_in(self) -> None:
        """Replaces what ends while no leader speaks to it, by the agent's own rules."""
        while True:
            await asyncio.sleep(0.5)
            loop = asyncio.get_running_loop()
            if loop.time() - self._heard_s < defaults.ALONE_AFTER_MS / 1000:
                continue
            present = [self._as_it_is(local) for local in self._local.values()]
            for task in alone.successors(present, self._told, now_ms=int(loop.time() * 1000), new_id=self._ids.new):
                self._made[task.id] = alone.as_told(task)
                self._drive(self._local.setdefault(task.id, _Local(task)))
            turns = alone.whose_turn_has_come(
                present, alone_since_ms=int(self._heard_s * 1000), now_ms=int(loop.time() * 1000)
            )
            for task_id in turns:
                local = self._local[task_id]
                raised = Task()
                raised.CopyFrom(local.task)
                raised.desired_state = states.RUNNING
                local.task = raised

    def _as_it_is(self, local: _Local) -> Task:
        task = Task()
        task.CopyFrom(local.task)
        task.status.CopyFrom(self._status(local, ""))
        return task

    async def serve(self, hub: Hub) -> None:
        """Attaches to a manager, again and again, until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._chance.uniform(0.01, 0.1))
                if not self.connected:
                    continue
                with suppress(OrchError, StoreError, ProposalError):
                    session = await hub.register(self.node_id, self.description, "", 0)
                    try:
                        await self._session(hub, session)
                    finally:
                        hub.unregister(session)
        finally:
            await asyncio.sleep(0)

    async def _session(self, hub: Hub, session: Session) -> None:
        complete = True
        next_beat_s = hub.clock.monotonic_s()
        # Whatever was said before may have been lost with the last session.
        for local in self._local.values():
            self._pending[local.task.id] = self._status(local, "reported again")
        while self.connected and session.end_reason is None:
            self._heard_s = hub.clock.monotonic_s()
            if hub.clock.monotonic_s() >= next_beat_s:
                hub.heard(self.node_id)
                next_beat_s = hub.clock.monotonic_s() + hub.liveness.next_period_ms() / 1000
            for message in session.take_outbox():
                if message.HasField("call"):
                    answer = NodeCallResult(call_id=message.call.call_id)
                    answer.image_inspect.image.id = "sha256:1"
                    session.answered(answer)
            # What it made by itself is told before it hears what it is to have.
            await self._report(hub, session)
            changes = session.assignments.changes()
            self._take(changes, complete=complete)
            complete = False
            session.wake.clear()
            waiting = [asyncio.ensure_future(session.wake.wait()), asyncio.ensure_future(self._news.wait())]
            await asyncio.wait(waiting, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            for each in waiting:
                each.cancel()
            self._news.clear()

    async def _report(self, hub: Hub, session: Session) -> None:
        updates = [TaskStatusUpdate(task_id=task_id, status=status) for task_id, status in self._pending.items()]
        self._pending.clear()
        if not updates:
            return
        made = list(self._made.values())
        try:
            taken = await hub.store.update(
                lambda transaction: statuses.take(
                    transaction, node_id=self.node_id, replacements=made, updates=updates, term=hub.store.term
                ),
                reason="statuses",
            )
            session.refuse_tasks(taken.refused)
            self._made.clear()
            self._told |= {update.task_id for update in updates if update.status.state > states.RUNNING}
        except (StoreError, ProposalError):
            for update in updates:
                self._pending.setdefault(update.task_id, update.status)
            raise

    # ---- tasks ---------------------------------------------------------------------------------------

    def _take(self, changes: list[AssignmentChange], *, complete: bool) -> None:
        if complete:
            kept = {change.assignment.task.id for change in changes if change.assignment.HasField("task")}
            for task_id in [each for each in self._local if each not in kept]:
                self._drop(task_id)
        for change in changes:
            if not change.assignment.HasField("task"):
                continue
            task = change.assignment.task
            if change.action == AssignmentAction.ASSIGNMENT_ACTION_REMOVE:
                self._drop(task.id)
            elif task.id in self._local:
                self._local[task.id].task = task
                self._drive(self._local[task.id])
            else:
                local = self._local[task.id] = _Local(task, state=task.status.state)
                self._drive(local)

    def _drop(self, task_id: str) -> None:
        local = self._local.pop(task_id, None)
        self._pending.pop(task_id, None)
        if local is not None and local.work is not None:
            local.work.cancel()

    def _drive(self, local: _Local) -> None:
        if local.work is None or local.work.done():
            local.work = asyncio.create_task(self._run(local))

    async def _run(self, local: _Local) -> None:
        """The task's state machine."""
        loop = asyncio.get_running_loop()
        while local.state <= states.RUNNING:
            await asyncio.sleep(self._chance.uniform(0.1, 1.0) * self.behaviour.step_s)
            if local.task.desired_state > states.RUNNING:
                self._say(local, states.SHUTDOWN)
                return
            if local.state == states.RUNNING:
                if (
                    self.behaviour.crash_each_s
                    and self._chance.random() < self.behaviour.step_s / self.behaviour.crash_each_s
                ):
                    self._say(local, states.FAILED, "crashed")
                    return
                await asyncio.sleep(self.behaviour.step_s)
                continue
            if local.state >= states.READY and local.task.desired_state < states.RUNNING:
                await asyncio.sleep(0.02)
                continue
            broken = self.behaviour.broken_env in local.task.spec.container.env
            if broken or self._chance.random() < self.behaviour.fail_starting:
                self._say(local, self._chance.choice((states.FAILED, states.REJECTED)), "did not start")
                return
            following = next(step for step in STEPS if step > local.state)
            if following == states.RUNNING:
                local.started_ms = int(loop.time() * 1000)
            self._say(local, following)

    def _status(self, local: _Local, message: str) -> TaskStatus:
        now_ms = local.ended_ms or int(asyncio.get_running_loop().time() * 1000)
        status = TaskStatus(state=local.state, timestamp_unix_ms=now_ms, message=message)
        status.container.started_at_unix_ms = local.started_ms
        return status

    def _say(self, local: _Local, state: TaskState.ValueType, error: str = "") -> None:
        local.state = state
        if state > states.RUNNING:
            local.ended_ms = int(asyncio.get_running_loop().time() * 1000)
        status = self._status(local, "")
        status.error = error
        self._pending[local.task.id] = status
        self._news.set()

    def stop(self) -> None:
        """Ends every program."""
        for task_id in list(self._local):
            self._drop(task_id)
