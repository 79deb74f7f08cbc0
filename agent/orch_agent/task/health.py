"""Health checks: when to probe and what the results mean, as a pure state machine.

The rules are Docker's (``HEALTHCHECK`` in the Dockerfile reference): a failure within the start period does not
count, one success ends the start period, ``retries`` failures in a row make the container unhealthy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from orch_agent.images.model import HealthCheck
from orch_proto import defaults
from orch_proto import types_pb2 as types


@dataclass(frozen=True, slots=True)
class HealthPlan:
    """A health check with every default filled in; times in seconds."""

    command: tuple[str, ...]
    interval_s: float
    timeout_s: float
    retries: int
    start_period_s: float
    start_interval_s: float


@dataclass(frozen=True, slots=True)
class HealthView:
    """What is known after the last probe."""

    state: types.HealthState.ValueType = types.HEALTH_STATE_STARTING
    failing_streak: int = 0
    last_output: str = ""


def plan_health(
    wanted: types.HealthConfig, image: HealthCheck | None, image_shell: tuple[str, ...] | None
) -> HealthPlan | None:
    """Merges a service's health check with its image's; None when there is none or it is switched off.

    A service that names times but no test keeps the image's test, as Docker does.
    """
    test = tuple(wanted.test) or (image.test if image else ())
    if not test or test[0] == "NONE":
        return None
    if test[0] == "CMD":
        command = test[1:]
    elif test[0] == "CMD-SHELL":
        command = (*(image_shell or ("/bin/sh", "-c")), *test[1:])
    else:
        command = test

    def seconds(field: str, from_image: float | None, default_ms: int) -> float:
        if wanted.HasField(field):  # type: ignore[arg-type]  # the names below are fields
            return float(getattr(wanted, field)) / 1000
        return from_image if from_image is not None else default_ms / 1000

    return HealthPlan(
        command=command,
        interval_s=seconds("interval_ms", image.interval_s if image else None, defaults.HEALTH_INTERVAL_MS),
        timeout_s=seconds("timeout_ms", image.timeout_s if image else None, defaults.HEALTH_TIMEOUT_MS),
        retries=(
            wanted.retries
            if wanted.HasField("retries")
            else (image.retries if image else None) or defaults.HEALTH_RETRIES
        )
        or 1,
        start_period_s=seconds(
            "start_period_ms", image.start_period_s if image else None, defaults.HEALTH_START_PERIOD_MS
        ),
        start_interval_s=seconds(
            "start_interval_ms", image.start_interval_s if image else None, defaults.HEALTH_START_INTERVAL_MS
        ),
    )


def after_probe(plan: HealthPlan, view: HealthView, *, passed: bool, output: str, age_s: float) -> HealthView:
    """What is known after a probe.

    Args:
        plan: the check.
        view: what was known before it.
        passed: the probe ended with exit code 0 in time.
        output: what it printed.
        age_s: how long the container had been running when the probe was started.
    """
    output = output[-defaults.HEALTH_OUTPUT_BYTES :]
    if passed:
        return HealthView(types.HEALTH_STATE_HEALTHY, 0, output)
    if view.state == types.HEALTH_STATE_STARTING and age_s < plan.start_period_s:
        return replace(view, last_output=output)
    streak = view.failing_streak + 1
    if streak >= plan.retries:
        return HealthView(types.HEALTH_STATE_UNHEALTHY, streak, output)
    return HealthView(view.state, streak, output)


def next_probe_in_s(plan: HealthPlan, view: HealthView, age_s: float) -> float:
    """How long to wait before the next probe, counted from the end of the last one (or from the start).

    The first probe of Docker comes one interval after the start, which keeps every new task waiting for no reason;
    here the first one comes at once after a tenth of the interval, at most a second, and until the first success
    probes follow at the start interval if that is shorter.
    """
    if view.state == types.HEALTH_STATE_STARTING:
        quick_s = min(plan.interval_s, plan.start_interval_s)
        if view.failing_streak == 0 and view.last_output == "" and age_s < 1.0:
            return min(quick_s / 10, 1.0)
        if age_s < plan.start_period_s:
            return quick_s
    return plan.interval_s
