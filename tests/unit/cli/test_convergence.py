"""When a stack has converged, and what is said while it has not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_cli.deploy.convergence import ServiceProgress, Verdict, evaluate_service, evaluate_stack
from orch_cli.deploy.wait import is_stuck, judge
from orch_proto.objects_pb2 import Service, Task
from orch_proto.types_pb2 import HealthState, RestartCondition, TaskState, UpdateState

PENDING, STARTING, RUNNING = TaskState.TASK_STATE_PENDING, TaskState.TASK_STATE_STARTING, TaskState.TASK_STATE_RUNNING
SHUTDOWN, FAILED = TaskState.TASK_STATE_SHUTDOWN, TaskState.TASK_STATE_FAILED
NO_NODE = "no suitable node (insufficient memory on 1 node)"


def make_service(replicas: int = 2, image: str = "web:1", version: int = 5, **fields: Any) -> Service:
    service = Service(id="s", spec_version=version, **fields)
    service.spec.annotations.name = "shop_web"
    service.spec.mode.replicated.replicas = replicas
    service.spec.task.container.image = image
    return service


def make_task(
    service: Service, slot: int, state: TaskState.ValueType, desired: TaskState.ValueType = RUNNING, **status: Any
) -> Task:
    task = Task(
        id=f"t{slot}-{state}-{desired}",
        service_id=service.id,
        service_name="shop_web",
        slot=slot,
        spec=service.spec.task,
        spec_version=service.spec_version,
        desired_state=desired,
    )
    task.service_labels["com.docker.stack.namespace"] = "shop"
    task.status.state = state
    for name, value in status.items():
        setattr(task.status, name, value)
    return task


def test_converged_is_all_wanted_tasks_running() -> None:
    """A service has converged when each wanted task runs, and old ended tasks do not matter."""
    service = make_service()
    tasks = [make_task(service, 1, RUNNING), make_task(service, 2, RUNNING), make_task(service, 1, FAILED, SHUTDOWN)]
    assert evaluate_service(service, tasks) == ServiceProgress("shop_web", 2, 2, 0, Verdict.CONVERGED)
    assert evaluate_service(service, tasks[:1]).verdict is Verdict.WORKING


def test_a_program_that_did_its_work_counts_as_done() -> None:
    """A task that ended with 0 and is not restarted by its policy is no reason to wait for ever."""
    service = make_service()
    service.spec.task.restart.condition = RestartCondition.RESTART_CONDITION_ON_FAILURE
    tasks = [make_task(service, 1, RUNNING), make_task(service, 2, TaskState.TASK_STATE_COMPLETE, SHUTDOWN)]
    assert evaluate_service(service, tasks).verdict is Verdict.CONVERGED
    service.spec.task.restart.condition = RestartCondition.RESTART_CONDITION_ANY
    assert evaluate_service(service, tasks).verdict is Verdict.WORKING


def test_used_up_attempts_end_the_wait() -> None:
    """When no failed slot is tried again the service has failed, and the last failure is told."""
    service = make_service(1)
    service.spec.task.restart.max_attempts = 1
    failed = [
        make_task(service, 1, FAILED, SHUTDOWN, timestamp_unix_ms=moment, error=f"exit {moment}") for moment in (1, 2)
    ]
    assert evaluate_service(service, failed[:1]).verdict is Verdict.WORKING
    progress = evaluate_service(service, failed)
    assert progress.verdict is Verdict.FAILED
    assert "exit 2" in progress.reason
    assert progress.failing_task == failed[1].id
    assert judge([progress]) == 1
    assert evaluate_service(service, [*failed, make_task(service, 1, STARTING)]).verdict is Verdict.WORKING


def test_nothing_wanted_is_converged_once_nothing_is_left() -> None:
    """A service of no replicas has converged when no task is wanted any more."""
    service = make_service(0)
    assert evaluate_service(service, []).verdict is Verdict.CONVERGED
    assert evaluate_service(service, [make_task(service, 1, RUNNING)]).verdict is Verdict.WORKING


def test_tasks_of_an_older_specification_do_not_count() -> None:
    """A task with an older program is not up to date; a change of replicas, labels or placement outdates no task."""
    service = make_service(1)
    old = make_task(make_service(1, image="web:0", version=4), 1, RUNNING)
    assert evaluate_service(service, [old]).running == 0
    scaled = make_task(make_service(1, version=4), 1, RUNNING)
    scaled.spec.placement.constraints.append("node.role==worker")
    assert evaluate_service(service, [scaled]).verdict is Verdict.CONVERGED


def test_a_running_update_is_waited_for() -> None:
    """While an update is being watched over, the service has not converged; its end decides."""
    service = make_service(1)
    tasks = [make_task(service, 1, RUNNING)]
    expected = {
        UpdateState.UPDATE_STATE_UPDATING: Verdict.WORKING,
        UpdateState.UPDATE_STATE_COMPLETED: Verdict.CONVERGED,
        UpdateState.UPDATE_STATE_PAUSED: Verdict.PAUSED,
        UpdateState.UPDATE_STATE_ROLLBACK_STARTED: Verdict.ROLLING_BACK,
        UpdateState.UPDATE_STATE_ROLLBACK_PAUSED: Verdict.PAUSED,
        UpdateState.UPDATE_STATE_ROLLBACK_COMPLETED: Verdict.ROLLED_BACK,
    }
    for state, verdict in expected.items():
        service.update_status.state = state
        assert evaluate_service(service, tasks).verdict is verdict


def test_unplaced_means_that_all_that_is_missing_waits_for_a_node() -> None:
    """A service is stuck when every missing task lacks a node, not while another one is on its way."""
    service = make_service()
    waiting = make_task(service, 2, PENDING, message=NO_NODE)
    stuck = evaluate_service(service, [make_task(service, 1, RUNNING), waiting])
    assert (stuck.verdict, stuck.reason) == (Verdict.UNPLACED, f"web.2: {NO_NODE}")
    assert evaluate_service(service, [make_task(service, 1, STARTING), waiting]).verdict is Verdict.WORKING


def test_the_reason_is_the_newest_failure_of_a_slot_that_is_missing() -> None:
    """While a slot is not up, the failure of its last task is the reason, and its output worth showing."""
    service = make_service(1)
    tasks = [
        make_task(service, 1, STARTING),
        make_task(service, 1, FAILED, SHUTDOWN, error="task: non-zero exit (1)", timestamp_unix_ms=1),
        make_task(service, 1, FAILED, FAILED, error="task: non-zero exit (2)", timestamp_unix_ms=2),
    ]
    tasks[0].restart_count = 2
    progress = evaluate_service(service, tasks)
    assert progress.reason == "web.1 failed: task: non-zero exit (2)"
    assert progress.failing_task == tasks[2].id
    assert progress.restarts == 2


def test_failing_health_checks_are_told() -> None:
    """A task whose health check fails says so, with the check's output."""
    service = make_service(1)
    task = make_task(service, 1, STARTING)
    task.status.health.state = HealthState.HEALTH_STATE_STARTING
    task.status.health.failing_streak = 3
    task.status.health.last_output = "connection refused\n"
    assert evaluate_service(service, [task]).reason == "web.1: the health check failed 3 times: connection refused"


def progress(verdict: Verdict) -> ServiceProgress:
    return ServiceProgress("x", 1, 0, 0, verdict)


@pytest.mark.parametrize(
    ("verdicts", "status", "stuck"),
    [
        ([Verdict.CONVERGED, Verdict.CONVERGED], 0, False),
        ([], 0, False),
        ([Verdict.CONVERGED, Verdict.WORKING], None, False),
        ([Verdict.PAUSED, Verdict.CONVERGED], 3, False),
        ([Verdict.PAUSED, Verdict.WORKING], None, False),
        ([Verdict.ROLLED_BACK], 3, False),
        ([Verdict.ROLLING_BACK], None, False),
        ([Verdict.UNPLACED, Verdict.CONVERGED], None, True),
        ([Verdict.UNPLACED, Verdict.WORKING], None, False),
    ],
)
def test_a_deploy_ends_when_no_service_is_on_its_way(
    verdicts: list[Verdict],
    status: int | None,
    stuck: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    """The status of a deploy follows from all services together."""
    services = [progress(verdict) for verdict in verdicts]
    assert judge(services) == status
    assert is_stuck(services) is stuck


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from(TaskState.values()), st.sampled_from(TaskState.values())),
        max_size=12,
    )
)
def test_any_soup_of_tasks_is_judged(soup: list[tuple[int, TaskState.ValueType, TaskState.ValueType]]) -> None:
    """Whatever tasks there are, running ones are counted rightly, and converged means exactly the wanted number."""
    service = make_service(3)
    tasks = [make_task(service, slot, state, desired) for slot, state, desired in soup]
    (result,) = evaluate_stack([service], {service.id: tasks})
    assert result.running == sum(state == desired == RUNNING for _, state, desired in soup)
    if result.verdict is Verdict.CONVERGED:
        assert result.running == 3
        assert not result.reason
    else:
        assert result.verdict in (Verdict.WORKING, Verdict.UNPLACED)


def test_services_that_go_away_are_not_waited_for() -> None:
    """A service that is being removed is no part of the progress."""
    assert evaluate_stack([make_service(pending_delete=True)], {}) == []
