"""Drives a playground as a person does, with the command line, and looks into it with the control API."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import TypeVar

import grpc

from orch_cli.playground.layout import Layout, NodePlace
from orch_cli.playground.power import MODULES, processes_of, processes_of_part
from orch_cli.playground.processes import ProcessId, identify
from orch_proto import control_pb2, control_pb2_grpc, objects_pb2, types_pb2

ORCH = Path(sys.executable).with_name("orch")
COMMAND_LIMIT_S = 50.0
POLL_S = 0.02

__all__ = [
    "MODULES",
    "Playground",
    "Result",
    "command_line",
    "is_up",
    "on_node",
    "own_subnet",
    "task_processes",
    "wait_for",
]
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What a command answered."""

    status: int
    stdout: str
    stderr: str


def wait_for(condition: Callable[[], T | None], what: str, limit_s: float = 20.0) -> T:
    """Polls until a condition is true and returns its value; fails with what it was last."""
    deadline = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what}; last seen: {value!r}")
        time.sleep(POLL_S)


def own_subnet(number: int) -> str:
    """An address range that other runs of the tests on this machine hardly have: they have another pid."""
    return f"172.31.{(os.getpid() * 4 + number) % 240}.0/24"


@dataclass
class Playground:
    """One playground; with one node, a manager, unless told otherwise.

    A node is meant by its number: `playground.kill(node=2)`.
    """

    name: str
    subnet: str
    folder: Path
    managers: int = 1
    workers: int = 0
    _index: int = field(default=0)

    @property
    def layout(self) -> Layout:
        return Layout(self.name, IPv4Network(self.subnet), self.managers + self.workers)

    @property
    def nodes(self) -> tuple[NodePlace, ...]:
        return self.layout.nodes

    @property
    def node(self) -> NodePlace:
        """The first node, which many tests have no other beside."""
        return self.layout.nodes[0]

    def place(self, node: int) -> NodePlace:
        return self.layout.nodes[node - 1]

    # ---- the command line ------------------------------------------------------------------------

    def orch(
        self,
        *words: str,
        ok: bool = True,
        limit_s: float = COMMAND_LIMIT_S,
        env: dict[str, str] | None = None,
        node: int = 1,
    ) -> Result:
        """Runs `orch` against the manager of a node; unless ``ok`` is False it must succeed."""
        process = subprocess.run(
            [ORCH, *words],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "ORCH_HOST": f"unix://{self.place(node).manager_socket}", **(env or {})},
        )
        result = Result(process.returncode, process.stdout, process.stderr)
        assert not ok or result.status == 0, f"orch {' '.join(words)}: {result}\n{self.log_tail()}"
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def playground(self, verb: str, *words: str, ok: bool = True) -> Result:
        """`orch playground VERB` for this playground."""
        return self.orch("playground", verb, "--name", self.name, *words, ok=ok)

    def up(self, *options: str) -> None:
        size = ("--managers", str(self.managers), "--workers", str(self.workers))
        self.playground("up", "--subnet", self.subnet, "--metrics", *size, *options)

    def down(self) -> None:
        self.playground("down")

    def file(self, text: str, name: str = "stack.yml") -> str:
        """A stack file in a folder of its own."""
        self._index += 1
        folder = self.folder / f"stack{self._index}"
        folder.mkdir()
        (folder / name).write_text(text)
        return str(folder / name)

    def deploy(self, stack: str, text: str, *options: str, ok: bool = True, limit_s: float = COMMAND_LIMIT_S) -> Result:
        return self.orch("deploy", "--name", stack, *options, self.file(text), ok=ok, limit_s=limit_s)

    # ---- the control API -------------------------------------------------------------------------

    def objects(self, kind: types_pb2.ObjectKind.ValueType) -> list[objects_pb2.Object]:
        """All objects of a kind; asked again while a manager that was killed comes back."""
        request = control_pb2.ListRequest(kind=kind)
        return list(self._ask_any(lambda stub: stub.List(request, timeout=5)).objects)

    def info(self) -> control_pb2.ClusterInfoResponse:
        """What a manager that has a majority says of the cluster and of its managers."""

        def question(stub: control_pb2_grpc.ControlStub) -> control_pb2.ClusterInfoResponse:
            # Unlike this, ClusterInfo is answered without a majority as well.
            stub.List(control_pb2.ListRequest(kind=types_pb2.OBJECT_KIND_CLUSTER), timeout=5)
            return stub.ClusterInfo(control_pb2.ClusterInfoRequest(), timeout=5)

        return self._ask_any(question)

    def _ask_any(self, question: Callable[[control_pb2_grpc.ControlStub], T]) -> T:
        """The answer of the first manager that has one."""

        def ask() -> T | None:
            answers = (self._ask(node, question) for node in self.nodes)
            return next((answer for answer in answers if answer is not None), None)

        return wait_for(ask, "an answer of a manager")

    @staticmethod
    def _ask(node: NodePlace, question: Callable[[control_pb2_grpc.ControlStub], T]) -> T | None:
        if not node.manager_socket.exists():
            return None
        with grpc.insecure_channel(f"unix:{node.manager_socket}") as channel:
            try:
                return question(control_pb2_grpc.ControlStub(channel))
            except grpc.RpcError as error:
                if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                    raise
                return None

    def services(self) -> dict[str, objects_pb2.Service]:
        found = [one.service for one in self.objects(types_pb2.OBJECT_KIND_SERVICE)]
        return {service.spec.annotations.name: service for service in found}

    def tasks(self, service: str | None = None) -> list[objects_pb2.Task]:
        """Tasks, of one service or all, the newest last."""
        ids = {name: one.id for name, one in self.services().items()}
        tasks = [one.task for one in self.objects(types_pb2.OBJECT_KIND_TASK)]
        chosen = [task for task in tasks if service is None or task.service_id == ids.get(service)]
        return sorted(chosen, key=lambda task: (task.slot, task.meta.created_at_unix_ms, task.meta.version_index))

    def running(self, service: str | None = None) -> list[objects_pb2.Task]:
        return [task for task in self.tasks(service) if is_up(task)]

    def wait_running(self, service: str, count: int, limit_s: float = 30.0) -> list[objects_pb2.Task]:
        """Waits until exactly so many tasks run, each in a slot of its own, and no other is wanted."""

        def converged() -> list[objects_pb2.Task]:
            tasks = self.tasks(service)
            wanted = [task for task in tasks if task.desired_state <= types_pb2.TASK_STATE_RUNNING]
            up = [task for task in wanted if is_up(task)]
            return up if len(up) == len(wanted) == count == len({task.slot for task in up}) else []

        return wait_for(converged, f"{count} running tasks of {service}", limit_s)

    # ---- failures --------------------------------------------------------------------------------

    def process(self, part: str, node: int = 1) -> ProcessId:
        """The process of a part of a node: orchd, manager, keeper, supervisor or network."""

        def find() -> ProcessId | None:
            return next(iter(processes_of_part(self.place(node), part)), None)

        return wait_for(find, f"a {part} process of node {node}")

    def kill(self, part: str, node: int = 1) -> ProcessId:
        """Kill -9 of a part; where nobody else starts it again, as for orchd, the test does."""
        victim = self.process(part, node)
        victim.kill()
        wait_for(lambda: not victim.is_alive(), f"the end of {part}")
        return victim

    def restart_daemon(self, node: int = 1) -> None:
        self.playground("start", self.place(node).hostname)

    def power_off(self, node: int) -> None:
        """Ends a node with its containers as a loss of power does."""
        self.playground("kill", self.place(node).hostname)

    def freeze(self, node: int, part: str = "all") -> None:
        """Stops a node's processes where they are."""
        self.playground("kill", self.place(node).hostname, "--signal", "STOP", "--part", part)

    def thaw(self, node: int, part: str = "all") -> None:
        self.playground("kill", self.place(node).hostname, "--signal", "CONT", "--part", part)

    def start(self, *nodes: int) -> None:
        """Starts nodes, or all that do not run."""
        self.playground("start", *(self.place(node).hostname for node in nodes))

    def partition(self, *expressions: str) -> None:
        """Parts nodes, in place of what was parted before: see `orch playground partition --help`."""
        self.playground("partition", *expressions)

    def heal(self) -> None:
        self.playground("heal")

    def processes(self, node: int) -> list[ProcessId]:
        """All processes of a node, containers included."""
        return processes_of([self.place(node)])

    def run_on(self, node: int, *command: str, ok: bool = True) -> Result:
        """Runs a command on a node."""
        return self.playground("exec", self.place(node).hostname, "--", *command, ok=ok)

    def leader(self) -> int:
        """The number of the node whose manager leads, by what a majority's managers say."""
        by_name = {node.hostname: node.number for node in self.nodes}

        def find() -> int | None:
            leaders = [member.hostname for member in self.info().members if member.leader]
            return by_name[leaders[0]] if leaders else None

        return wait_for(find, "a leader")

    def calm(self, limit_s: float = 40.0) -> None:
        """Ends all faults, starts what is off, and waits until every node is ready."""
        self.heal()
        for node in self.nodes:
            self.playground("kill", node.hostname, "--signal", "CONT", ok=False)
        self.start()

        def all_ready() -> bool:
            info = self.info()
            voters = [one for one in info.members if one.reachable and not one.learner]
            return info.nodes_by_state["ready"] == len(self.nodes) and len(voters) >= self.managers

        wait_for(all_ready, "all nodes ready", limit_s)

    def log_tail(self, lines: int = 40) -> str:
        """The end of the daemon's log, for the message of a failed test."""
        try:
            return "\n".join(self.node.log_file.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"

    # ---- the network -----------------------------------------------------------------------------

    def get(self, port: int, path: str = "/", limit_s: float = 10.0) -> str:
        """The answer of a published port; waits until there is one."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ask() -> str | None:
            try:
                with opener.open(f"http://{self.node.address}:{port}{path}", timeout=3) as answer:
                    return answer.read().decode()
            except (urllib.error.URLError, OSError):
                return None

        return wait_for(ask, f"an answer at port {port}", limit_s)


def on_node(place: NodePlace, make: Callable[[], T]) -> T:
    """Calls a function in a node's network: sockets that it makes belong to the node for ever."""
    libc = ctypes.CDLL(None, use_errno=True)

    def inside() -> T:
        with place.namespace_path.open("rb") as handle:
            # Of this thread alone, which ends afterwards.
            assert libc.setns(handle.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        return make()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(inside).result()


def is_up(task: objects_pb2.Task) -> bool:
    """Whether a task is wanted and runs."""
    return task.status.state == types_pb2.TASK_STATE_RUNNING and task.desired_state == types_pb2.TASK_STATE_RUNNING


def command_line(pid: int) -> list[str]:
    """The words of a process' command line; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def task_processes(tasks: Iterable[objects_pb2.Task]) -> dict[str, ProcessId | None]:
    """The first process of each task, by task id."""
    return {task.id: identify(task.status.container.pid) for task in tasks}
