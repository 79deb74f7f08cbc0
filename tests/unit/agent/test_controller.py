"""The life of one task, with a scripted runtime in place of the real one."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from orch_agent.errors import TaskFailure
from orch_agent.runtime import ContainerExit, ContainerView
from orch_agent.task.controller import now_ms
from orch_agent.task.health import HealthPlan
from orch_agent.task.needs import Needs
from orch_agent.task.record import Records
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types
from unit.agent.scripted import ScriptedPreparation, ScriptedRuntime, make_life, play


def test_a_program_that_ends_well_completes_its_task(tmp_path: Path) -> None:
    """Every state is reported once and in order, and what the task used is given back."""

    async def scenario() -> None:
        life = make_life(tmp_path)
        living = asyncio.create_task(life.controller.run())
        await life.until(types.TASK_STATE_RUNNING)
        life.runtime.end(0)
        await living
        assert life.states == ["ACCEPTED", "PREPARING", "READY", "STARTING", "RUNNING", "COMPLETE"]
        assert life.reported[-1].container.exit_code == 0
        assert (life.runtime.deleted, life.preparation.released, life.preparation.detached) == (1, 1, 1)
        assert life.controller.is_put_away

    play(scenario)


@pytest.mark.parametrize(
    ("code", "oom_killed", "reason", "words"),
    [
        (3, False, types.FAILURE_REASON_EXIT_CODE, "non-zero exit (3)"),
        (137, False, types.FAILURE_REASON_SIGNAL, "non-zero exit (137)"),
        (137, True, types.FAILURE_REASON_OOM, "out of memory"),
        (None, False, types.FAILURE_REASON_LOST, "not known"),
    ],
)
def test_how_a_program_failed_is_told(
    tmp_path: Path,
    code: int | None,
    oom_killed: bool,  # noqa: FBT001 -- a parameter of the test
    reason: types.FailureReason.ValueType,
    words: str,
) -> None:
    """A failed task carries its exit code, its reason and a sentence."""

    async def scenario() -> None:
        life = make_life(tmp_path)
        living = asyncio.create_task(life.controller.run())
        await life.until(types.TASK_STATE_RUNNING)
        life.runtime.end(code, oom_killed=oom_killed)
        await living
        last = life.reported[-1]
        assert last.state == types.TASK_STATE_FAILED
        assert last.reason == reason
        assert words in last.error
        assert last.container.HasField("exit_code") == (code is not None)

    play(scenario)


def test_a_task_waits_in_ready_until_it_is_wanted(tmp_path: Path) -> None:
    """A replacement whose delay is not over is prepared and not started."""

    async def scenario() -> None:
        life = make_life(tmp_path, desired=types.TASK_STATE_READY)
        living = asyncio.create_task(life.controller.run())
        await life.until(types.TASK_STATE_READY)
        for _ in range(50):
            await asyncio.sleep(0)
        assert life.runtime.runs == 0
        life.want(types.TASK_STATE_RUNNING)
        await life.until(types.TASK_STATE_RUNNING)
        assert life.runtime.runs == 1
        life.runtime.end(0)
        await living

    play(scenario)


def test_a_task_that_is_stopped_gets_its_signal_and_ends_as_shutdown(tmp_path: Path) -> None:
    """A wanted end is no failure, whatever the exit code."""

    async def scenario() -> None:
        life = make_life(tmp_path)
        living = asyncio.create_task(life.controller.run())
        await life.until(types.TASK_STATE_RUNNING)
        life.want(types.TASK_STATE_SHUTDOWN)
        await living
        assert life.runtime.signals == [signal.SIGTERM]
        assert life.states[-1] == "SHUTDOWN"
        assert life.reported[-1].container.exit_code == 143

    play(scenario)


def test_a_program_that_ignores_its_signal_is_killed_after_the_grace(tmp_path: Path) -> None:
    """SIGKILL follows when the grace period is over."""

    async def scenario() -> None:
        runtime = ScriptedRuntime(ends_on=(signal.SIGKILL,))
        life = make_life(tmp_path, runtime=runtime, preparation=ScriptedPreparation(grace_s=0.01))
        living = asyncio.create_task(life.controller.run())
        await life.until(types.TASK_STATE_RUNNING)
        life.want(types.TASK_STATE_SHUTDOWN)
        await living
        assert runtime.signals == [signal.SIGTERM, signal.SIGKILL]

    play(scenario)


def test_a_task_stopped_while_it_is_prepared_never_starts(tmp_path: Path) -> None:
    """Preparation is broken off, and what it made is released."""

    async def scenario() -> None:
        life = make_life(tmp_path, preparation=ScriptedPreparation(never=True))
        living = asyncio.create_task(life.controller.run())
        await life.until(types.TASK_STATE_PREPARING)
        life.want(types.TASK_STATE_REMOVE)
        await living
        assert life.runtime.runs == 0
        assert life.states[-1] == "SHUTDOWN"
        assert life.preparation.released == 1

    play(scenario)


def test_what_fails_before_the_start_is_rejected_and_what_fails_in_it_is_failed(tmp_path: Path) -> None:
    """A missing image rejects a task; a program that cannot be executed fails it. Both say why."""

    async def scenario() -> None:
        missing = TaskFailure("image web:1 is not on this node", types.FAILURE_REASON_IMAGE)
        life = make_life(tmp_path / "a", preparation=ScriptedPreparation(failure=missing))
        await life.controller.run()
        assert life.states[-1] == "REJECTED"
        assert life.reported[-1].error == str(missing)
        life = make_life(tmp_path / "b", runtime=ScriptedRuntime(refuses="exec /nope: no such file"))
        await life.controller.run()
        assert life.states[-1] == "FAILED"
        assert "exec /nope" in life.reported[-1].error
        assert life.reported[-1].reason == types.FAILURE_REASON_START

    play(scenario)


def test_a_task_with_a_health_check_runs_when_it_is_healthy(tmp_path: Path) -> None:
    """It stays in STARTING until the first success; turning unhealthy stops it and counts as a failure."""
    plan = HealthPlan(("check",), 0.01, 1.0, 2, 5.0, 0.01)

    async def scenario() -> None:
        runtime = ScriptedRuntime(probes=[1, 1, 0, 1])
        life = make_life(tmp_path, runtime=runtime, preparation=ScriptedPreparation(health=plan))
        await life.controller.run()
        assert life.states == ["ACCEPTED", "PREPARING", "READY", "STARTING", "RUNNING", "FAILED"]
        last = life.reported[-1]
        assert last.reason == types.FAILURE_REASON_UNHEALTHY
        assert "probe said 1" in last.error
        assert last.health.state == types.HEALTH_STATE_UNHEALTHY
        assert runtime.signals == [signal.SIGTERM]

    play(scenario)


def test_a_running_container_is_found_again(tmp_path: Path) -> None:
    """After a restart of the agent the container is watched on, not started again, and its end is reported."""

    async def scenario() -> None:
        recorded = types.TaskStatus(state=types.TASK_STATE_RUNNING)
        found = ContainerView("t1", 4711, now_ms(), None)
        life = make_life(tmp_path, recorded=recorded, found=found)
        living = asyncio.create_task(life.controller.run())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not living.done()
        life.runtime.end(7)
        await living
        assert life.runtime.runs == 0
        assert life.states == ["FAILED"]
        assert life.reported[-1].container.exit_code == 7

    play(scenario)


def test_a_container_that_ended_meanwhile_keeps_its_exit_code(tmp_path: Path) -> None:
    """What ended while there was no agent is reported with the code that the runtime kept."""

    async def scenario() -> None:
        recorded = types.TaskStatus(state=types.TASK_STATE_RUNNING)
        found = ContainerView("t1", 4711, now_ms(), ContainerExit(9, oom_killed=False, finished_at_unix_ms=now_ms()))
        life = make_life(tmp_path, recorded=recorded, found=found)
        await life.controller.run()
        assert life.states == ["FAILED"]
        assert life.reported[-1].container.exit_code == 9

    play(scenario)


@pytest.mark.parametrize("from_record", [True, False])
def test_a_task_is_never_started_twice(tmp_path: Path, from_record: bool) -> None:  # noqa: FBT001 -- as above
    """A task whose container had been started and is gone is lost, whoever remembers it."""

    async def scenario() -> None:
        if from_record:
            started = types.ContainerStatus(container_id="t", pid=7)
            life = make_life(tmp_path, recorded=types.TaskStatus(state=types.TASK_STATE_RUNNING, container=started))
        else:
            life = make_life(tmp_path, known=types.TASK_STATE_RUNNING)
        await life.controller.run()
        assert life.runtime.runs == 0
        assert life.reported[-1].reason == types.FAILURE_REASON_LOST
        assert life.states == ["FAILED"]

    play(scenario)


def test_a_start_that_never_reached_the_runtime_is_made_up_for(tmp_path: Path) -> None:
    """A task that was about to start when the agent died is started: the runtime never had it."""

    async def scenario() -> None:
        life = make_life(tmp_path, recorded=types.TaskStatus(state=types.TASK_STATE_STARTING))
        living = asyncio.get_running_loop().create_task(life.controller.run())
        while "RUNNING" not in life.states:  # noqa: ASYNC110 -- the controller tells nobody else
            await asyncio.sleep(0)
        assert life.states == ["RUNNING"]
        assert life.runtime.runs == 1
        living.cancel()
        await asyncio.wait({living})

    play(scenario)


def test_a_final_status_is_told_again_after_a_restart(tmp_path: Path) -> None:
    """A task that had ended before the agent died is reported once more, and its address is given back for certain."""

    async def scenario() -> None:
        recorded = types.TaskStatus(state=types.TASK_STATE_COMPLETE)
        life = make_life(tmp_path, recorded=recorded)
        await life.controller.run()
        assert life.states == ["COMPLETE"]
        assert (life.runtime.runs, life.runtime.deleted, life.preparation.detached) == (0, 1, 1)

    play(scenario)


def test_desired_state_never_goes_back(tmp_path: Path) -> None:
    """An assignment with a lower desired state than the one held is ignored."""

    async def scenario() -> None:
        life = make_life(tmp_path)
        living = asyncio.create_task(life.controller.run())
        await life.until(types.TASK_STATE_RUNNING)
        life.want(types.TASK_STATE_SHUTDOWN)
        life.want(types.TASK_STATE_RUNNING)
        await living
        assert life.states[-1] == "SHUTDOWN"

    play(scenario)


@pytest.mark.parametrize("state", [types.TASK_STATE_ASSIGNED, types.TASK_STATE_STARTING])
def test_a_start_is_finished_with_what_was_remembered(tmp_path: Path, state: types.TaskState.ValueType) -> None:
    """A task whose start the agent's death broke off is prepared again with its own networks and secrets.

    The new agent holds nothing yet: the leader has not spoken.
    """

    async def scenario() -> None:
        remembered = Needs(networks={"n": objects.Network(id="n")}, secrets={"s": objects.Secret(id="s")})
        life = make_life(tmp_path, recorded=types.TaskStatus(state=state), remembered=remembered)
        living = asyncio.get_running_loop().create_task(life.controller.run())
        await life.until(types.TASK_STATE_RUNNING)
        assert life.preparation.prepared_with == [remembered]
        living.cancel()
        await asyncio.wait({living})

    play(scenario)


def test_a_wanted_end_that_the_agent_did_not_live_to_see_is_no_failure(tmp_path: Path) -> None:
    """A container that was asked to stop, and ended while there was no agent, is reported as stopped."""

    async def scenario() -> None:
        runtime = ScriptedRuntime(ends_on=())
        life = make_life(tmp_path, runtime=runtime)
        living = asyncio.create_task(life.controller.run())
        await life.until(types.TASK_STATE_RUNNING)
        life.want(types.TASK_STATE_SHUTDOWN)
        while not runtime.signals:  # noqa: ASYNC110 -- nobody is told
            await asyncio.sleep(0)
        living.cancel()
        await asyncio.wait({living})
        end = ContainerExit(143, oom_killed=False, finished_at_unix_ms=now_ms())
        next_life = make_life(
            tmp_path, record=Records(tmp_path).load()[0], found=ContainerView("t1", 4711, now_ms(), end)
        )
        await next_life.controller.run()
        assert next_life.states == ["SHUTDOWN"]
        assert next_life.reported[-1].container.exit_code == 143

    play(scenario)
