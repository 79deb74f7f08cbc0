"""Commands run inside containers: health checks, `exec`.

A command's output is collected, or it has streams of its own: stdin, stdout and stderr as descriptors, or one unix
socket over which the end of a new terminal is sent. A command with streams of its own ends with its connection.
"""

from __future__ import annotations

import json
import os
import select

from orch_runtime import names
from orch_runtime.child.execution import run_exec_child
from orch_runtime.errors import InvalidConfig, Refused, WrongState
from orch_runtime.kernel import process
from orch_runtime.supervisor.container import read_request
from orch_runtime.supervisor.launch import close_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orch_runtime.child.execution import ExecStreams
    from orch_runtime.plan import ProcessPlan
    from orch_runtime.supervisor.container import Container
    from orch_runtime.supervisor.engine import Engine

MAX_RUNNING = 256
MAX_TIMEOUT_MS = 24 * 3600 * 1000
HANG_UP_S = 2.0  # between SIGHUP and SIGKILL


class Execs:
    """Starts commands and answers when they end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._own_pids_fd = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            self._last_capability = int(file.read())
        self.running = 0

    def start(
        self,
        container: Container,
        request: dict[str, object],
        done: Callable[[dict[str, object]], None],
        descriptors: Sequence[int] = (),
        started: Callable[[], None] | None = None,
    ) -> RunningCommand:
        """Run a command; `done` gets what protocol.ExecResult carries.

        `descriptors` are its streams, and stay the caller's; `started` is called when such a command executes.

        Raises:
            WrongState, InvalidConfig, Refused: it cannot be run.
        """
        if container.status != names.STATUS_RUNNING:
            raise WrongState(f"container {container.id} is {container.status}; commands run in running ones only")
        if self.running >= MAX_RUNNING:
            raise Refused(f"{self.running} commands are running in containers; the limit is {MAX_RUNNING}")
        limit = _integer(request, "max_output_bytes", 65536, 0, names.MAX_EXEC_OUTPUT_BYTES)
        timeout_ms = _integer(request, "timeout_ms", 30_000, 1, MAX_TIMEOUT_MS)
        plan = read_request(container.directory)["plan"]
        assert isinstance(plan, dict)
        confined = _merge(plan["process"], request)
        streams = _streams(request, descriptors)
        output_reader, output_writer = (-1, -1) if descriptors else os.pipe2(os.O_CLOEXEC)
        if not descriptors:
            streams["standard"] = [-1, output_writer, output_writer]
        status_reader, status_writer = os.pipe2(os.O_CLOEXEC)
        try:
            pid, pidfd = self._fork(container, confined, streams, status_writer)
        except BaseException:
            close_all([output_reader, status_reader])
            raise
        finally:
            close_all([output_writer, status_writer])
        self.running += 1
        return RunningCommand(self, pid, pidfd, output_reader, status_reader, limit, timeout_ms, done, started)

    def _fork(self, container: Container, confined: ProcessPlan, streams: ExecStreams, status: int) -> tuple[int, int]:
        cgroups = self._engine.cgroups
        join = cgroups.exec_paths(container.cgroup)
        # A process is born into a process namespace, it cannot enter one: so its parent points there for a moment.
        process.setns(container.pidfd, process.CLONE_NEWPID, f"processes of {container.id}")
        try:
            pid, pidfd = process.clone3(0)
            if pid == 0:
                try:
                    run_exec_child(container.pidfd, join, confined, streams, status, self._last_capability)
                finally:
                    os._exit(126)
        finally:
            process.setns(self._own_pids_fd, process.CLONE_NEWPID, "own processes")
        return pid, pidfd

    @property
    def loop_of_engine(self) -> Engine:
        """Return the engine."""
        return self._engine


class RunningCommand:
    """One running command."""

    def __init__(  # noqa: PLR0917 -- made in one place
        self,
        owner: Execs,
        pid: int,
        pidfd: int,
        output: int,
        status: int,
        limit: int,
        timeout_ms: int,
        done: Callable[[dict[str, object]], None],
        started: Callable[[], None] | None,
    ) -> None:
        self._owner = owner
        self._loop = owner.loop_of_engine.loop
        self._pid, self._pidfd, self._output, self._status = pid, pidfd, output, status
        self._limit = limit
        self._done = done
        self._started = started
        self._report = b""
        self._collected = bytearray()
        self._truncated = False
        self._timed_out = False
        self._ended = False
        if output >= 0:
            os.set_blocking(output, False)
            self._loop.watch(output, self._on_output)
        os.set_blocking(status, False)
        if started is not None:
            self._loop.watch(status, self._on_status)
        self._loop.watch(pidfd, self._on_end)
        self._loop.later(timeout_ms / 1000, self._on_timeout)

    def _on_output(self, _events: int) -> None:
        while self._output >= 0:
            try:
                data = os.read(self._output, 65536)
            except BlockingIOError:
                return
            if not data:
                self._loop.forget(self._output)
                os.close(self._output)
                self._output = -1
                return
            room = self._limit - len(self._collected)
            self._truncated = self._truncated or len(data) > room
            self._collected += data[:room]

    def _on_status(self, _events: int) -> None:
        """Executed, or failed: the program's end of the pipe closes on execve."""
        self._loop.forget(self._status)
        self._report = os.read(self._status, 8192)
        if not self._report and self._started is not None:
            self._started()

    def _on_timeout(self) -> None:
        if self._ended:
            return
        self._timed_out = True
        self.signal(9)

    def signal(self, number: int) -> None:
        """Send a signal to the command and what it started in its process group."""
        if self._ended:
            return
        for target in (-self._pid, self._pid) if number == 9 else (-self._pid,):
            try:
                os.kill(target, number)
            except ProcessLookupError:
                continue

    def hang_up(self) -> None:
        """Whoever ran the command is gone: it is told, and killed if it does not end."""
        self.signal(1)
        self._loop.later(HANG_UP_S, lambda: self.signal(9))

    def _on_end(self, _events: int) -> None:
        self._ended = True
        self._loop.forget(self._pidfd)
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        assert ended is not None
        code = ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
        os.close(self._pidfd)
        # What the command has written is in the pipe by now; a process it left behind may hold the pipe for ever.
        self._on_output(select.EPOLLIN)
        if self._output >= 0:
            self._loop.forget(self._output)
            os.close(self._output)
        report = self._report
        if not report:
            try:
                report = os.read(self._status, 8192)
            except BlockingIOError:
                report = b""
        if self._started is not None:
            self._loop.forget(self._status)
        os.close(self._status)
        output = self._collected.decode(errors="replace")
        if report:
            failure = json.loads(report)
            code, output = failure["exit_code"], failure["message"]
        self._owner.running -= 1
        self._done({"exit_code": code, "output": output, "timed_out": self._timed_out, "truncated": self._truncated})


def _streams(request: dict[str, object], descriptors: Sequence[int]) -> ExecStreams:
    streams: ExecStreams = {"standard": [], "console": -1, "rows": 0, "columns": 0}
    if request.get("terminal"):
        if len(descriptors) != 1:
            raise InvalidConfig("descriptors", "must be one unix socket, over which the terminal is sent")
        streams["console"] = descriptors[0]
        streams["rows"] = _integer(request, "rows", 0, 0, 65535)
        streams["columns"] = _integer(request, "columns", 0, 0, 65535)
    elif descriptors:
        if len(descriptors) != 3:
            raise InvalidConfig("descriptors", "must be stdin, stdout and stderr, or none")
        streams["standard"] = list(descriptors)
    return streams


def _integer(request: dict[str, object], key: str, otherwise: int, low: int, high: int) -> int:
    value = request.get(key, otherwise)
    if not isinstance(value, int) or not low <= value <= high:
        raise InvalidConfig(key, f"must be a number between {low} and {high}, not {value!r}")
    return value


def _texts(request: dict[str, object], key: str) -> list[str]:
    value = request.get(key) or []
    if not isinstance(value, list) or not all(isinstance(entry, str) and "\0" not in entry for entry in value):
        raise InvalidConfig(key, "must be a list of strings")
    return value


def _merge(base: ProcessPlan, request: dict[str, object]) -> ProcessPlan:
    """Return the container's process with the command's arguments, environment on top, folder and user."""
    args = _texts(request, "args")
    if not args or not args[0]:
        raise InvalidConfig("args", "must name a program")
    env = _texts(request, "env")
    for entry in env:
        if "=" not in entry:
            raise InvalidConfig("env", f"{entry!r} must have the form NAME=value")
    cwd = request.get("cwd") or base["cwd"]
    user = request.get("user") or ""
    if not isinstance(cwd, str) or not cwd.startswith("/") or "\0" in cwd:
        raise InvalidConfig("cwd", f"must be an absolute path, not {cwd!r}")
    if not isinstance(user, str) or "\0" in user:
        raise InvalidConfig("user", "must be a string")
    merged: ProcessPlan = {**base, "args": args, "env": [*base["env"], *env], "cwd": cwd}
    if user:
        merged["user"] = {**base["user"], "name": user, "additional_gids": []}
    return merged


__all__ = ["Execs", "RunningCommand"]
