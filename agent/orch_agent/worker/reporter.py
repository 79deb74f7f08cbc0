"""Carries task statuses to the leader: the newest of each task, in batches, until each is acknowledged.

And the tasks that this agent made by itself while there was no leader: they go ahead of their statuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from orch_proto import defaults
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import types_pb2 as types


class StatusReporter:
    """Holds what the leader has not yet acknowledged.

    One batch is on its way at a time; what comes meanwhile gathers for the next one, so a quiet node reports at once
    and a busy one in large batches. Only the newest status of a task is kept, since observed state only grows.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, types.TaskStatus] = {}
        self._on_its_way: dict[str, types.TaskStatus] = {}
        self._made: dict[str, dispatcher.Replacement] = {}
        self._made_on_its_way: dict[str, dispatcher.Replacement] = {}
        self._batch = 0
        self._changed = asyncio.Event()
        #: Told the ids of the tasks of whose end the leader has taken note.
        self.on_end_told: Callable[[Collection[str]], None] = lambda _task_ids: None

    def report(self, task_id: str, status: types.TaskStatus) -> None:
        """Takes a status to be sent."""
        self._waiting[task_id] = status
        self._changed.set()

    def report_made(self, replacement: dispatcher.Replacement) -> None:
        """Takes a task to be sent that this agent made; one that replaces another is to come after that one."""
        self._made[replacement.task_id] = replacement
        self._changed.set()

    def forget(self, task_id: str) -> None:
        """Drops what waits for a task that the leader no longer knows."""
        for held in (self._waiting, self._on_its_way, self._made, self._made_on_its_way):
            held.pop(task_id, None)

    def is_acknowledged(self, task_id: str) -> bool:
        """Whether nothing of the task is left to tell."""
        return task_id not in self._waiting and task_id not in self._on_its_way

    def session_ended(self) -> None:
        """What was on its way may not have arrived: it is sent again in the next session."""
        self._waiting = {**self._on_its_way, **self._waiting}
        self._made = {**self._made_on_its_way, **self._made}
        self._on_its_way = {}
        self._made_on_its_way = {}
        self._changed.set()

    def acknowledged(self, batch: int) -> None:
        """The leader has committed a batch."""
        if batch == self._batch:
            ended = [key for key, status in self._on_its_way.items() if status.state >= types.TASK_STATE_COMPLETE]
            self._on_its_way = {}
            self._made_on_its_way = {}
            self._changed.set()
            if ended:
                self.on_end_told(ended)

    async def next_batch(self) -> dispatcher.StatusBatch:
        """Waits until there is something to send and nothing on its way."""
        while not (self._waiting or self._made) or self._on_its_way or self._made_on_its_way:
            self._changed.clear()
            await self._changed.wait()
        self._batch += 1
        made = dict(list(self._made.items())[: defaults.STATUS_BATCH_ITEMS])
        # What a new task replaces is told of in the same batch: only an ended task can be replaced.
        first = {one.replaces: self._waiting[one.replaces] for one in made.values() if one.replaces in self._waiting}
        chosen = dict(list({**first, **self._waiting}.items())[: defaults.STATUS_BATCH_ITEMS])
        for task_id in chosen:
            del self._waiting[task_id]
        for task_id in made:
            del self._made[task_id]
        self._on_its_way, self._made_on_its_way = chosen, made
        return dispatcher.StatusBatch(
            batch=self._batch,
            updates=[dispatcher.TaskStatusUpdate(task_id=task_id, status=status) for task_id, status in chosen.items()],
            replacements=made.values(),
        )
