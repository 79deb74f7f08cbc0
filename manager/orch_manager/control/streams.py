"""Logs, exec and data to a node: relays, joined to the caller's stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from typing import Any, Final

from orch_manager import tasks as states
from orch_manager.ca.scope import StackScope
from orch_manager.control.queries import resolve
from orch_manager.relay.broker import Relay, RelayBroker
from orch_manager.relay.delivery import ImageDelivery
from orch_manager.relay.merge import LineMerger
from orch_manager.store.store import Store
from orch_manager.streaming import END_OF_STREAM
from orch_proto.control_pb2 import ExecRequest, LogsRequest, SendToNodeRequest
from orch_proto.node_pb2 import CallError, LogLine, LogLines, LogsCall, RelayCall, RelayInput, RelayOutput
from orch_proto.objects_pb2 import Node, Service, Stack, Task
from orch_rpc.authorization import current_call
from orch_rpc.errors import FailedPrecondition, InvalidArgument, NotFound, OrchError

_Context = Any
#: Batches of log lines that wait for a slow reader.
_QUEUE_BATCHES: Final = 64
#: Lines in one message to the caller.
_LINES_PER_MESSAGE: Final = 500


class Streams:
    """See the module.

    Args:
        store: to find tasks.
        broker: to reach nodes.
        delivery: lets nodes fetch the images that they are told to.
        scope: what users may touch who are limited to some stacks.
        node_id: this manager's own node.
    """

    def __init__(
        self, store: Store, broker: RelayBroker, delivery: ImageDelivery, scope: StackScope, node_id: str
    ) -> None:
        self._store = store
        self._scope = scope
        self._broker = broker
        self._delivery = delivery
        self._node_id = node_id

    # ---- logs ----------------------------------------------------------------------------------------

    def _log_tasks(self, request: LogsRequest) -> list[Task]:
        found: dict[str, Task] = {}
        if request.stack:
            stack: Stack = resolve(self._store, Stack, request.stack)
            found.update({task.id: task for task in self._store.find(Task, stack_id=stack.id)})
        for target in request.targets:
            found.update({task.id: task for task in self._target_tasks(target)})
        if not request.stack and not request.targets:
            raise InvalidArgument("cannot show logs", "no service, task or stack was named", "name one: orch logs NAME")
        return [task for task in found.values() if task.node_id]

    def _target_tasks(self, target: str) -> list[Task]:
        """The tasks behind a service's or a task's name, id or prefix."""
        try:
            service: Service = resolve(self._store, Service, target)
        except NotFound:
            task: Task = resolve(self._store, Task, target)
            return [task]
        return self._store.find(Task, service_id=service.id)

    async def logs(self, request: LogsRequest) -> AsyncIterator[LogLines]:
        """Lines of all the tasks, roughly in order of time; a silent node costs a line, not the stream."""
        by_node: dict[str, list[str]] = {}
        for task in self._log_tasks(request):
            by_node.setdefault(task.node_id, []).append(task.id)
        queue: asyncio.Queue[tuple[str, list[LogLine]] | str] = asyncio.Queue(maxsize=_QUEUE_BATCHES)
        readers = [
            asyncio.create_task(self._read_node(node_id, sorted(task_ids), request, queue), name="logs-of-node")
            for node_id, task_ids in by_node.items()
        ]
        merger = LineMerger(by_node)
        try:
            while not merger.finished:
                timeout_s = merger.wait_s()
                try:
                    async with asyncio.timeout(timeout_s):
                        item = await queue.get()
                except TimeoutError:
                    item = None
                if isinstance(item, str):
                    merger.finish(item)
                elif item is not None:
                    merger.add(*item)
                lines = merger.take()
                for start in range(0, len(lines), _LINES_PER_MESSAGE):
                    yield LogLines(lines=lines[start : start + _LINES_PER_MESSAGE])
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _read_node(
        self,
        node_id: str,
        task_ids: list[str],
        request: LogsRequest,
        queue: asyncio.Queue[tuple[str, list[LogLine]] | str],
    ) -> None:
        call = RelayCall(logs=LogsCall(task_ids=task_ids, options=request.options))
        problem = ""
        try:
            async with self._broker.open(node_id, call) as relay:
                async for output in relay.outputs():
                    kind = output.WhichOneof("output")
                    if kind == "log_lines":
                        await queue.put((node_id, list(output.log_lines.lines)))
                    elif kind == "log_line":
                        await queue.put((node_id, [output.log_line]))
                    elif kind == "error":
                        problem = output.error.message.replace("\n", ": ")
        except OrchError as error:
            problem = error.why or error.what
        if problem:
            await queue.put((node_id, [self._note(node_id, problem)]))
        await queue.put(node_id)

    def _note(self, node_id: str, problem: str) -> LogLine:
        node = self._store.get(Node, node_id)
        name = node.description.hostname if node is not None else node_id
        text = f"lines of node {name} are missing: {problem}"
        return LogLine(node_id=node_id, node_hostname=name, stream="orch", line=text.encode())

    # ---- exec ----------------------------------------------------------------------------------------

    async def exec(self, context: _Context) -> AsyncIterator[RelayOutput]:
        """A command inside a running task, or another call about it, its input and output piped."""
        first = await context.read()
        if first is END_OF_STREAM or first.WhichOneof("message") != "start":
            raise InvalidArgument("cannot run a command", "the first message must be `start`")
        kind = first.start.task_call.WhichOneof("call")
        task = self._running_task(first.start.target, alone=kind in ("pause", "copy_in"))
        current_call().about(f"task {task.service_name}.{task.slot} {task.id}")
        self._scope.require_task(task)
        call = RelayCall(exec=first.start.call)
        if kind is not None:
            call = first.start.task_call
            if "task_id" not in getattr(call, kind).DESCRIPTOR.fields_by_name:
                raise InvalidArgument(f"cannot do '{kind}'", "it is no call about one task", "use SendToNode")
        getattr(call, kind or "exec").task_id = task.id
        async for output in self._pipe(context, task.node_id, call):
            yield output

    def _running_task(self, target: str, *, alone: bool) -> Task:
        """The task that is meant, the first one of a service; ``alone`` refuses a service that runs several."""
        what = f"cannot reach '{target}'"
        tasks = [task for task in self._target_tasks(target) if states.is_wanted(task)]
        running = [task for task in tasks if task.status.state in (states.RUNNING, states.STARTING)]
        if not running:
            raise FailedPrecondition(what, "no task of it is running", "look at them: orch ps")
        if alone and len(running) > 1:
            names = ", ".join(f"{task.service_name}.{task.slot}" for task in running[:3])
            raise FailedPrecondition(what, f"it runs {len(running)} tasks", f"name one of them: {names}")
        return min(running, key=lambda task: task.slot)

    async def send_to_node(self, context: _Context) -> AsyncIterator[RelayOutput]:
        """Image load, import and build: the call, then its data."""
        first = await context.read()
        if first is END_OF_STREAM or first.WhichOneof("message") != "start":
            raise InvalidArgument("cannot send to a node", "the first message must be `start`")
        reference = first.start.node
        call = current_call()
        # The manager that people asked, also when it has passed the call on.
        own_id = call.caller.forwarded_by or self._node_id
        node_id = resolve(self._store, Node, reference).id if reference else own_id
        call.about(f"node {node_id}")
        fetched = first.start.call.image_fetch.image_id
        with self._delivery.told(node_id, fetched) if fetched else nullcontext():
            async for output in self._pipe(context, node_id, first.start.call):
                yield output

    async def _pipe(self, context: _Context, node_id: str, call: RelayCall) -> AsyncIterator[RelayOutput]:
        async with self._broker.open(node_id, call) as relay:
            feeding = asyncio.create_task(self._feed(context, relay), name="relay-feed")
            try:
                async for output in relay.outputs():
                    yield output
            finally:
                feeding.cancel()
                with suppress(asyncio.CancelledError, OrchError):
                    await feeding

    @staticmethod
    async def _feed(context: _Context, relay: Relay) -> None:
        """Passes the caller's frames on; ends the relay with an error when one is not allowed."""
        while True:
            message: ExecRequest | SendToNodeRequest = await context.read()
            if message is END_OF_STREAM:
                return
            if message.WhichOneof("message") != "input":
                continue
            frame: RelayInput = message.input
            try:
                await relay.send(frame)
            except OrchError as error:
                await relay.ended(CallError(code=error.code.name, message=error.to_details()))
                return
