"""What may be believed of what an agent says: a node speaks for its own tasks only, and observed state only grows.

A node whose agent had no leader to ask may have replaced tasks by itself. Such a replacement is taken as long as no
other task runs in the slot: it is made from the task that it replaces, of which the leader knows all that counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orch_manager import tasks as states
from orch_manager.clock import ID_LENGTH
from orch_manager.store.transaction import Transaction
from orch_proto.dispatcher_pb2 import Replacement, TaskStatusUpdate
from orch_proto.objects_pb2 import Service, Task


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


def adoption_refusal(transaction: Transaction, node_id: str, replacement: Replacement) -> str:
    """Why a task that an agent made by itself cannot stay; empty when it can."""
    task_id = replacement.task_id
    if len(task_id) != ID_LENGTH or not task_id.isalnum() or transaction.get(Task, task_id) is not None:
        return "its id is no fresh one"
    old = transaction.get(Task, replacement.replaces)
    if old is None or old.node_id != node_id:
        return "what it replaces is no task of this node"
    service = transaction.get(Service, old.service_id)
    if service is None or service.pending_delete:
        return "its service is gone"
    if not states.has_ended(old):
        return "what it replaces is not known to have ended"
    return "" if states.is_wanted(old) else _slot_refusal(transaction, old)


def _slot_refusal(transaction: Transaction, old: Task) -> str:
    """Why the slot of a task that the leader has replaced as well cannot be given back to its node."""
    rivals = _rivals(transaction, old)
    if not rivals:
        return "its slot is not wanted any more"
    if any(rival.status.state >= states.RUNNING or rival.spec_version != old.spec_version for rival in rivals):
        return "its slot was given to another task"
    mine = {(attachment.network_id, address) for attachment in old.networks for address in attachment.addresses}
    for other in transaction.all(Task):
        if not states.has_ended(other) and any(
            (attachment.network_id, address) in mine
            for attachment in other.networks
            for address in attachment.addresses
        ):
            return "its address was given to another task"
    return ""


def _rivals(transaction: Transaction, old: Task) -> list[Task]:
    """The tasks that are wanted in the slot of another one."""
    return [
        task
        for task in transaction.find(Task, slot=(old.service_id, old.slot))
        if states.is_wanted(task) and task.id != old.id and (task.slot or task.node_id == old.node_id)
    ]


@dataclass(slots=True)
class Taken:
    """What became of a batch: how much was dropped, by reason, and the tasks that the agent is to stop."""

    dropped: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)


def take(
    transaction: Transaction,
    *,
    node_id: str,
    replacements: Sequence[Replacement],
    updates: Sequence[TaskStatusUpdate],
    term: int,
) -> Taken:
    """Writes a batch with the tasks that an agent made by itself, in order; each may replace the one before it.

    The end of a task is written before its replacement: the address of the one becomes the other's.
    """
    taken = Taken()
    latest = {update.task_id: update for update in updates}
    for replacement in replacements:
        known = transaction.get(Task, replacement.task_id)
        if known is not None and known.node_id == node_id:
            continue  # told again: the first answer was lost
        end = latest.pop(replacement.replaces, None)
        if end is not None:
            taken.dropped += apply(transaction, node_id, [end], term)
        why = adoption_refusal(transaction, node_id, replacement)
        if why:
            taken.refused.append(replacement.task_id)
            taken.dropped[f"replacement: {why}"] += 1
            latest.pop(replacement.task_id, None)
            continue
        old = transaction.edit(Task, replacement.replaces)
        if states.is_wanted(old):
            old.desired_state = states.SHUTDOWN
            transaction.update(old)
        else:
            _withdraw(transaction, _rivals(transaction, old))
        transaction.create(_adopted(old, replacement, transaction.now_unix_ms, term))
    taken.dropped += apply(transaction, node_id, latest.values(), term)
    return taken


def _withdraw(transaction: Transaction, rivals: Iterable[Task]) -> None:
    """Takes back replacements of the leader's that do not run yet: the node was faster."""
    for rival in rivals:
        edited = transaction.edit(Task, rival.id)
        edited.desired_state = states.SHUTDOWN
        edited.status.message = "its slot was filled by the node of the task that it was to replace"
        transaction.update(edited)


def _adopted(old: Task, replacement: Replacement, now_ms: int, term: int) -> Task:
    task = Task()
    task.CopyFrom(old)
    for name in ("meta", "status"):
        task.ClearField(name)
    task.id = replacement.task_id
    task.replaces = old.id
    task.desired_state = states.RUNNING if replacement.desired_state == states.RUNNING else states.READY
    task.not_before_unix_ms = replacement.not_before_unix_ms
    task.restart_count = replacement.restart_count
    states.set_status(task, states.ASSIGNED, "made by its node while no leader was there", now_ms=now_ms, term=term)
    return task
