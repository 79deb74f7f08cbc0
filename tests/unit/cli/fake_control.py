"""A Control server that answers from a dictionary: a real server on a real socket, without a cluster behind it."""

# ruff: noqa: N802, ARG002 - the names and parameters are gRPC's

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from orch_cli import main
from orch_proto import control_pb2 as control
from orch_proto.control_pb2_grpc import ControlServicer, add_ControlServicer_to_server
from orch_proto.node_pb2 import BuildProgress, ImageSummary, LogLine, LogLines, NodeCallResult, RelayOutput, RelayResult
from orch_proto.objects_pb2 import Node, Object, Service, Stack, StackVersion, Task
from orch_proto.specs_pb2 import StackSpec
from orch_proto.types_pb2 import (
    OBJECT_KIND_NODE,
    OBJECT_KIND_SERVICE,
    OBJECT_KIND_STACK,
    OBJECT_KIND_TASK,
    ObjectKind,
    TaskState,
)
from orch_rpc.errors import FailedPrecondition, NotFound
from orch_rpc.servers import new_server, start_on_unix_socket, stop

_FIELDS = {
    OBJECT_KIND_NODE: "node",
    OBJECT_KIND_STACK: "stack",
    OBJECT_KIND_SERVICE: "service",
    OBJECT_KIND_TASK: "task",
}


def wrap(kind: int, item: Message) -> Object:
    """An object in its envelope."""
    wrapper = Object()
    getattr(wrapper, _FIELDS[kind]).CopyFrom(item)  # type: ignore[index] # the kinds above
    return wrapper


@dataclass
class FakeControl(ControlServicer):
    """Keeps objects by kind and id; ``behave`` moves tasks on after an apply."""

    objects: dict[int, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in _FIELDS})
    images: set[str] = field(default_factory=set)
    watchers: list[asyncio.Queue[control.WatchEvent]] = field(default_factory=list)
    behave: Callable[[FakeControl], AsyncIterator[None]] | None = None
    refuse: str = ""
    received: bytearray = field(default_factory=bytearray)
    applied: list[control.ApplyStackRequest] = field(default_factory=list)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    def put(self, kind: int, item: Any) -> None:
        """Stores an object and tells the watchers."""
        new = item.id not in self.objects[kind]
        copied = type(item)()
        copied.CopyFrom(item)
        self.objects[kind][item.id] = copied
        action = control.WATCH_ACTION_CREATED if new else control.WATCH_ACTION_UPDATED
        self.tell(action, wrap(kind, item))

    def drop(self, kind: int, identifier: str) -> None:
        """Removes an object and tells the watchers."""
        self.tell(control.WATCH_ACTION_REMOVED, wrap(kind, self.objects[kind].pop(identifier)))

    def tell(self, action: control.WatchAction.ValueType, item: Object) -> None:
        for queue in self.watchers:
            queue.put_nowait(control.WatchEvent(action=action, object=item))

    def set_task(self, service: Service, slot: int, state: TaskState.ValueType, **status: Any) -> Task:
        """Makes or moves the task of a slot."""
        task = Task(
            id=f"task{slot}{service.id}",
            service_id=service.id,
            service_name=service.spec.annotations.name,
            slot=slot,
            node_id="node1",
            spec=service.spec.task,
            spec_version=service.spec_version,
            desired_state=TaskState.TASK_STATE_RUNNING,
            stack_id=service.stack_id,
            service_labels=dict(service.spec.annotations.labels),
        )
        task.status.state = state
        for name, value in status.items():
            setattr(task.status, name, value)
        self.put(OBJECT_KIND_TASK, task)
        return task

    def services(self) -> list[Service]:
        return list(self.objects[OBJECT_KIND_SERVICE].values())

    # ---- calls ---------------------------------------------------------------------------------------

    async def ApplyStack(self, request: Any, context: Any) -> Any:
        if self.refuse:
            raise FailedPrecondition("cannot deploy stack shop", self.refuse, "do something")
        self.applied.append(request)
        stack = Stack(id="stack1", current=StackVersion(number=1, spec=request.spec, author=request.author))
        stack.annotations.name = request.spec.name
        self.put(OBJECT_KIND_STACK, stack)
        changes = []
        for spec in request.spec.services:
            service = Service(id=f"id-{spec.annotations.name}", spec=spec, spec_version=5, stack_id="stack1")
            self.put(OBJECT_KIND_SERVICE, service)
            changes.append(
                control.ObjectChange(
                    change=control.CHANGE_KIND_CREATE, kind=OBJECT_KIND_SERVICE, name=spec.annotations.name
                )
            )
        if self.behave is not None:
            task = asyncio.create_task(self._run(self.behave(self)))
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        return control.ApplyStackResponse(stack_id="stack1", version=1, changes=changes)

    async def _run(self, steps: AsyncIterator[None]) -> None:
        async for _ in steps:
            await asyncio.sleep(0)

    async def PlanStack(self, request: Any, context: Any) -> Any:
        change = control.ObjectChange(change=control.CHANGE_KIND_REPLACE, kind=OBJECT_KIND_SERVICE, name="shop_web")
        change.fields.add(path="task.container.image", old_value="web:1", new_value="web:2", restarts_tasks=True)
        placement = control.PlacementPlan(
            service_name="shop_web", placed=1, unplaced=1, explanation="insufficient memory on 1 node"
        )
        return control.PlanStackResponse(changes=[change], placements=[placement])

    async def RemoveStack(self, request: Any, context: Any) -> Any:
        if not self.objects[OBJECT_KIND_STACK]:
            raise NotFound(f"cannot remove stack {request.name}", "there is none")
        for kind in (OBJECT_KIND_TASK, OBJECT_KIND_SERVICE, OBJECT_KIND_STACK):
            for identifier in list(self.objects[kind]):
                self.drop(kind, identifier)
        return control.RemoveStackResponse(
            stack_id="stack1",
            changes=[
                control.ObjectChange(change=control.CHANGE_KIND_REMOVE, kind=OBJECT_KIND_SERVICE, name="shop_web")
            ],
        )

    async def Get(self, request: Any, context: Any) -> Any:
        for item in self.objects.get(request.kind, {}).values():
            name = (
                item.annotations.name
                if request.kind == OBJECT_KIND_STACK
                else getattr(getattr(item, "spec", None), "annotations", None)
            )
            if item.id.startswith(request.reference) or request.reference in (name, getattr(name, "name", None)):
                return control.GetResponse(object=wrap(request.kind, item))
        word = ObjectKind.Name(request.kind).removeprefix("OBJECT_KIND_").lower()
        raise NotFound(f"cannot find {word} {request.reference!r}", "no such name", "list them")

    async def List(self, request: Any, context: Any) -> Any:
        return control.ListResponse(
            objects=[wrap(request.kind, item) for item in self.objects.get(request.kind, {}).values()]
        )

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        queue: asyncio.Queue[control.WatchEvent] = asyncio.Queue()
        self.watchers.append(queue)
        for kind in request.kinds:
            for item in list(self.objects[kind].values()):
                yield control.WatchEvent(action=control.WATCH_ACTION_SNAPSHOT, object=wrap(kind, item))
        yield control.WatchEvent(action=control.WATCH_ACTION_SNAPSHOT_END)
        while True:
            yield await queue.get()

    async def ClusterInfo(self, request: Any, context: Any) -> Any:
        return control.ClusterInfoResponse(version="0.1.0", node_id="node1", nodes_by_state={"ready": 1})

    async def CallNodes(self, request: Any, context: Any) -> Any:
        result = NodeCallResult()
        if request.call.HasField("image_inspect") and request.call.image_inspect.reference in self.images:
            result.image_inspect.image.id = "sha256:1"
        else:
            result.error.code, result.error.message = "NOT_FOUND", "cannot find the image\nit is not here\nbuild it"
        return control.CallNodesResponse(
            answers=[control.NodeAnswer(node_id="node1", node_hostname="n1", result=result)]
        )

    async def Logs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        line = LogLine(
            task_id="task1",
            service_name="shop_web",
            slot=1,
            node_hostname="n1",
            stream="stdout",
            line=b"out of cheese\n",
        )
        yield LogLines(lines=[line])

    async def SendToNode(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            if request.HasField("start"):
                self.images.add(request.start.call.image_build.reference)
                yield RelayOutput(build_progress=BuildProgress(text="#1 [1/1] FROM scratch"))
            elif request.input.HasField("data"):
                self.received += request.input.data
            elif request.input.end_of_data:
                break
        yield RelayOutput(result=RelayResult(images=[ImageSummary(id="sha256:1")]))


@asynccontextmanager
async def serving(folder: Path, fake: FakeControl) -> AsyncIterator[str]:
    """Serves ``fake`` on a socket in ``folder``; gives the address for ``--host``."""
    path = folder / "manager.sock"
    server = new_server()
    add_ControlServicer_to_server(fake, server)
    await start_on_unix_socket(server, path)
    node = Node(id="node1")
    node.description.hostname = "n1"
    fake.objects[OBJECT_KIND_NODE]["node1"] = node
    try:
        yield f"unix://{path}"
    finally:
        await stop(server, grace_s=0)


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str


async def orch(*arguments: str) -> Ran:
    """Runs a command in this loop."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            result = main.resolve(list(arguments))
            status = result if isinstance(result, int) else await result
        except Exception as error:
            status = main.report(error)
    return Ran(status, out.getvalue(), err.getvalue())


def spec_of(fake: FakeControl) -> StackSpec:
    """The stack that was applied last."""
    spec: StackSpec = fake.applied[-1].spec
    return spec
