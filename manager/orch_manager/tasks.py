"""What the states of a task mean. Every loop asks here, so that none has an opinion of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from orch_proto.objects_pb2 import Cluster, Node, NodeState, Service, Task
from orch_proto.specs_pb2 import NodeAvailability, ServiceSpec, TaskSpec
from orch_proto.types_pb2 import TaskState

State = TaskState

NEW: Final = State.TASK_STATE_NEW
PENDING: Final = State.TASK_STATE_PENDING
ASSIGNED: Final = State.TASK_STATE_ASSIGNED
READY: Final = State.TASK_STATE_READY
STARTING: Final = State.TASK_STATE_STARTING
RUNNING: Final = State.TASK_STATE_RUNNING
COMPLETE: Final = State.TASK_STATE_COMPLETE
SHUTDOWN: Final = State.TASK_STATE_SHUTDOWN
FAILED: Final = State.TASK_STATE_FAILED
REJECTED: Final = State.TASK_STATE_REJECTED
REMOVE: Final = State.TASK_STATE_REMOVE
ORPHANED: Final = State.TASK_STATE_ORPHANED

_NAMES: Final = {value: name.removeprefix("TASK_STATE_").lower() for name, value in State.items()}


def state_name(state: State.ValueType) -> str:
    """How a state is called in messages, labels and filters: running."""
    return _NAMES.get(state, str(state))


def is_wanted(task: Task) -> bool:
    """True while the manager wants the task to run, now or soon."""
    return task.desired_state <= RUNNING


def has_ended(task: Task) -> bool:
    """True when the task's program is gone for good, as observed."""
    return task.status.state > RUNNING


def holds_resources(task: Task) -> bool:
    """True while the task takes room on its node: from assignment until it has been seen to end."""
    return bool(task.node_id) and not has_ended(task)


def is_stopped(task: Task) -> bool:
    """True when nothing of the task runs anywhere: it ended, or never reached a node."""
    return has_ended(task) or task.status.state < ASSIGNED


def failed(task: Task) -> bool:
    """True when the task ended badly by itself."""
    return task.status.state in (FAILED, REJECTED)


def set_status(task: Task, state: State.ValueType, message: str, *, now_ms: int, term: int, error: str = "") -> None:
    """Writes what the manager observed, into a task that is the caller's own copy."""
    task.status.state = state
    task.status.timestamp_unix_ms = now_ms
    task.status.message = message
    task.status.error = error
    task.status.term = term
    task.status.applied_by = "manager"


def node_is_up(node: Node | None) -> bool:
    """True when the node's agent speaks with us, as far as we know."""
    return node is not None and node.status.state != NodeState.NODE_STATE_DOWN


def node_takes_tasks(node: Node) -> str:
    """Why the node takes no new tasks; empty when it does."""
    if node.status.state != NodeState.NODE_STATE_READY:
        return "not ready"
    if node.spec.availability == NodeAvailability.NODE_AVAILABILITY_PAUSE:
        return "paused"
    if node.spec.availability == NodeAvailability.NODE_AVAILABILITY_DRAIN:
        return "drained"
    return ""


def without_placement(spec: TaskSpec) -> bytes:
    """What decides whether a task must be replaced, comparable: all but what the manager alone acts on."""
    bare = TaskSpec()
    bare.CopyFrom(spec)
    bare.ClearField("placement")
    bare.ClearField("disconnect_grace_ms")
    return bare.SerializeToString(deterministic=True)


def needs_new_tasks(old: ServiceSpec, new: ServiceSpec) -> bool:
    """True when tasks made from `old` cannot stand for `new`.

    The template (but for placement) and the published ports count; replicas, labels and update configuration do not
    (SwarmKit: manager/orchestrator/update/updater.go, isTaskDirty).
    """
    if without_placement(old.task) != without_placement(new.task):
        return True
    return [port.SerializeToString() for port in old.endpoint.ports] != [
        port.SerializeToString() for port in new.endpoint.ports
    ] or old.endpoint.mode != new.endpoint.mode


def newest(tasks: Iterable[Task]) -> Task | None:
    """The task made last."""
    return max(
        tasks,
        key=lambda task: (task.meta.created_at_unix_ms or 1 << 62, task.meta.version_index, task.id),
        default=None,
    )


def new_task(service: Service, slot: int, *, task_id: str, now_ms: int, term: int) -> Task:
    """A task of a service's slot as it is now: NEW, wanted RUNNING."""
    task = Task(
        id=task_id,
        spec=service.spec.task,
        spec_version=service.spec_version,
        service_id=service.id,
        slot=slot,
        service_name=service.spec.annotations.name,
        service_labels=service.spec.annotations.labels,
        desired_state=RUNNING,
        stack_id=service.stack_id,
    )
    set_status(task, NEW, "created", now_ms=now_ms, term=term)
    return task


def history_limit(cluster: Cluster | None, default: int) -> int:
    """How many old tasks are kept per slot; negative: all."""
    if cluster is not None and cluster.spec.orchestration.HasField("task_history_limit"):
        return cluster.spec.orchestration.task_history_limit
    return default
