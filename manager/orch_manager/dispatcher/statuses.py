"""What may be believed of what an agent says: a node speaks for its own tasks only, and observed state only grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from orch_manager import tasks as states
from orch_manager.store.transaction import Transaction
from orch_proto.dispatcher_pb2 import TaskStatusUpdate
from orch_proto.objects_pb2 import Task


def refusal(task: Task | None, update: TaskStatusUpdate, node_id: str) -> str:
    """Why a status is dropped: a metric's label; empty when it is taken."""
    if task is None:
        return "unknown task"
    if task.node_id != node_id:
        return "another node's task"
    if update.status.state < states.ASSIGNED:
        return "not the node's to say"
    before, after = task.status.state, update.status.state
    if after < before:
        return "older than what is known"
    if after != before and states.has_ended(task):
        return "the task has ended already"
    return ""


def apply(transaction: Transaction, node_id: str, updates: Iterable[TaskStatusUpdate], term: int) -> Counter[str]:
    """Writes a batch; returns how many were dropped, by reason. The last word on each task is written, once."""
    dropped: Counter[str] = Counter()
    edited: dict[str, Task] = {}
    for update in updates:
        current = edited.get(update.task_id) or transaction.get(Task, update.task_id)
        why = refusal(current, update, node_id)
        if why or current is None:
            dropped[why] += 1
            continue
        if current.status == update.status:
            continue
        if update.task_id not in edited:
            edited[update.task_id] = current = transaction.edit(Task, update.task_id)
        current.status.CopyFrom(update.status)
        current.status.applied_by = node_id
        current.status.term = term
    for task in edited.values():
        transaction.update(task)
    return dropped
