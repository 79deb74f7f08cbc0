"""A real manager process, and a small agent that speaks with it over its socket: every program runs at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from orch_proto.control_pb2_grpc import ControlStub
from orch_proto.dispatcher_pb2 import (
    AgentMessage,
    RelayDown,
    RelayHello,
    RelayUp,
    SessionOpen,
    StatusBatch,
    TaskStatusUpdate,
)
from orch_proto.dispatcher_pb2_grpc import DispatcherStub, RelayStub
from orch_proto.node_pb2 import LogLine, LogLines, NodeCallResult, RelayOutput, RelayResult
from orch_proto.objects_pb2 import ChangeAction, Cluster, Node, NodeDescription, StoreChanges, Task
from orch_proto.specs_pb2 import NodeAvailability, NodeRole, ServiceSpec, StackSpec
from orch_proto.types_pb2 import Platform, Resources, TaskStatus
from orch_rpc.channels import unix_channel

NODE_ID = "node1"
_UP = (256, 320, 384, 448, 512)


def founding() -> StoreChanges:
    """What orchd writes for a new cluster."""
    cluster, node = Cluster(id="cluster"), Node(id=NODE_ID, role=NodeRole.NODE_ROLE_MANAGER)
    cluster.spec.annotations.name = "default"
    node.spec.annotations.name = "one"
    node.spec.availability = NodeAvailability.NODE_AVAILABILITY_ACTIVE
    changes = StoreChanges()
    changes.changes.add(action=ChangeAction.CHANGE_ACTION_CREATE).object.cluster.CopyFrom(cluster)
    changes.changes.add(action=ChangeAction.CHANGE_ACTION_CREATE).object.node.CopyFrom(node)
    return changes


def web_stack(replicas: int) -> StackSpec:
    """A stack of one published service on a network."""
    spec = StackSpec(name="shop")
    spec.networks.add().annotations.name = "shop_default"
    web: ServiceSpec = spec.services.add()
    web.annotations.name = "shop_web"
    web.mode.replicated.replicas = replicas
    web.task.container.image = "web:1"
    web.task.networks.add(target="shop_default")
    web.task.restart.delay_ms = 0
    web.endpoint.ports.add(target_port=80, published_port=8080, protocol=1, mode=1)
    return spec


class ManagerProcess:
    """`python -m orch_manager` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "manager.sock"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it and waits for its socket."""
        bootstrap = self.folder / "bootstrap.pb"
        bootstrap.write_bytes(founding().SerializeToString())
        self.socket.unlink(missing_ok=True)
        arguments = ["--state-dir", self.folder / "state", "--run-dir", self.folder, "--node-id", NODE_ID]
        arguments += ["--bootstrap", bootstrap, "--metrics-address", "", "--log-level", "warning"]
        self._process = await asyncio.create_subprocess_exec(sys.executable, "-m", "orch_manager", *arguments)
        deadline = time.monotonic() + 20
        while not self.socket.exists():
            assert self._process.returncode is None, "the manager ended at its start"
            assert time.monotonic() < deadline, "the manager did not open its socket"
            await asyncio.sleep(0.005)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; its exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()

    def cpu_s(self) -> float:
        """Seconds of CPU it has used."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def pss_kib(self) -> int:
        """Its proportional share of memory."""
        assert self._process is not None
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        return int(text.partition("Pss:")[2].split()[0])


class WireAgent:
    """Attaches, runs what it is told, answers image questions, serves logs and echoes."""

    def __init__(self, socket: Path) -> None:
        self.tasks: dict[str, Task] = {}
        self.told: asyncio.Event = asyncio.Event()
        self.terms: list[int] = []
        self.acknowledged = 0
        self._channel = unix_channel(socket)
        self.control = ControlStub(self._channel)
        self._relay = RelayStub(self._channel)
        self._call: Any = None
        self._batch = 0
        self._work: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Serves one session until it ends."""
        description = NodeDescription(hostname="one", platform=Platform(os="linux", architecture="amd64"))
        description.resources.CopyFrom(Resources(nano_cpus=8_000_000_000, memory_bytes=8 << 30))
        self._call = DispatcherStub(self._channel).Attach(wait_for_ready=True)
        await self._call.write(AgentMessage(open=SessionOpen(node_id=NODE_ID, description=description)))
        while message := await self._call.read():
            self.terms.append(message.term)
            kind = message.WhichOneof("message")
            if kind == "call":
                answer = NodeCallResult(call_id=message.call.call_id)
                if message.call.image_inspect.reference.startswith("absent"):
                    answer.error.code = "NOT_FOUND"
                else:
                    answer.image_inspect.image.id = "sha256:1"
                await self._call.write(AgentMessage(call_result=answer))
            elif kind == "assignments":
                await self._take(message.assignments)
            elif kind == "status_ack":
                self.acknowledged += 1
            elif kind == "relay":
                work = asyncio.create_task(self._serve_relay(message.relay.relay_id))
                self._work.add(work)
                work.add_done_callback(self._work.discard)
            self.told.set()

    async def _take(self, assignments: Any) -> None:
        updates = []
        for change in assignments.changes:
            if not change.assignment.HasField("task"):
                continue
            task = change.assignment.task
            if change.action == 2:
                self.tasks.pop(task.id, None)
                continue
            self.tasks[task.id] = task
            reached = _UP if task.desired_state == 512 else _UP[:3] if task.desired_state < 512 else (640,)
            updates += [(task.id, state) for state in reached if state > task.status.state]
        await self.say(*updates)

    async def say(self, *updates: tuple[str, int]) -> None:
        """Reports states of tasks."""
        if not updates:
            return
        self._batch += 1
        now_ms = time.time_ns() // 1_000_000
        batch = StatusBatch(batch=self._batch)
        for task_id, state in updates:
            status = TaskStatus(state=state, timestamp_unix_ms=now_ms)  # type: ignore[arg-type]  # an enum's number
            batch.updates.append(TaskStatusUpdate(task_id=task_id, status=status))
        await self._call.write(AgentMessage(statuses=batch))

    async def _serve_relay(self, relay_id: str) -> None:
        """Logs: two lines a task. Exec: echoes its input in upper case."""
        stream = self._relay.Open()
        await stream.write(RelayUp(hello=RelayHello(relay_id=relay_id, node_id=NODE_ID)))
        first: RelayDown = await stream.read()
        if first.call.HasField("logs"):
            lines = [
                LogLine(task_id=task_id, timestamp_unix_ns=number, stream="stdout", line=b"line %d" % number)
                for number in range(2)
                for task_id in first.call.logs.task_ids
            ]
            await stream.write(RelayUp(output=RelayOutput(log_lines=LogLines(lines=lines))))
        else:
            while (down := await stream.read()) and not down.input.end_of_data:
                output = RelayOutput()
                output.exec_output.stdout = down.input.data.upper()
                await stream.write(RelayUp(output=output))
        await stream.write(RelayUp(output=RelayOutput(result=RelayResult(exit_code=7))))
        await stream.done_writing()
        await stream.read()

    async def until(self, running: int, *, slots: bool = True, timeout_s: float = 20.0) -> list[Task]:
        """The tasks that are to run, once there are so many of them, in different slots."""
        async with asyncio.timeout(timeout_s):
            while True:
                wanted = [task for task in self.tasks.values() if task.desired_state == 512]
                if len({task.slot for task in wanted} if slots else wanted) == running == len(wanted):
                    return wanted
                self.told.clear()
                await self.told.wait()

    async def close(self) -> None:
        """Ends the session."""
        if self._call is not None:
            self._call.cancel()
        await self._channel.close()
