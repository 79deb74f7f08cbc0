"""What an agent decides by itself while no leader speaks to it. Pure.

A task that ended is replaced by the rules that the leader would use (`orch_proto.restart`), in its slot and at its
address; one that waits in READY is let run when its time has come. An end of which a leader has taken note is left to
the leader: it may have given the slot to another node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from orch_proto import defaults, restart
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types

_Slot = tuple[str, int]
_ENDED_BY_ITSELF = (types.TASK_STATE_COMPLETE, types.TASK_STATE_FAILED, types.TASK_STATE_REJECTED)


def _by_slot(tasks: Iterable[objects.Task]) -> Mapping[_Slot, list[objects.Task]]:
    slots: dict[_Slot, list[objects.Task]] = {}
    for task in tasks:
        slots.setdefault((task.service_id, task.slot), []).append(task)
    for present in slots.values():
        present.sort(key=lambda task: (task.meta.created_at_unix_ms, task.id))
    return slots


def _has_ended(task: objects.Task) -> bool:
    return task.status.state > types.TASK_STATE_RUNNING


def _is_wanted(task: objects.Task) -> bool:
    return task.desired_state <= types.TASK_STATE_RUNNING


def successors(
    tasks: Sequence[objects.Task], told: Collection[str], *, now_ms: int, new_id: Callable[[], str]
) -> list[objects.Task]:
    """The tasks that take the place of ended ones.

    Args:
        tasks: every task of the node, with its status as it is now.
        told: ids of those of whose end a leader knows.
        now_ms: Unix milliseconds.
        new_id: makes ids.
    """
    made = []
    for present in _by_slot(tasks).values():
        last = present[-1]
        if not all(_has_ended(task) for task in present) or not _is_wanted(last) or last.id in told:
            continue
        if last.status.state not in _ENDED_BY_ITSELF:
            continue
        if last.HasField("job_iteration"):
            continue  # how often a job is to run, only the leader knows
        verdict = restart.judge(last, present, last.spec.restart, now_ms)
        if verdict.restart:
            made.append(_successor(last, verdict, now_ms, new_id()))
    return made


def _successor(old: objects.Task, verdict: restart.Verdict, now_ms: int, task_id: str) -> objects.Task:
    task = objects.Task()
    task.CopyFrom(old)
    task.id, task.replaces = task_id, old.id
    task.meta.Clear()
    task.meta.created_at_unix_ms = now_ms
    task.status.Clear()
    task.status.state = types.TASK_STATE_ASSIGNED
    task.desired_state = types.TASK_STATE_READY if verdict.delay_ms else types.TASK_STATE_RUNNING
    task.not_before_unix_ms = now_ms + verdict.delay_ms if verdict.delay_ms else 0
    task.restart_count = verdict.count
    return task


def whose_turn_has_come(tasks: Sequence[objects.Task], *, alone_since_ms: int, now_ms: int) -> list[str]:
    """Ids of the tasks that wait in READY and may run now.

    A task waits for its delay, and for the old task of its slot. Where that one is not on this node nobody can say
    whether it has stopped; then the task waits as long as a leader would.
    """
    turns = []
    for present in _by_slot(tasks).values():
        for task in present:
            if task.desired_state >= types.TASK_STATE_RUNNING or _has_ended(task):
                continue
            others = [other for other in present if other.id != task.id]
            all_ended = bool(others) and all(_has_ended(other) for other in others)
            waits_ms = 0 if all_ended else defaults.OLD_TASK_WAIT_MS
            from_ms = task.not_before_unix_ms if all_ended else max(task.not_before_unix_ms, alone_since_ms)
            if now_ms >= from_ms + waits_ms:
                turns.append(task.id)
    return turns


def superfluous(tasks: Sequence[objects.Task], own: Collection[str]) -> list[str]:
    """Ids of own tasks that are too old to be kept: ended, and followed by as many as the restart policy looks at."""
    dropped = []
    for present in _by_slot(tasks).values():
        ended = [task.id for task in present[:-1] if task.id in own and _has_ended(task)]
        most = max(defaults.REPLACEMENTS_KEPT, min(int(present[-1].spec.restart.max_attempts) + 1, 100))
        dropped += ended[: max(0, len(ended) - most)]
    return dropped


def as_told(task: objects.Task) -> dispatcher.Replacement:
    """An own task as the leader is told of it."""
    return dispatcher.Replacement(
        task_id=task.id,
        replaces=task.replaces,
        desired_state=task.desired_state,
        not_before_unix_ms=task.not_before_unix_ms,
        restart_count=task.restart_count,
    )
