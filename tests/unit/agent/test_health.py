"""When to probe a container and what the results mean."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from orch_agent.images.model import HealthCheck
from orch_agent.task.health import HealthPlan, HealthView, after_probe, next_probe_in_s, plan_health
from orch_proto import defaults
from orch_proto import types_pb2 as types

PLAN = HealthPlan(command=("true",), interval_s=30, timeout_s=30, retries=3, start_period_s=0, start_interval_s=5)


def probe(view: HealthView, *, passed: bool, age_s: float = 100.0, plan: HealthPlan = PLAN) -> HealthView:
    return after_probe(plan, view, passed=passed, output="", age_s=age_s)


def test_retries_failures_in_a_row_make_a_container_unhealthy() -> None:
    """Two failures are forgiven, the third one in a row counts, and a success in between starts anew."""
    view = HealthView(types.HEALTH_STATE_HEALTHY)
    view = probe(probe(view, passed=False), passed=False)
    assert view.state == types.HEALTH_STATE_HEALTHY
    view = probe(view, passed=True)
    view = probe(probe(view, passed=False), passed=False)
    assert view.state == types.HEALTH_STATE_HEALTHY
    assert probe(view, passed=False).state == types.HEALTH_STATE_UNHEALTHY


def test_failures_within_the_start_period_do_not_count() -> None:
    """A container may fail as often as it likes in its start period, and one success ends it."""
    plan = replace(PLAN, start_period_s=60)
    view = HealthView()
    for _ in range(10):
        view = probe(view, passed=False, age_s=10, plan=plan)
    assert view.state == types.HEALTH_STATE_STARTING
    assert view.failing_streak == 0
    view = probe(view, passed=True, age_s=11, plan=plan)
    assert view.state == types.HEALTH_STATE_HEALTHY
    for _ in range(3):
        view = probe(view, passed=False, age_s=12, plan=plan)
    assert view.state == types.HEALTH_STATE_UNHEALTHY


@given(results=st.lists(st.booleans(), max_size=30), retries=st.integers(1, 5))
def test_unhealthy_exactly_when_the_last_retries_results_are_failures(results: list[bool], retries: int) -> None:
    """Outside a start period the state follows from the results alone."""
    plan = replace(PLAN, retries=retries)
    view = HealthView()
    for index, passed in enumerate(results):
        view = probe(view, passed=passed, plan=plan)
        recent = results[max(0, index + 1 - retries) : index + 1]
        failed = len(recent) == retries and not any(recent)
        assert (view.state == types.HEALTH_STATE_UNHEALTHY) == failed


def test_the_output_of_a_probe_is_bounded() -> None:
    """No more than the last 4096 characters of a probe's output are kept."""
    view = after_probe(PLAN, HealthView(), passed=False, output="x" * 100_000 + "end", age_s=1)
    assert len(view.last_output) == defaults.HEALTH_OUTPUT_BYTES
    assert view.last_output.endswith("end")


def test_the_services_check_wins_over_the_images() -> None:
    """A service's test replaces the image's; its times alone keep the image's test; NONE switches both off."""
    image = HealthCheck(test=("CMD", "/image-check"), interval_s=7.0, retries=5)
    own = plan_health(types.HealthConfig(test=["CMD-SHELL", "exit 0"]), image, None)
    assert own is not None
    assert own.command == ("/bin/sh", "-c", "exit 0")
    times = plan_health(types.HealthConfig(interval_ms=1500), image, None)
    assert times is not None
    assert (times.command, times.interval_s, times.retries) == (("/image-check",), 1.5, 5)
    assert plan_health(types.HealthConfig(test=["NONE"]), image, None) is None
    assert plan_health(types.HealthConfig(), None, None) is None


def test_a_new_container_is_probed_soon() -> None:
    """The first probe does not wait for a whole interval, so a task that is healthy at once is RUNNING at once."""
    assert next_probe_in_s(PLAN, HealthView(), 0.0) <= 1.0
    assert next_probe_in_s(PLAN, HealthView(types.HEALTH_STATE_HEALTHY), 50.0) == PLAN.interval_s
