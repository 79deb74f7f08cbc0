"""Which slots of a service change to its new version next, and what becomes of an update that goes wrong. Pure.

Level-triggered: everything is read off the tasks and the service's update status, so that a new leader goes on where
the old one was. Semantics are Swarm's (SwarmKit: manager/orchestrator/update/updater.go) and a deadline: a slot that
does not run in time has failed.
"""

from __future__ import annotations

from dataclasses import dataclass

from orch_manager import tasks as states
from orch_manager.orchestrator.slots import Create, Decisions, SetDesired, Situation, Slots, wanted_replicas
from orch_proto import defaults
from orch_proto.objects_pb2 import Task
from orch_proto.types_pb2 import FailureAction, UpdateConfig, UpdateOrder, UpdateState

ROLLING = (UpdateState.UPDATE_STATE_UPDATING, UpdateState.UPDATE_STATE_ROLLBACK_STARTED)


@dataclass(frozen=True, slots=True)
class SetUpdateState:
    """A new update status for the service; `roll_back` puts the previous specification back as well."""

    state: UpdateState.ValueType
    message: str
    roll_back: bool = False


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far the slots of an update are."""

    outdated: list[int]
    in_flight: list[int]
    failed: list[int]
    settled: list[int]
    #: When the last slot came up, 0 before the first.
    last_up_ms: int


def config_in_force(situation: Situation) -> UpdateConfig:
    """The configuration of the update, or of the rollback while one is under way."""
    service = situation.service
    rolling_back = service.update_status.state in (
        UpdateState.UPDATE_STATE_ROLLBACK_STARTED,
        UpdateState.UPDATE_STATE_ROLLBACK_PAUSED,
    )
    return service.spec.rollback if rolling_back else service.spec.update


def _monitor_ms(config: UpdateConfig) -> int:
    return config.monitor_ms if config.HasField("monitor_ms") else defaults.UPDATE_MONITOR_MS


def _deadline_ms(config: UpdateConfig) -> int:
    return (
        config.progress_deadline_ms if config.HasField("progress_deadline_ms") else defaults.UPDATE_PROGRESS_DEADLINE_MS
    )


def _failed_in_update(task: Task, config: UpdateConfig, started_ms: int) -> bool:
    """True when a task of the new version failed, since the update began, before it had run for the monitored time."""
    if not states.failed(task) or task.status.timestamp_unix_ms < started_ms:
        return False
    started = task.status.container.started_at_unix_ms
    return not started or task.status.timestamp_unix_ms - started <= _monitor_ms(config)


def _up_since_ms(task: Task) -> int:
    return max(task.status.timestamp_unix_ms, task.status.container.started_at_unix_ms)


def _measure(slots: Slots, config: UpdateConfig, decisions: Decisions) -> _Progress:
    situation = slots.situation
    started_ms = situation.service.update_status.started_at_unix_ms
    progress = _Progress([], [], [], [], 0)
    last_up = 0
    for slot, tasks in sorted(slots.all.items()):
        live = slots.live.get(slot, [])
        fresh = [task for task in tasks if task.spec_version == situation.service.spec_version]
        current = [task for task in live if not slots.is_outdated(task)]
        running = [
            task for task in current if task.status.state == states.RUNNING and task.desired_state == states.RUNNING
        ]
        overdue = False
        if not running and fresh and current:
            first_ms = max(started_ms, min(task.meta.created_at_unix_ms or situation.now_ms for task in fresh))
            due_ms = first_ms + _deadline_ms(config)
            overdue = situation.now_ms >= due_ms
            if not overdue:
                decisions.wake_at(due_ms)
        if overdue or any(_failed_in_update(task, config, started_ms) for task in fresh):
            progress.failed.append(slot)
        if running:
            up_ms = max(_up_since_ms(task) for task in running)
            last_up = max(last_up, up_ms)
            made_now = any(task.meta.created_at_unix_ms >= started_ms for task in running)
            if made_now and situation.now_ms < up_ms + config.delay_ms:
                decisions.wake_at(up_ms + config.delay_ms)
                progress.in_flight.append(slot)
            else:
                progress.settled.append(slot)
        elif current:
            progress.in_flight.append(slot)
        elif live:
            progress.outdated.append(slot)
    return _Progress(progress.outdated, progress.in_flight, progress.failed, progress.settled, last_up)


def decide(situation: Situation) -> tuple[Decisions, SetUpdateState | None]:
    """What the update of a service needs done now; a change of its status is written before anything else."""
    slots, decisions = Slots(situation), Decisions()
    status = situation.service.update_status
    config = config_in_force(situation)
    progress = _measure(slots, config, decisions)
    if status.state in ROLLING:
        change = _judge(situation, config, progress, decisions)
        if change is not None:
            return Decisions(), change
    elif status.state in (UpdateState.UPDATE_STATE_PAUSED, UpdateState.UPDATE_STATE_ROLLBACK_PAUSED):
        return Decisions(), None
    parallelism = config.parallelism if config.HasField("parallelism") else defaults.UPDATE_PARALLELISM
    free = len(progress.outdated) if parallelism == 0 else max(0, int(parallelism) - len(progress.in_flight))
    running = {slot for slot in progress.outdated if any(t.status.state == states.RUNNING for t in slots.live[slot])}
    # What does not run anyway loses nothing by being first.
    for slot in sorted(progress.outdated, key=lambda each: (each in running, each))[:free]:
        _change_slot(slots, slot, config, decisions)
    return decisions, None


def _change_slot(slots: Slots, slot: int, config: UpdateConfig, decisions: Decisions) -> None:
    old = slots.live[slot]
    reason = "updated to the new version"
    if config.order == UpdateOrder.UPDATE_ORDER_START_FIRST and any(
        task.status.state == states.RUNNING for task in old
    ):
        decisions.actions.append(Create(slot, reason))
        return
    decisions.actions += [SetDesired(task, states.SHUTDOWN, reason) for task in old]
    stopped = all(states.is_stopped(task) for task in slots.all[slot])
    decisions.actions.append(Create(slot, reason, states.RUNNING if stopped else states.READY))


def _judge(
    situation: Situation, config: UpdateConfig, progress: _Progress, decisions: Decisions
) -> SetUpdateState | None:
    """The end of an update, good or bad; None while it goes on."""
    rolling_back = situation.service.update_status.state == UpdateState.UPDATE_STATE_ROLLBACK_STARTED
    total = max(1, wanted_replicas(situation.service))
    if progress.failed and len(progress.failed) / total > config.max_failure_ratio:
        change = _on_failure(situation, config, progress, rolling_back=rolling_back)
        if change is not None:
            return change
    if progress.outdated or progress.in_flight or len(progress.settled) < wanted_replicas(situation.service):
        return None
    since_ms = max(progress.last_up_ms, situation.service.update_status.started_at_unix_ms)
    end_ms = since_ms + _monitor_ms(config)
    if situation.now_ms < end_ms:
        decisions.wake_at(end_ms)
        return None
    if rolling_back:
        return SetUpdateState(UpdateState.UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed")
    return SetUpdateState(UpdateState.UPDATE_STATE_COMPLETED, "update completed")


def _on_failure(
    situation: Situation, config: UpdateConfig, progress: _Progress, *, rolling_back: bool
) -> SetUpdateState | None:
    action = config.failure_action or FailureAction.FAILURE_ACTION_PAUSE
    many = f"{len(progress.failed)} of {wanted_replicas(situation.service)} tasks failed"
    what = f"{many}, the first in slot {progress.failed[0]}"
    if action == FailureAction.FAILURE_ACTION_CONTINUE:
        return None
    if rolling_back:
        return SetUpdateState(UpdateState.UPDATE_STATE_ROLLBACK_PAUSED, f"rollback paused: {what}")
    if action == FailureAction.FAILURE_ACTION_ROLLBACK and situation.service.HasField("previous_spec"):
        return SetUpdateState(UpdateState.UPDATE_STATE_ROLLBACK_STARTED, f"rolled back: {what}", roll_back=True)
    return SetUpdateState(UpdateState.UPDATE_STATE_PAUSED, f"update paused: {what}")
