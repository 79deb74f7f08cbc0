"""A task or a whole worker with scripted parts in place of the runtime and of preparation."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from orch_agent.errors import LinkRefused, TaskFailure
from orch_agent.runtime import ContainerExit, ContainerRequest, ContainerView, Runtime
from orch_agent.task.controller import Surroundings, TaskController, now_ms
from orch_agent.task.health import HealthPlan
from orch_agent.task.needs import Needs
from orch_agent.task.preparation import Preparation, Prepared
from orch_agent.task.record import Record, Records
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types
from orch_runtime.plan import OverlayRootfs
from orch_runtime.protocol import ExecResult

REQUEST = ContainerRequest({}, OverlayRootfs(("/l",), "/u", "/w"), None, None, None, init=False)


@dataclass
class ScriptedRuntime:
    """Does what a test says and notes what it was asked."""

    refuses: str = ""
    ends_on: tuple[int, ...] = (signal.SIGTERM, signal.SIGKILL)
    probes: list[int] = field(default_factory=list)
    runs: int = 0
    signals: list[int] = field(default_factory=list)
    deleted: int = 0
    controller: TaskController | None = None

    async def run(self, container_id: str, _request: ContainerRequest) -> ContainerView:
        """Starts, or refuses with the scripted sentence."""
        if self.refuses:
            raise LinkRefused("start_failed", self.refuses)
        self.runs += 1
        return ContainerView(container_id, 4711, now_ms(), None)

    async def kill(self, _container_id: str, number: int) -> None:
        """The container ends on the signals that the script names."""
        self.signals.append(number)
        if number in self.ends_on:
            self.end(128 + number)

    async def delete(self, _container_id: str) -> None:
        """Notes it."""
        self.deleted += 1

    async def execute(self, _container_id: str, _command: object, **_options: object) -> ExecResult:
        """The next scripted exit code; the last one for ever."""
        code = self.probes.pop(0) if len(self.probes) > 1 else self.probes[0]
        return ExecResult(exit_code=code, output=f"probe said {code}")

    def end(self, code: int | None, *, oom_killed: bool = False) -> None:
        """The container ends by itself."""
        assert self.controller is not None
        self.controller.container_ended(ContainerExit(code, oom_killed, now_ms()))


@dataclass
class ScriptedPreparation:
    """Prepares at once, never, or not at all."""

    failure: TaskFailure | None = None
    never: bool = False
    health: HealthPlan | None = None
    grace_s: float = 5.0
    released: int = 0
    detached: int = 0

    held: Needs = field(default_factory=Needs)
    prepared_with: list[Needs] = field(default_factory=list)

    def needs(self, _task: objects.Task) -> Needs:
        """What the node holds, as scripted."""
        return self.held

    async def prepare(self, task: objects.Task, needs: Needs) -> Prepared:
        """As scripted; notes with what."""
        self.prepared_with.append(needs)
        return await self.recall(task)

    async def recall(self, _task: objects.Task) -> Prepared:
        """As scripted."""
        if self.never:
            await asyncio.get_running_loop().create_future()
        if self.failure is not None:
            raise self.failure
        return Prepared("sha256:0", REQUEST, self.health, signal.SIGTERM, self.grace_s, 0.0)

    def release_network(self, _task: objects.Task) -> None:
        """Notes it."""
        self.detached += 1

    async def release(self, _task: objects.Task) -> None:
        """Notes it."""
        self.released += 1


@dataclass
class Life:
    """A task with its surroundings, and what was reported of it."""

    controller: TaskController
    runtime: ScriptedRuntime
    preparation: ScriptedPreparation
    reported: list[types.TaskStatus]

    @property
    def states(self) -> list[str]:
        """Names of the reported states in order."""
        return [types.TaskState.Name(status.state).removeprefix("TASK_STATE_") for status in self.reported]

    async def until(self, state: types.TaskState.ValueType) -> None:
        """Waits until the task has come to a state."""
        async with asyncio.timeout(5):
            while self.controller.status.state < state:  # noqa: ASYNC110 -- the controller has no event to wait for
                await asyncio.sleep(0)

    def want(self, state: types.TaskState.ValueType) -> None:
        """The leader changes the desired state."""
        task = objects.Task()
        task.CopyFrom(self.controller.task)
        task.desired_state = state
        self.controller.update(task)


def make_life(
    folder: Path,
    *,
    runtime: ScriptedRuntime | None = None,
    preparation: ScriptedPreparation | None = None,
    desired: types.TaskState.ValueType = types.TASK_STATE_RUNNING,
    known: types.TaskState.ValueType = types.TASK_STATE_ASSIGNED,
    recorded: types.TaskStatus | None = None,
    found: ContainerView | None = None,
    remembered: Needs | None = None,
    record: Record | None = None,
) -> Life:
    runtime = runtime or ScriptedRuntime()
    remembered = remembered or Needs()
    preparation = preparation or ScriptedPreparation()
    reported: list[types.TaskStatus] = []
    records = Records(folder)
    around = Surroundings(
        node_id="n1",
        runtime=cast("Runtime", runtime),
        preparation=cast("Preparation", preparation),
        records=records,
        report=lambda _task_id, status: reported.append(status),
    )
    task = record.task if record else objects.Task(id="t1", desired_state=desired, status=types.TaskStatus(state=known))
    if recorded is not None:
        records.write_task(task, remembered)
        record = Record(task, recorded, remembered)
    controller = TaskController(task, around, record=record, found=found)
    runtime.controller = controller
    return Life(controller, runtime, preparation, reported)


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())
