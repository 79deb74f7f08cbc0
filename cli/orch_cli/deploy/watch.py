"""Services and tasks of a stack as the manager tells them, kept up to date by its watch stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Final

import grpc

from orch_cli.connection import calling
from orch_proto.control_pb2 import (
    WATCH_ACTION_REMOVED,
    WATCH_ACTION_SNAPSHOT_END,
    Filter,
    WatchEvent,
    WatchRequest,
)
from orch_proto.objects_pb2 import Service, Stack, Task
from orch_proto.types_pb2 import OBJECT_KIND_SERVICE, OBJECT_KIND_STACK, OBJECT_KIND_TASK
from orch_rpc.errors import OrchError, OutOfDate, ResourceExhausted, Unavailable

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub

COALESCE_S: Final = 0.02  # a burst of changes is looked at once; short enough not to be felt
_RETRY_FIRST_S: Final = 0.05
_RETRY_LAST_S: Final = 1.0


class StackState:
    """What is known of one stack. ``complete`` once a whole snapshot has arrived."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.stack: Stack | None = None
        self.services: dict[str, Service] = {}
        self.tasks: dict[str, dict[str, Task]] = {}
        self.complete = False

    def clear(self) -> None:
        """Forgets everything: a new snapshot follows."""
        self.stack = None
        self.services.clear()
        self.tasks.clear()
        self.complete = False

    def apply(self, event: WatchEvent) -> None:
        """Takes one event over."""
        if event.action == WATCH_ACTION_SNAPSHOT_END:
            self.complete = True
            return
        removed = event.action == WATCH_ACTION_REMOVED
        which = event.object.WhichOneof("object")
        if which == "service":
            service = event.object.service
            if removed:
                self.services.pop(service.id, None)
            else:
                self.services[service.id] = service
        elif which == "task":
            task = event.object.task
            own = self.tasks.setdefault(task.service_id, {})
            if removed:
                own.pop(task.id, None)
            else:
                own[task.id] = task
        elif which == "stack" and event.object.stack.annotations.name == self.name:
            self.stack = None if removed else event.object.stack

    def task_count(self) -> int:
        """How many tasks there are in any state."""
        return sum(map(len, self.tasks.values()))


def stack_filter(stack_id: str, name: str) -> Filter:
    """All that belongs to a stack, whether the manager compares ids or names."""
    return Filter(key="stack", values=[stack_id, name])


async def follow(
    stub: ControlAsyncStub, state: StackState, filters: Sequence[Filter], deadline: float
) -> AsyncGenerator[None, None]:
    """Yields each time ``state`` changed, at most once in ``COALESCE_S``; survives restarts and changes of the manager.

    Args:
        stub: the control API.
        state: is kept up to date.
        filters: what to watch: `stack_filter`, or services by id.
        deadline: ``time.monotonic()`` at which it ends.

    Raises:
        OrchError: when the manager refuses to be watched.
    """
    changed = asyncio.Event()
    reader = asyncio.create_task(_read(stub, state, filters, changed, deadline))
    waiter: asyncio.Task[bool] | None = None
    try:
        while (remaining := deadline - time.monotonic()) > 0:
            waiter = waiter or asyncio.create_task(changed.wait())
            await asyncio.wait({waiter, reader}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
                return
            if waiter.done():
                waiter = None
                changed.clear()
                if state.complete:
                    yield
                await asyncio.sleep(COALESCE_S)
    finally:
        for task in (reader, waiter):
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in (reader, waiter) if task is not None), return_exceptions=True)


async def _read(
    stub: ControlAsyncStub, state: StackState, filters: Sequence[Filter], changed: asyncio.Event, deadline: float
) -> None:
    """Reads the stream into ``state``, and begins anew when it breaks for a reason that passes."""
    request = WatchRequest(
        kinds=[OBJECT_KIND_STACK, OBJECT_KIND_SERVICE, OBJECT_KIND_TASK],
        filters=filters,
    )
    pause_s = _RETRY_FIRST_S
    while True:
        state.clear()
        try:
            with calling(f"watch the stack {state.name}"):
                async for event in stub.Watch(
                    request, wait_for_ready=True, timeout=max(deadline - time.monotonic(), 0.001)
                ):
                    state.apply(event)
                    if state.complete:
                        pause_s = _RETRY_FIRST_S
                        changed.set()
        except (Unavailable, OutOfDate, ResourceExhausted):
            pass
        except OrchError as error:
            if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return
            raise
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _RETRY_LAST_S)
