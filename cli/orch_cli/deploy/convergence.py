"""How far a stack has come: a pure function of its services and tasks.

A service has converged when as many tasks as it wants are RUNNING with its current specification, no older task is
still wanted, and no update is under way (SwarmKit's definition, ``design/task_model.md``).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from orch_cli.output.tasks import state_word, task_name
from orch_proto.objects_pb2 import Service, Task
from orch_proto.specs_pb2 import TaskSpec
from orch_proto.types_pb2 import HealthState, RestartCondition, TaskState, UpdateState

NO_NODE = "no suitable node"


class Verdict(enum.Enum):
    """Where one service stands."""

    CONVERGED = "converged"
    WORKING = "working"
    UNPLACED = "unplaced"  # everything that is missing waits for a node
    ROLLING_BACK = "rolling back"
    PAUSED = "paused"
    ROLLED_BACK = "rolled back"
    FAILED = "failed"  # what is missing will not be tried again


@dataclass(frozen=True, slots=True)
class ServiceProgress:
    """One service.

    Args:
        name: its full name.
        wanted: how many tasks it shall have.
        running: how many run with the current specification.
        restarts: failed tasks that came before the present ones, in a row.
        verdict: where it stands.
        reason: the worst thing to know, a sentence; empty when all is well.
        failing_task: id of the task behind the reason when it failed; its output is worth a look.
    """

    name: str
    wanted: int
    running: int
    restarts: int
    verdict: Verdict
    reason: str = ""
    failing_task: str = ""


_BY_UPDATE: Final = {
    UpdateState.UPDATE_STATE_ROLLBACK_COMPLETED: Verdict.ROLLED_BACK,
    UpdateState.UPDATE_STATE_PAUSED: Verdict.PAUSED,
    UpdateState.UPDATE_STATE_ROLLBACK_PAUSED: Verdict.PAUSED,
    UpdateState.UPDATE_STATE_ROLLBACK_STARTED: Verdict.ROLLING_BACK,
}


def is_current(task: Task, service: Service) -> bool:
    """Whether a task runs what its service wants; a change of replicas, labels or placement outdates no task."""
    if task.spec_version == service.spec_version:
        return True
    mine, wanted = TaskSpec(), TaskSpec()
    mine.CopyFrom(task.spec)
    wanted.CopyFrom(service.spec.task)
    mine.ClearField("placement")
    wanted.ClearField("placement")
    return mine == wanted


def evaluate_service(service: Service, tasks: Iterable[Task]) -> ServiceProgress:
    """How far one service has come; ``tasks`` are all of its tasks, old ones too."""
    live: list[Task] = []
    ended: list[Task] = []
    for task in tasks:
        (live if task.desired_state <= TaskState.TASK_STATE_RUNNING else ended).append(task)
    current = [task for task in live if is_current(task, service)]
    running = sum(
        task.status.state == TaskState.TASK_STATE_RUNNING and task.desired_state == TaskState.TASK_STATE_RUNNING
        for task in current
    )
    wanted = service.spec.mode.replicated.replicas
    done, given_up = _left_alone(service, live, ended)
    reason, failing = _worst(service, live, ended)
    if given_up and not reason:
        last = max(given_up, key=lambda task: task.status.timestamp_unix_ms)
        why = last.status.error or state_word(last.status.state)
        reason, failing = f"{_short_name(last)} failed: {why}; its restart policy allows no further try", last.id
    return ServiceProgress(
        name=service.spec.annotations.name,
        wanted=wanted,
        running=running,
        restarts=sum(task.restart_count for task in current),
        verdict=_verdict(service, live, current, running, wanted, done=len(done), given_up=len(given_up)),
        reason=reason,
        failing_task=failing,
    )


def _left_alone(service: Service, live: list[Task], ended: list[Task]) -> tuple[list[Task], list[Task]]:
    """Ended tasks that the restart policy does not replace: those that did their work, and those that failed."""
    policy = service.spec.task.restart
    occupied = {(task.slot, task.node_id if not task.slot else "") for task in live}
    by_slot: dict[tuple[int, str], list[Task]] = {}
    for task in ended:
        slot = (task.slot, task.node_id if not task.slot else "")
        if slot not in occupied and is_current(task, service):
            by_slot.setdefault(slot, []).append(task)
    done, given_up = [], []
    for tasks in by_slot.values():
        last = max(tasks, key=lambda task: task.status.timestamp_unix_ms)
        never_again = policy.condition == RestartCondition.RESTART_CONDITION_NONE
        if last.status.state == TaskState.TASK_STATE_COMPLETE:
            if never_again or policy.condition == RestartCondition.RESTART_CONDITION_ON_FAILURE:
                done.append(last)
        elif last.status.state in (TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_REJECTED) and (
            never_again or 0 < policy.max_attempts < len(tasks)
        ):
            given_up.append(last)
    return done, given_up


def _verdict(
    service: Service,
    live: list[Task],
    current: list[Task],
    running: int,
    wanted: int,
    *,
    done: int,
    given_up: int,
) -> Verdict:
    state = service.update_status.state
    if state in _BY_UPDATE:
        return _BY_UPDATE[state]
    missing = [task for task in live if task.status.state < TaskState.TASK_STATE_RUNNING]
    settled = len(live) == len(current) == running and state != UpdateState.UPDATE_STATE_UPDATING
    if settled and running <= wanted <= running + done:
        return Verdict.CONVERGED
    if settled and given_up and running <= wanted <= running + done + given_up:
        return Verdict.FAILED
    if missing and all(is_unplaced(task) for task in missing) and len(live) >= wanted:
        return Verdict.UNPLACED
    return Verdict.WORKING


def is_unplaced(task: Task) -> bool:
    """Whether the scheduler found no node for a task, and said so."""
    status = task.status
    return status.state == TaskState.TASK_STATE_PENDING and (
        NO_NODE in status.message or NO_NODE in status.error or bool(status.error)
    )


def _worst(service: Service, live: list[Task], ended: list[Task]) -> tuple[str, str]:
    """The most useful sentence about a service, and the id of the failed task behind it."""
    if service.update_status.state in (
        UpdateState.UPDATE_STATE_PAUSED,
        UpdateState.UPDATE_STATE_ROLLBACK_STARTED,
        UpdateState.UPDATE_STATE_ROLLBACK_PAUSED,
        UpdateState.UPDATE_STATE_ROLLBACK_COMPLETED,
    ):
        failed = _newest_failure(ended, None)
        return service.update_status.message or "the update did not succeed", failed.id if failed else ""
    waiting = [task for task in live if task.status.state != TaskState.TASK_STATE_RUNNING]
    if not waiting:
        return "", ""
    slots = {(task.slot, task.node_id if not task.slot else "") for task in waiting}
    failed = _newest_failure([*live, *ended], slots)
    if failed is not None:
        why = failed.status.error or failed.status.message or state_word(failed.status.state)
        return f"{_short_name(failed)} {state_word(failed.status.state)}: {why}", failed.id
    task = max(waiting, key=_trouble)
    why = task.status.error or task.status.message or state_word(task.status.state)
    if task.status.health.state == HealthState.HEALTH_STATE_UNHEALTHY:
        why = f"unhealthy: {task.status.health.last_output.strip() or why}"
    elif task.status.state == TaskState.TASK_STATE_STARTING and task.status.health.failing_streak:
        output = task.status.health.last_output.strip()
        why = f"the health check failed {task.status.health.failing_streak} times" + (f": {output}" if output else "")
    return f"{_short_name(task)}: {why}", ""


def _trouble(task: Task) -> tuple[bool, bool, int]:
    """Orders waiting tasks: errors first, then unplaced ones, then the one least far."""
    return bool(task.status.error), is_unplaced(task), -task.status.state


def _newest_failure(tasks: Iterable[Task], slots: set[tuple[int, str]] | None) -> Task | None:
    """The newest failed task of the given slots (None: of any)."""
    failures = [
        task
        for task in tasks
        if task.status.state in (TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_REJECTED)
        and (slots is None or (task.slot, task.node_id if not task.slot else "") in slots)
    ]
    return max(failures, key=lambda task: task.status.timestamp_unix_ms, default=None)


def _short_name(task: Task) -> str:
    """``web.2``: inside a stack's progress its name would only be noise."""
    name = task_name(task)
    stack = task.service_labels.get("com.docker.stack.namespace", "")
    return name.removeprefix(f"{stack}_") if stack else name


def evaluate_stack(services: Iterable[Service], tasks: Mapping[str, Iterable[Task]]) -> list[ServiceProgress]:
    """All services that are to stay, by name; ``tasks`` by service id."""
    wanted = [service for service in services if not service.pending_delete]
    ordered = sorted(wanted, key=lambda service: service.spec.annotations.name)
    return [evaluate_service(service, tasks.get(service.id, ())) for service in ordered]
