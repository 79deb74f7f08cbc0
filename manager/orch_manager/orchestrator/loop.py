"""The orchestrator's control loop: turns the pure decisions on each changed service into writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from orch_manager import tasks as states
from orch_manager.orchestrator import slots, updating
from orch_manager.orchestrator.slots import Create, Decisions, SetDesired, Situation
from orch_manager.store.schema import Kind, StoreObject
from orch_manager.store.tables import Reader
from orch_manager.workspace import Workspace
from orch_proto.objects_pb2 import Node, Service, Task
from orch_proto.types_pb2 import UpdateState


class _Nodes(Mapping[str, Node]):
    """The nodes of a workspace, looked up when asked for."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def __getitem__(self, node_id: str) -> Node:
        node = self._workspace.get(Node, node_id)
        if node is None:
            raise KeyError(node_id)
        return node

    def __iter__(self) -> Iterator[str]:
        return iter([node.id for node in self._workspace.all(Node)])

    def __len__(self) -> int:
        return len(self._workspace.all(Node))


class Orchestrator:
    """See the module. A `ControlLoop`.

    Args:
        on_failure: told the reason of every task that ended badly, for metrics.
    """

    def __init__(self, on_failure: Callable[[Task], None] = lambda _task: None) -> None:
        self._on_failure = on_failure
        self._dirty: dict[str, None] = {}
        self._wake_ms: dict[str, int] = {}

    def reset(self, reader: Reader) -> None:
        """Every service may need something."""
        self._wake_ms.clear()
        self._dirty = dict.fromkeys(service.id for service in reader.all(Service))

    def observe(self, kind: Kind, object_id: str, old: StoreObject | None, new: StoreObject | None) -> None:
        """Notes which services a change concerns."""
        task = new if isinstance(new, Task) else old
        if isinstance(task, Task):
            if _matters(old if isinstance(old, Task) else None, new if isinstance(new, Task) else None):
                self._dirty[task.service_id] = None
            if isinstance(new, Task) and states.failed(new) and not (isinstance(old, Task) and states.failed(old)):
                self._on_failure(new)
        elif isinstance(new, Service):
            self._dirty[new.id] = None
        elif isinstance(old, Service):
            self._dirty.pop(object_id, None)
            self._wake_ms.pop(object_id, None)
        elif kind is Node:
            self._dirty_nodes = True

    _dirty_nodes = False

    def has_work(self) -> bool:
        """True when a service must be looked at."""
        return bool(self._dirty) or self._dirty_nodes

    def step(self, workspace: Workspace) -> int | None:
        """Looks at every service that changed or whose time has come."""
        if self._dirty_nodes:
            self._dirty_nodes = False
            self._dirty.update(dict.fromkeys(service.id for service in workspace.all(Service)))
        self._dirty.update(dict.fromkeys(each for each, at_ms in self._wake_ms.items() if at_ms <= workspace.now_ms))
        for service_id in list(self._dirty):
            if not workspace.has_room(2):
                break
            del self._dirty[service_id]
            self._wake_ms.pop(service_id, None)
            service = workspace.get(Service, service_id)
            if service is None:
                self._remove_orphans(workspace, service_id)
            elif service.spec.mode.WhichOneof("mode") in (None, "replicated"):
                self._reconcile(workspace, service)
        return min(self._wake_ms.values(), default=None)

    def _situation(self, workspace: Workspace, service_id: str) -> Situation | None:
        service = workspace.get(Service, service_id)
        if service is None:
            return None
        tasks = workspace.find(Task, service_id=service_id)
        return Situation(service, tasks, _Nodes(workspace), workspace.now_ms)

    def _reconcile(self, workspace: Workspace, service: Service) -> None:
        if service.pending_delete:
            self._remove_tasks(workspace, service)
            return
        situation = self._situation(workspace, service.id)
        assert situation is not None
        decisions = slots.decide(situation)
        if not self._carry_out(workspace, service, decisions):
            return
        situation = self._situation(workspace, service.id)
        assert situation is not None
        decisions, change = updating.decide(situation)
        if change is not None:
            _write_update_state(workspace, service, change)
            self._dirty[service.id] = None
            return
        self._carry_out(workspace, service, decisions)

    def _carry_out(self, workspace: Workspace, service: Service, decisions: Decisions) -> bool:
        """Writes the decisions; False when the step had no room for all of them: the rest comes in the next."""
        if decisions.wake_ms is not None:
            self._wake_ms[service.id] = min(decisions.wake_ms, self._wake_ms.get(service.id, decisions.wake_ms))
        for position, action in enumerate(decisions.actions):
            # An old task and its replacement are written together: never one without the other.
            paired = isinstance(action, SetDesired) and any(
                isinstance(later, Create) and later.slot == action.task.slot
                for later in decisions.actions[position + 1 :][:4]
            )
            if not workspace.has_room(4 if paired else 1):
                self._dirty[service.id] = None
                return False
            if isinstance(action, Create):
                _create(workspace, service, action)
            else:
                _set_desired(workspace, action)
        return True

    def _remove_tasks(self, workspace: Workspace, service: Service) -> None:
        for task in workspace.find(Task, service_id=service.id):
            if task.desired_state >= states.REMOVE:
                continue
            if not workspace.may_touch(Task, task.id):
                self._dirty[service.id] = None
                return
            _set_desired(workspace, SetDesired(task, states.REMOVE, "its service is being removed"))

    def _remove_orphans(self, workspace: Workspace, service_id: str) -> None:
        """Tasks whose service is gone (a leader that fell in between): nobody wants them."""
        for task in workspace.find(Task, service_id=service_id):
            if task.desired_state < states.REMOVE and workspace.may_touch(Task, task.id):
                _set_desired(workspace, SetDesired(task, states.REMOVE, "its service is gone"))


def _matters(old: Task | None, new: Task | None) -> bool:
    """True when a change of a task can change a decision: it came, went, ran, stopped, or is wanted otherwise."""
    if old is None or new is None:
        return True
    if old.desired_state != new.desired_state:
        return True
    before, after = old.status.state, new.status.state
    return before != after and after >= states.RUNNING


def _create(workspace: Workspace, service: Service, action: Create) -> None:
    task = states.new_task(
        service, action.slot, task_id=workspace.ids.new(), now_ms=workspace.now_ms, term=workspace.term
    )
    task.desired_state = action.desired_state
    task.not_before_unix_ms = action.not_before_ms
    task.restart_count = action.restart_count
    task.status.message = action.reason
    workspace.put(task)


def _set_desired(workspace: Workspace, action: SetDesired) -> None:
    current = workspace.get(Task, action.task.id)
    if current is None or current.desired_state >= action.desired_state:
        return
    task = workspace.edit(current)
    task.desired_state = action.desired_state
    # What the agent last said stands; why it is no longer wanted is told where nothing else is.
    if not states.has_ended(task) and action.desired_state > states.RUNNING:
        task.status.message = action.reason
    workspace.put(task)


def _write_update_state(workspace: Workspace, service: Service, change: updating.SetUpdateState) -> None:
    current = workspace.get(Service, service.id)
    assert current is not None
    edited = workspace.edit(current)
    status = edited.update_status
    if change.roll_back:
        failed_spec = current.spec
        replicas = current.spec.mode
        edited.spec.CopyFrom(current.previous_spec)
        # People scale while an update runs: the count is theirs, not the old version's.
        edited.spec.mode.CopyFrom(replicas)
        edited.previous_spec.CopyFrom(failed_spec)
        # Slots that the update has not reached run this version still: they stay.
        edited.spec_version = current.previous_spec_version
        edited.previous_spec_version = current.spec_version
        status.started_at_unix_ms = workspace.now_ms
        status.completed_at_unix_ms = 0
    status.state = change.state
    status.message = change.message
    if change.state in (UpdateState.UPDATE_STATE_COMPLETED, UpdateState.UPDATE_STATE_ROLLBACK_COMPLETED):
        status.completed_at_unix_ms = workspace.now_ms
    workspace.put(edited)
