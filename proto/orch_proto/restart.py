"""Whether a task that ended is replaced, and when. Pure; asked by the leader, and by an agent that no leader speaks to.

Swarm's policy (SwarmKit: manager/orchestrator/restart/restart.go), and a back-off for crash loops: the first failures
in a row are replaced after the policy's delay, from then on the delay doubles up to a ceiling; a run of ten minutes
starts the count anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orch_proto import defaults
from orch_proto.objects_pb2 import Task
from orch_proto.types_pb2 import RestartCondition, RestartPolicy, TaskState


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from the end of a task.

    Attributes:
        restart: whether another one takes its slot.
        delay_ms: how long that one waits in READY.
        count: failures in a row, the ended task included; the replacement carries it.
        reason: a sentence.
    """

    restart: bool
    delay_ms: int
    count: int
    reason: str


def restarts_so_far(history: Sequence[Task], spec_version: int, window_ms: int, now_ms: int) -> int:
    """How many tasks of a slot were restarts of this version, within the window.

    Args:
        history: every task of the slot that is still known.
        spec_version: only tasks of it count: a new version starts anew.
        window_ms: 0 means for ever.
        now_ms: end of the window.
    """
    same = sorted(
        (task for task in history if task.spec_version == spec_version), key=lambda task: task.meta.created_at_unix_ms
    )
    restarts = [task for task in same if task.restart_count or task.not_before_unix_ms] or same[1:]
    if not window_ms:
        return len(restarts)
    return sum(1 for task in restarts if task.meta.created_at_unix_ms >= now_ms - window_ms)


def backoff_ms(policy: RestartPolicy, count: int) -> int:
    """The delay before the replacement after `count` failures in a row."""
    base = policy.delay_ms if policy.HasField("delay_ms") else defaults.RESTART_DELAY_MS
    ceiling = policy.max_delay_ms if policy.HasField("max_delay_ms") else max(base, defaults.RESTART_MAX_DELAY_MS)
    doublings = count - defaults.RESTART_BACKOFF_FREE
    if doublings <= 0 or ceiling <= base:
        return base
    return min(ceiling, max(base, defaults.RESTART_BACKOFF_BASE_MS) << min(doublings, 32))


def _ran_ms(task: Task) -> int:
    container = task.status.container
    if not container.started_at_unix_ms:
        return 0
    return (container.finished_at_unix_ms or task.status.timestamp_unix_ms) - container.started_at_unix_ms


def judge(task: Task, history: Sequence[Task], policy: RestartPolicy, now_ms: int) -> Verdict:
    """What to do about a task that ended by itself.

    Args:
        task: the one that ended.
        history: every task of its slot that is still known, `task` included.
        policy: of the service as it is now.
        now_ms: time of the decision.
    """
    condition = policy.condition or RestartCondition.RESTART_CONDITION_ANY
    if condition == RestartCondition.RESTART_CONDITION_NONE:
        return Verdict(restart=False, delay_ms=0, count=0, reason="its restart policy is none")
    completed = task.status.state == TaskState.TASK_STATE_COMPLETE
    if condition == RestartCondition.RESTART_CONDITION_ON_FAILURE and completed:
        return Verdict(restart=False, delay_ms=0, count=0, reason="it completed, and its restart policy is on-failure")
    if policy.max_attempts:
        done = restarts_so_far(history, task.spec_version, policy.window_ms, now_ms)
        if done >= policy.max_attempts:
            return Verdict(
                restart=False, delay_ms=0, count=0, reason=f"restarted {done} times, its restart policy's max_attempts"
            )
    crashed_late = _ran_ms(task) >= defaults.RESTART_BACKOFF_RESET_MS
    count = 1 if crashed_late else task.restart_count + 1
    delay_ms = backoff_ms(policy, count)
    reason = f"task {state_reason(task)}"
    return Verdict(restart=True, delay_ms=delay_ms, count=count, reason=reason)


def state_reason(task: Task) -> str:
    """How a task ended, for the sentence that its replacement carries."""
    name = TaskState.Name(task.status.state).removeprefix("TASK_STATE_").lower()
    return f"{name} ({task.status.error})" if task.status.error else name
