"""Walks one task through its states: the part of the agent that decides what happens next to a container.

ACCEPTED - PREPARING - READY - STARTING - RUNNING - COMPLETE, SHUTDOWN, FAILED or REJECTED. The states and what they
promise are Swarm's. Observed state only grows; a task is never started twice. The controller learns of the
container's end from the runtime's events, and looks for itself when the runtime comes back after an absence.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from orch_agent.errors import LinkLost, LinkRefused, TaskFailure
from orch_agent.runtime import ContainerExit, ContainerView, Runtime
from orch_agent.task.health import HealthView, after_probe, next_probe_in_s
from orch_agent.task.needs import Needs
from orch_agent.task.preparation import Preparation, Prepared
from orch_agent.task.record import Record, Records
from orch_proto import defaults
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types
from orch_rpc import logs

log = logs.get("task")
_T = TypeVar("_T")
KILL_WAIT_S = 10.0
PAUSED_MESSAGE = "paused"
OOM_MESSAGE = "out of memory"


def now_ms() -> int:
    """The wall clock, for people and for comparison between nodes: Unix milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What controllers share."""

    node_id: str
    runtime: Runtime
    preparation: Preparation
    records: Records
    report: Callable[[str, types.TaskStatus], None]


class TaskController:
    """One task of this node.

    Args:
        task: as assigned.
        around: what controllers share.
        record: what was remembered of it, when the agent has just started; None for a new task.
        found: its container as the runtime has it, when the agent has just started.
    """

    def __init__(
        self,
        task: objects.Task,
        around: Surroundings,
        *,
        record: Record | None = None,
        found: ContainerView | None = None,
    ) -> None:
        self.task = task
        self.status = types.TaskStatus(state=types.TASK_STATE_ASSIGNED)
        if record is not None and record.status is not None:
            self.status.CopyFrom(record.status)
        if found is not None:
            self.status.container.container_id = found.id
            self.status.container.pid = found.pid
            self.status.container.started_at_unix_ms = found.started_at_unix_ms
        self.health = HealthView()
        self.output_over = asyncio.Event()
        self.prepared: Prepared | None = None
        self.is_put_away = False
        self._paused = found is not None and found.paused
        self._oom_count = 0
        self._around = around
        self._found = found
        self._needs: Needs | None = record.needs if record is not None else None
        self._desired_changed = asyncio.Event()
        self._started = found is not None
        self._warnings = found.warnings if found is not None else ()
        self._exit: asyncio.Future[ContainerExit] = asyncio.get_running_loop().create_future()
        self._log = log.bind(task=task.id, service=task.service_name, slot=task.slot)

    # ---- what comes from outside -------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether the task has reached a final state."""
        return self.status.state >= types.TASK_STATE_COMPLETE

    @property
    def needs(self) -> Needs:
        """What the task needs of what was assigned to the node."""
        return self._needs if self._needs is not None else self._around.preparation.needs(self.task)

    def as_it_is(self) -> objects.Task:
        """The task with its status now."""
        task = objects.Task()
        task.CopyFrom(self.task)
        task.status.CopyFrom(self.status)
        return task

    @property
    def image_id(self) -> str:
        """The image that the task runs; empty until it is prepared."""
        return self.prepared.image_id if self.prepared is not None else ""

    def update(self, task: objects.Task) -> None:
        """The leader changed the task; only its desired state matters here."""
        if task.desired_state < self.task.desired_state:
            return  # desired state never goes back
        self.task = task
        self._desired_changed.set()

    def give_up(self) -> None:
        """The leader no longer knows the task: stop it."""
        gone = objects.Task()
        gone.CopyFrom(self.task)
        gone.desired_state = types.TASK_STATE_REMOVE
        self.update(gone)

    def container_ended(self, end: ContainerExit) -> None:
        """The runtime says that the container has ended."""
        if not self._exit.done():
            self._exit.set_result(end)

    def container_vanished(self) -> None:
        """The runtime does not know the container although it should be running."""
        if self._started and not self._exit.done():
            self._exit.set_result(ContainerExit(code=None, oom_killed=False, finished_at_unix_ms=now_ms()))

    def note_pause(self, *, paused: bool) -> None:
        """The container was frozen, or goes on; a frozen one answers no health check, and is thawed to be stopped."""
        self._paused = paused
        if self.status.state == types.TASK_STATE_RUNNING:
            self.status.message = PAUSED_MESSAGE if paused else "resumed"
            self._report()

    def note_oom(self) -> None:
        """The kernel ended a process of the container at its memory limit; if it was the first one, its end follows."""
        self._oom_count += 1
        if self.status.state == types.TASK_STATE_RUNNING:
            times = "" if self._oom_count == 1 else f" ({self._oom_count} times)"
            self.status.message = f"{OOM_MESSAGE}: a process of the container was killed{times}"
            self._log.warning("task.out_of_memory", count=self._oom_count)
            self._report()

    # ---- its life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Lives the task to its end, and puts away what it leaves but its log."""
        if self.is_over:
            # The end was written down before the address was given back; the agent may have died in between.
            self._around.preparation.release_network(self.task)
            self.output_over.set()
            self._around.report(self.task.id, self.status)
            await self._clean_up()
            return
        try:
            await self._live()
        except TaskFailure as failure:
            self._end_badly(failure)
        except (LinkLost, LinkRefused) as error:
            self._end_badly(TaskFailure(str(error), types.FAILURE_REASON_START))
        except Exception as error:
            self._log.exception("task.defect", error)
            self._end_badly(TaskFailure(f"the agent failed: {error!r}", types.FAILURE_REASON_START))
        finally:
            self.output_over.set()
        await self._clean_up()

    async def _live(self) -> None:
        if self._found is None:
            if self._was_about_to_start():
                if self._unwanted():
                    self._end(types.TASK_STATE_SHUTDOWN, "stopped before it was started")
                    return
                self.prepared = await self._prepare()
                await self._start_container()
            elif self.status.state >= types.TASK_STATE_STARTING or self.task.status.state >= types.TASK_STATE_STARTING:
                self.status.state = max(self.status.state, self.task.status.state)
                raise TaskFailure(
                    "the node lost the container (it was restarted, or its runtime was); how it ended is not known",
                    types.FAILURE_REASON_LOST,
                )
            elif await self._get_ready():
                await self._start()
            else:
                return
        elif self._found.exit is not None:
            if self._unwanted():
                self._note_exit(self._found.exit)
                self._end(types.TASK_STATE_SHUTDOWN, "stopped")
                return
            self.container_ended(self._found.exit)
        await self._watch()

    async def _get_ready(self) -> bool:
        """To READY and on to where the leader wants it RUNNING; False when it was stopped on the way."""
        if self._needs is None:
            self._needs = self._around.preparation.needs(self.task)
            self._around.records.write_task(self.task, self._needs)
        self._step(types.TASK_STATE_ACCEPTED, "accepted")
        if self._unwanted():
            self._end(types.TASK_STATE_SHUTDOWN, "stopped before it was prepared")
            return False
        self._step(types.TASK_STATE_PREPARING, "preparing")
        self.prepared = await self._unless_unwanted(self._prepare())
        if self.prepared is None:
            self._end(types.TASK_STATE_SHUTDOWN, "stopped while it was being prepared")
            return False
        self._step(types.TASK_STATE_READY, "ready to start")
        while self.task.desired_state < types.TASK_STATE_RUNNING:
            self._desired_changed.clear()
            await self._desired_changed.wait()
        if self._unwanted():
            self._end(types.TASK_STATE_SHUTDOWN, "stopped before it was started")
            return False
        return True

    async def _prepare(self) -> Prepared:
        # What was remembered with the task, not what is held now: a new agent holds nothing before the leader speaks,
        # and what the first try made must be found unchanged.
        assert self._needs is not None
        return await self._around.preparation.prepare(self.task, self._needs)

    async def _start(self) -> None:
        assert self.prepared is not None
        self._step(types.TASK_STATE_STARTING, "starting")
        # From here on the agent must find out about the container after its own death, whatever the leader knew.
        self._around.records.write_status(self.task.id, self.status)
        await self._start_container()

    def _was_about_to_start(self) -> bool:
        """Whether the agent died just before the runtime had the task.

        The record says so, and the runtime does not know the container: it remembers a container before it lets it run.
        """
        return self.status.state == types.TASK_STATE_STARTING and not self.status.container.container_id

    async def _start_container(self) -> None:
        assert self.prepared is not None
        try:
            started = await self._around.runtime.run(self.task.id, self.prepared.request)
        except LinkRefused as error:
            raise TaskFailure(f"cannot start: {error}", types.FAILURE_REASON_START) from error
        self._started = True
        self._warnings = started.warnings
        if started.exit is not None:
            self.container_ended(started.exit)
        self.status.container.CopyFrom(
            types.ContainerStatus(
                container_id=self.task.id, pid=started.pid, started_at_unix_ms=started.started_at_unix_ms or now_ms()
            )
        )

    async def _watch(self) -> None:
        """From the container's start to its end."""
        if self.prepared is None:
            self.prepared = await self._around.preparation.recall(self.task)
        if self.prepared.health is None:
            self._running("started")
        probing = asyncio.get_running_loop().create_task(self._probe_health())
        wanted = asyncio.get_running_loop().create_task(self._until_unwanted())
        try:
            waiting: set[asyncio.Future[Any]] = {self._exit, probing, wanted}
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self._exit in done:
                self._ended_by_itself(self._exit.result())
            elif probing in done:
                probing.result()
                await self._stop()
                raise TaskFailure(
                    f"unhealthy: {self.health.failing_streak} health checks in a row failed"
                    + (f": {self.health.last_output.strip()[-200:]}" if self.health.last_output.strip() else ""),
                    types.FAILURE_REASON_UNHEALTHY,
                )
            else:
                await self._stop()
                self._end(types.TASK_STATE_SHUTDOWN, "stopped")
        finally:
            probing.cancel()
            wanted.cancel()

    # ---- health ------------------------------------------------------------------------------------

    async def _probe_health(self) -> None:
        """Probes until the container is unhealthy; for ever when there is no health check."""
        assert self.prepared is not None
        plan = self.prepared.health
        if plan is None:
            await asyncio.get_running_loop().create_future()
            return
        if self.status.state >= types.TASK_STATE_RUNNING:
            self.health = HealthView(types.HEALTH_STATE_HEALTHY)
        while True:
            await asyncio.sleep(next_probe_in_s(plan, self.health, self._age_s()))
            if self._paused:
                continue
            age_s = self._age_s()
            try:
                probe = await self._around.runtime.execute(
                    self.task.id,
                    plan.command,
                    timeout_s=plan.timeout_s,
                    max_output_bytes=defaults.HEALTH_OUTPUT_BYTES,
                )
            except LinkLost:
                continue  # the runtime is being restarted: no answer is no failure
            except LinkRefused as error:
                passed, output = False, str(error)
            else:
                passed = probe.exit_code == 0 and not probe.timed_out
                output = probe.output if not probe.timed_out else f"no answer in {plan.timeout_s:g} s"
            before = self.health.state
            self.health = after_probe(plan, self.health, passed=passed, output=output, age_s=age_s)
            self._note_health()
            if self.health.state == types.HEALTH_STATE_UNHEALTHY:
                return
            if self.health.state == types.HEALTH_STATE_HEALTHY and before != types.HEALTH_STATE_HEALTHY:
                self._running("healthy")

    def _note_health(self) -> None:
        self.status.health.CopyFrom(
            types.HealthStatus(
                state=self.health.state,
                failing_streak=self.health.failing_streak,
                last_output=self.health.last_output,
                last_probe_unix_ms=now_ms(),
            )
        )

    def _age_s(self) -> float:
        return max(now_ms() - self.status.container.started_at_unix_ms, 0) / 1000

    # ---- stopping ----------------------------------------------------------------------------------

    def _unwanted(self) -> bool:
        return self.task.desired_state > types.TASK_STATE_RUNNING

    async def _until_unwanted(self) -> None:
        while not self._unwanted():
            self._desired_changed.clear()
            await self._desired_changed.wait()

    async def _unless_unwanted(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """Does the work, unless the task is no longer wanted before it is done."""
        doing = asyncio.get_running_loop().create_task(work)
        unwanted = asyncio.get_running_loop().create_task(self._until_unwanted())
        try:
            await asyncio.wait({doing, unwanted}, return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else None
        finally:
            unwanted.cancel()
            if not doing.done():
                doing.cancel()
                await asyncio.wait({doing})

    async def _stop(self) -> None:
        """Stop delay, stop signal, grace, SIGKILL; returns when the container has ended."""
        assert self.prepared is not None
        if self._needs is not None and self._unwanted():
            # An end that a later agent finds is then known to be a wanted one.
            self._around.records.write_task(self.task, self._needs)
        delay_s = self.prepared.stop_delay_s
        if delay_s and await self._ended_within(delay_s):
            return
        if self._paused:
            await self._thaw()
        await self._send_signal(self.prepared.stop_signal)
        if await self._ended_within(self.prepared.stop_grace_s):
            return
        while True:
            await self._send_signal(signal.SIGKILL)
            if await self._ended_within(KILL_WAIT_S):
                return
            self._log.warning("task.will_not_die", pid=self.status.container.pid)

    async def _thaw(self) -> None:
        """A frozen program cannot end by itself."""
        try:
            await self._around.runtime.resume(self.task.id)
        except (LinkRefused, LinkLost) as error:
            self._log.warning("task.not_thawed", why=str(error))

    async def _send_signal(self, number: int) -> None:
        try:
            await self._around.runtime.kill(self.task.id, number)
        except LinkRefused:
            return  # it has ended meanwhile
        except LinkLost as error:
            self._log.warning("task.signal_unsent", signal=number, why=str(error))

    async def _ended_within(self, seconds: float) -> bool:
        await asyncio.wait({self._exit}, timeout=seconds)
        if not self._exit.done():
            return False
        end = self._exit.result()
        self._note_exit(end)
        return True

    # ---- states ------------------------------------------------------------------------------------

    def _running(self, message: str) -> None:
        if self.status.state < types.TASK_STATE_RUNNING:
            # What was asked for and cannot be done here must not pass in silence.
            self._step(types.TASK_STATE_RUNNING, "; ".join((message, *self._warnings)))
            self._around.records.write_status(self.task.id, self.status)

    def _ended_by_itself(self, end: ContainerExit) -> None:
        self._note_exit(end)
        if end.oom_killed:
            raise TaskFailure(
                "out of memory: the container reached its memory limit and was killed; raise "
                "deploy.resources.limits.memory or use less",
                types.FAILURE_REASON_OOM,
            )
        if end.code is None:
            raise TaskFailure("the container ended; how is not known", types.FAILURE_REASON_LOST)
        if end.code != 0:
            reason = types.FAILURE_REASON_SIGNAL if end.code > 128 else types.FAILURE_REASON_EXIT_CODE
            raise TaskFailure(f"task: non-zero exit ({end.code})", reason)
        self._end(types.TASK_STATE_COMPLETE, "finished")

    def _note_exit(self, end: ContainerExit) -> None:
        if end.code is not None:
            self.status.container.exit_code = end.code
        self.status.container.oom_killed = end.oom_killed
        self.status.container.finished_at_unix_ms = end.finished_at_unix_ms or now_ms()

    def _end_badly(self, failure: TaskFailure) -> None:
        failed = self.status.state >= types.TASK_STATE_STARTING
        state = types.TASK_STATE_FAILED if failed else types.TASK_STATE_REJECTED
        self.status.error = str(failure)
        self.status.reason = failure.reason
        self._end(state, "failed" if failed else "rejected")

    def _end(self, state: types.TaskState.ValueType, message: str) -> None:
        # Sent before the leader is told, so that whoever gets the address next attaches after this.
        self._around.preparation.release_network(self.task)
        self._step(state, message)
        if self._around.records.folder(self.task.id).exists():
            self._around.records.write_status(self.task.id, self.status)

    def _step(self, state: types.TaskState.ValueType, message: str) -> None:
        assert state > self.status.state, "observed state only grows"
        self.status.state = state
        self.status.message = message
        self.status.timestamp_unix_ms = now_ms()
        self.status.applied_by = self._around.node_id
        # The leader's audit log has every step of every task; here an operator wants to see what came of it.
        tell = self._log.info if state >= types.TASK_STATE_RUNNING else self._log.debug
        name = types.TaskState.Name(state).removeprefix("TASK_STATE_").lower()
        tell("task.state", state=name, message=message, error=self.status.error)
        self._report()

    def _report(self) -> None:
        snapshot = types.TaskStatus()
        snapshot.CopyFrom(self.status)
        self._around.report(self.task.id, snapshot)

    async def _clean_up(self) -> None:
        """Removes container and root file system; log and record stay until the leader forgets the task."""
        for attempt in range(5):
            try:
                await self._around.runtime.delete(self.task.id)
                break
            except LinkLost:
                continue
            except LinkRefused as error:
                self._log.warning("container.not_deleted", why=str(error), attempt=attempt)
                await asyncio.sleep(0.2 * (attempt + 1))
        await self._around.preparation.release(self.task)
        self.is_put_away = True
