"""The scheduler's control loop: PENDING tasks get a node, or a message that says why none suits."""
# ruff: noqa: ARG002 - every loop has the same methods

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from orch_manager import tasks as states
from orch_manager.scheduler.nodes import NodeSet
from orch_manager.scheduler.placing import place
from orch_manager.store.schema import Kind, StoreObject
from orch_manager.store.tables import Reader
from orch_manager.workspace import Workspace
from orch_proto.objects_pb2 import Node, Task


def _ignore(_seconds: float, _filtered: Counter[str]) -> None:
    """For those who do not measure."""


class Scheduler:
    """See the module. A `ControlLoop`.

    Args:
        on_round: told of every round: its seconds, and how many nodes each filter refused.
    """

    def __init__(self, on_round: Callable[[float, Counter[str]], None] = _ignore) -> None:
        self._on_round = on_round
        self._nodes = NodeSet()
        self._pending: dict[str, None] = {}
        self._unplaced: dict[str, None] = {}
        self._now_ms = 0

    def reset(self, reader: Reader) -> None:
        """Counts anew what is on each node."""
        self._nodes = NodeSet()
        self._pending.clear()
        self._unplaced.clear()
        for node in reader.all(Node):
            self._nodes.put_node(node)
        for task in reader.all(Task):
            self._observe_task(task.id, None, task)

    def observe(self, kind: Kind, object_id: str, old: StoreObject | None, new: StoreObject | None) -> None:
        """Keeps the count, and wakes the tasks that found no place when room or a node appears."""
        if isinstance(new, Task) or isinstance(old, Task):
            self._observe_task(object_id, old, new if isinstance(new, Task) else None)
        elif isinstance(new, Node):
            self._nodes.put_node(new)
            self._retry()
        elif isinstance(old, Node):
            self._nodes.drop_node(object_id)

    def _observe_task(self, task_id: str, old: StoreObject | None, task: Task | None) -> None:
        if task is None:
            self._nodes.drop_task(task_id)
        else:
            self._nodes.put_task(task, self._now_ms or task.status.timestamp_unix_ms)
        if task is not None and task.status.state == states.PENDING and not task.node_id and states.is_wanted(task):
            if task_id not in self._unplaced:
                self._pending[task_id] = None
            return
        self._pending.pop(task_id, None)
        self._unplaced.pop(task_id, None)
        freed = (
            isinstance(old, Task)
            and old.node_id
            and (task is None or states.has_ended(task) or not states.is_wanted(task))
        )
        if freed:
            self._retry()

    def _retry(self) -> None:
        if self._unplaced:
            self._pending.update(self._unplaced)
            self._unplaced.clear()

    def has_work(self) -> bool:
        """True when a task waits for a first or a new try."""
        return bool(self._pending)

    def step(self, workspace: Workspace) -> int | None:
        """Places what waits, as far as the step has room."""
        self._now_ms = workspace.now_ms
        chosen: list[Task] = []
        for task_id in list(self._pending):
            if not workspace.has_room(len(chosen) + 1) and not workspace.may_touch(Task, task_id):
                break
            del self._pending[task_id]
            task = workspace.get(Task, task_id)
            if task is not None:
                chosen.append(task)
        if not chosen:
            return None
        started = time.perf_counter()
        outcome = place(chosen, self._nodes, workspace.now_ms)
        for placement in outcome.placements:
            if placement.node_id:
                edited = workspace.edit(placement.task)
                edited.node_id = placement.node_id
                states.set_status(
                    edited, states.ASSIGNED, placement.reason, now_ms=workspace.now_ms, term=workspace.term
                )
                workspace.put(edited)
                continue
            self._unplaced[placement.task.id] = None
            if placement.task.status.message != placement.reason:
                edited = workspace.edit(placement.task)
                states.set_status(
                    edited, states.PENDING, placement.reason, now_ms=workspace.now_ms, term=workspace.term
                )
                workspace.put(edited)
        self._on_round(time.perf_counter() - started, outcome.filtered)
        return None
