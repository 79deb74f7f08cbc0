"""The node keeper: tasks of a node that stays away for a day are ORPHANED, so that what they held is given back."""
# ruff: noqa: ARG002 - every loop has the same methods

from __future__ import annotations

from orch_manager import tasks as states
from orch_manager.store.schema import Kind, StoreObject
from orch_manager.store.tables import Reader
from orch_manager.workspace import Workspace
from orch_proto import defaults
from orch_proto.objects_pb2 import Node, NodeState, Task


class NodeKeeper:
    """A `ControlLoop`."""

    def __init__(self) -> None:
        self._due_ms: dict[str, int] = {}
        self._lost: set[str] = set()

    def reset(self, reader: Reader) -> None:
        """Learns which nodes are down, and whose nodes are gone."""
        self._due_ms.clear()
        self._lost.clear()
        for node in reader.all(Node):
            self.observe(Node, node.id, None, node)
        self._lost = {
            task.node_id for task in reader.all(Task) if task.node_id and reader.get(Node, task.node_id) is None
        }

    def observe(self, kind: Kind, object_id: str, old: StoreObject | None, new: StoreObject | None) -> None:
        """Notes when a node went down or away."""
        if isinstance(new, Node):
            if new.status.state == NodeState.NODE_STATE_DOWN:
                self._due_ms[object_id] = new.status.since_unix_ms + defaults.ORPHANED_AFTER_MS
            else:
                self._due_ms.pop(object_id, None)
        elif kind is Node:
            self._due_ms.pop(object_id, None)
            self._lost.add(object_id)

    def has_work(self) -> bool:
        """True when a node was removed."""
        return bool(self._lost)

    def step(self, workspace: Workspace) -> int | None:
        """Marks the tasks of nodes whose time is over."""
        due = {node_id for node_id, at_ms in self._due_ms.items() if at_ms <= workspace.now_ms}
        for node_id in sorted(due | self._lost):
            for task in workspace.find(Task, node_id=node_id):
                if states.has_ended(task):
                    continue
                if not workspace.may_touch(Task, task.id):
                    return workspace.now_ms
                edited = workspace.edit(task)
                why = "its node was removed" if node_id in self._lost else "its node has been down for a day"
                states.set_status(edited, states.ORPHANED, why, now_ms=workspace.now_ms, term=workspace.term)
                workspace.put(edited)
            self._lost.discard(node_id)
            self._due_ms.pop(node_id, None)
        return min(self._due_ms.values(), default=None)
