"""When a deploy may call a stack converged."""

from __future__ import annotations

import pytest

from orch_cli.deploy.wait import PROVEN_AFTER_S, unproven_for_s
from orch_proto import types_pb2 as types
from orch_proto.objects_pb2 import Task

NOW_S = 1_000_000.0


def running(age_s: float, health: types.HealthState.ValueType = types.HEALTH_STATE_NONE) -> Task:
    return Task(
        status=types.TaskStatus(
            state=types.TASK_STATE_RUNNING,
            timestamp_unix_ms=round((NOW_S - age_s) * 1000),
            health=types.HealthStatus(state=health),
        )
    )


def test_a_task_without_a_health_check_must_run_a_moment() -> None:
    """The youngest such task decides how long is still to be waited."""
    tasks = [running(10.0), running(0.2), running(0.4)]
    assert unproven_for_s(tasks, NOW_S) == pytest.approx(PROVEN_AFTER_S - 0.2)


def test_a_healthy_task_has_proved_itself() -> None:
    """What a health check has found healthy is not waited for, nor what is not running at all."""
    ended = Task(status=types.TaskStatus(state=types.TASK_STATE_FAILED, timestamp_unix_ms=round(NOW_S * 1000)))
    assert unproven_for_s([running(0.0, types.HEALTH_STATE_HEALTHY), ended], NOW_S) <= 0
    assert unproven_for_s([], NOW_S) == 0


def test_clocks_that_differ_do_not_prolong_the_wait() -> None:
    """A node whose clock is an hour ahead makes a deploy wait no longer than a task that has started just now."""
    assert unproven_for_s([running(-3600.0)], NOW_S) == PROVEN_AFTER_S
