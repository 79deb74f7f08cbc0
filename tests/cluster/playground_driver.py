"""Drives a playground as a person does, with the command line, and looks into it with the control API."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import TypeVar

import grpc

from orch_cli.playground import record
from orch_cli.playground.layout import Layout, NodePlace
from orch_cli.playground.processes import ProcessId, identify, in_network_namespace
from orch_proto import control_pb2, control_pb2_grpc, objects_pb2, types_pb2

ORCH = Path(sys.executable).with_name("orch")
COMMAND_LIMIT_S = 50.0
POLL_S = 0.02

#: The modules of a node's processes, by the names that the documentation uses.
MODULES = {
    "manager": "orch_manager",
    "keeper": "orch_runtime.keeper",
    "supervisor": "orch_runtime.supervisor.main",
    "network": "orch_network.netd",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What a command answered."""

    status: int
    stdout: str
    stderr: str


def wait_for(condition: Callable[[], T], what: str, limit_s: float = 20.0) -> T:
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
    """One playground with one node."""

    name: str
    subnet: str
    folder: Path
    _index: int = field(default=0)

    @property
    def layout(self) -> Layout:
        return Layout(self.name, IPv4Network(self.subnet), 1)

    @property
    def node(self) -> NodePlace:
        return self.layout.nodes[0]

    # ---- the command line ------------------------------------------------------------------------

    def orch(
        self, *words: str, ok: bool = True, limit_s: float = COMMAND_LIMIT_S, env: dict[str, str] | None = None
    ) -> Result:
        """Runs `orch`; unless ``ok`` is False it must succeed."""
        process = subprocess.run(
            [ORCH, *words],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "ORCH_HOST": f"unix://{self.node.manager_socket}", **(env or {})},
        )
        result = Result(process.returncode, process.stdout, process.stderr)
        assert not ok or result.status == 0, f"orch {' '.join(words)}: {result}\n{self.log_tail()}"
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def up(self) -> None:
        self.orch("playground", "up", "--name", self.name, "--subnet", self.subnet, "--metrics")

    def down(self) -> None:
        self.orch("playground", "down", "--name", self.name)

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

    def objects(self, kind: types_pb2.ObjectKind) -> list[objects_pb2.Object]:
        """All objects of a kind; asked again while a manager that was killed comes back."""

        def ask() -> control_pb2.ListResponse | None:
            with grpc.insecure_channel(f"unix:{self.node.manager_socket}") as channel:
                try:
                    return control_pb2_grpc.ControlStub(channel).List(
                        control_pb2.ListRequest(kind=kind), timeout=5, wait_for_ready=False
                    )
                except grpc.RpcError as error:
                    if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                        raise
                    return None

        return list(wait_for(ask, "an answer of the manager").objects)

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

    # ---- processes -------------------------------------------------------------------------------

    def process(self, part: str) -> ProcessId:
        """The process of a part of the node: orchd, manager, keeper, supervisor or network."""

        def find() -> ProcessId | None:
            if part == "orchd":
                found = record.load(self.name).daemons["node-1"]
                return found if found.is_alive() else None
            for identity in in_network_namespace(self.node.namespace_path):
                if MODULES[part] in command_line(identity.pid) and not in_inner_namespace(identity.pid):
                    return identity
            return None

        return wait_for(find, f"a {part} process")

    def kill(self, part: str) -> ProcessId:
        """Kill -9 of a part; where nobody else starts it again, as for orchd, the test does."""
        victim = self.process(part)
        victim.kill()
        wait_for(lambda: not victim.is_alive(), f"the end of {part}")
        return victim

    def restart_daemon(self) -> None:
        self.orch("playground", "start", "--name", self.name, "node-1")

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


def is_up(task: objects_pb2.Task) -> bool:
    """Whether a task is wanted and runs."""
    return task.status.state == types_pb2.TASK_STATE_RUNNING and task.desired_state == types_pb2.TASK_STATE_RUNNING


def command_line(pid: int) -> list[str]:
    """The words of a process' command line; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def in_inner_namespace(pid: int) -> bool:
    """Whether a process is in a pid namespace below this one, as the supervisor's spare children are."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(line.startswith("NSpid:") and len(line.split()) > 2 for line in status.splitlines())


def task_processes(tasks: Iterable[objects_pb2.Task]) -> dict[str, ProcessId | None]:
    """The first process of each task, by task id."""
    return {task.id: identify(task.status.container.pid) for task in tasks}
