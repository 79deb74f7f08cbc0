"""The task reaper: deletes tasks that are to be removed once nothing of them runs, and keeps the last few of each slot.

(SwarmKit: manager/orchestrator/taskreaper/task_reaper.go)
"""

from __future__ import annotations

from orch_manager import tasks as states
from orch_manager.store.schema import Kind, StoreObject
from orch_manager.store.tables import Reader
from orch_manager.workspace import Workspace
from orch_proto import defaults
from orch_proto.objects_pb2 import Cluster, Node, NodeState, Service, Task


class TaskReaper:
    """A `ControlLoop`."""

    def __init__(self) -> None:
        self._candidates: dict[str, None] = {}
        self._slots: dict[tuple[str, int], None] = {}
        self._removing: set[str] = set()

    def reset(self, reader: Reader) -> None:
        """Looks at every task."""
        self.__init__()  # type: ignore[misc]  # starting over is what reset means
        for task in reader.all(Task):
            self.observe(Task, task.id, None, task)

    def observe(self, kind: Kind, object_id: str, old: StoreObject | None, new: StoreObject | None) -> None:
        """Notes tasks that may be deleted now, and slots that grew."""
        if isinstance(new, Task):
            if states.is_wanted(new):
                if old is None and new.slot:
                    self._slots[(new.service_id, new.slot)] = None
                return
            if new.desired_state == states.REMOVE:
                self._removing.add(new.id)
            if states.is_stopped(new) or new.desired_state == states.REMOVE:
                self._candidates[new.id] = None
        elif isinstance(old, Task):
            self._candidates.pop(object_id, None)
            self._removing.discard(object_id)
        elif kind is Node:
            # A node that went down or away holds up no removal.
            self._candidates.update(dict.fromkeys(self._removing))

    def has_work(self) -> bool:
        """True when there is something to look at."""
        return bool(self._candidates or self._slots)

    def step(self, workspace: Workspace) -> int | None:
        """Deletes what may go."""
        for task_id in list(self._candidates):
            if not workspace.may_touch(Task, task_id):
                return None
            del self._candidates[task_id]
            task = workspace.get(Task, task_id)
            if task is None or states.is_wanted(task):
                continue
            if _deletable(workspace, task):
                workspace.delete(Task, task_id)
            elif states.has_ended(task):
                self._slots[(task.service_id, task.slot)] = None
        for slot in list(self._slots):
            if not workspace.has_room(16):
                return None
            del self._slots[slot]
            _trim(workspace, slot)
        return None


def _deletable(workspace: Workspace, task: Task) -> bool:
    """True for tasks of which nothing is left to stop, and nothing to show."""
    if task.status.state < states.ASSIGNED:
        return True
    if task.desired_state != states.REMOVE:
        return False
    if states.is_stopped(task):
        return True
    node = workspace.get(Node, task.node_id)
    # The complete set of assignments that a returning node gets lacks the task: it is given up there then.
    return node is None or node.status.state == NodeState.NODE_STATE_DOWN


def _trim(workspace: Workspace, slot: tuple[str, int]) -> None:
    """Deletes the oldest ended tasks of a slot beyond the history's limit."""
    cluster = next(iter(workspace.all(Cluster)), None)
    limit = states.history_limit(cluster, defaults.TASK_HISTORY)
    if limit < 0:
        return
    service = workspace.get(Service, slot[0])
    if service is not None:
        # The restart policy counts attempts on what is kept.
        limit = max(
            limit,
            min(int(service.spec.task.restart.max_attempts) + 1, 100) if service.spec.task.restart.max_attempts else 0,
        )
    ended = [task for task in workspace.find(Task, slot=slot) if not states.is_wanted(task) and states.is_stopped(task)]
    ended.sort(key=lambda task: (task.meta.created_at_unix_ms or workspace.now_ms, task.id))
    for task in ended[: max(0, len(ended) - limit)]:
        if workspace.may_touch(Task, task.id):
            workspace.delete(Task, task.id)
