"""A blocking client of the supervisor, for the command line, tests and tools."""

from __future__ import annotations

import array
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from orch_runtime import protocol
from orch_runtime.errors import Unavailable
from orch_runtime.kernel.buffers import enlarge_buffers
from orch_runtime.plan import LimitsPlan, Plan
from orch_runtime.protocol import ContainerState, ContainerStats, ExecResult, ExitEvent, OomEvent


class RuntimeClient:
    """One connection. Not thread-safe. Every method raises RuntimeFailure; Unavailable if the supervisor goes away."""

    def __init__(self, path: str, *, connect_timeout_s: float = 5.0, timeout_s: float = 60.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._seq = 0
        self._events: list[ExitEvent | OomEvent] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._buffer = bytearray(protocol.MAX_MESSAGE_BYTES)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(connect_timeout_s)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise Unavailable(
                f"no runtime answers on {path}: {error.strerror or error}; start it with `orch-runtime keeper`"
            ) from error
        enlarge_buffers(self._socket, protocol.MAX_MESSAGE_BYTES * 2)

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, op: str, *, descriptors: Sequence[int] = (), **arguments: object) -> int:
        """Send a request without waiting; returns its number for `wait`."""
        self._seq += 1
        data = protocol.encode({"seq": self._seq, "op": op, **arguments})
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._socket.settimeout(self._timeout_s)
        try:
            self._socket.sendmsg([data], ancillary)
        except OSError as error:
            raise Unavailable(f"the runtime on {self._path} went away: {error}") from error
        return self._seq

    def _receive(self, deadline: float) -> dict[str, Any]:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            size = self._socket.recv_into(self._buffer)
        except TimeoutError as error:
            raise Unavailable(f"the runtime on {self._path} did not answer in time") from error
        except OSError as error:
            raise Unavailable(f"the runtime on {self._path} went away: {error}") from error
        if size == 0:
            raise Unavailable(f"the runtime on {self._path} closed the connection")
        return protocol.decode(bytes(memoryview(self._buffer)[:size]))

    def wait(self, seq: int, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the answer to request `seq`, keeping other answers and events for later."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while seq not in self._answers:
            message = self._receive(deadline)
            if "event" in message:
                event = protocol.parse_event(message)
                if event is not None:
                    self._events.append(event)
            elif isinstance(message.get("seq"), int):
                self._answers[message["seq"]] = message
        return protocol.answer_of(self._answers.pop(seq))

    def call(self, op: str, *, timeout_s: float | None = None, **arguments: object) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        return self.wait(self.send(op, descriptors=(), **arguments), timeout_s)

    def create(self, plan: Plan, descriptors: Sequence[int] = ()) -> ContainerState:
        """Set a container up to the point before its program is executed."""
        return protocol.parse_state(self.wait(self.send(protocol.OP_CREATE, plan=plan, descriptors=descriptors)))

    def start(self, container_id: str) -> ContainerState:
        """Execute the program of a created container."""
        return protocol.parse_state(self.call(protocol.OP_START, id=container_id))

    def run(self, plan: Plan, descriptors: Sequence[int] = ()) -> ContainerState:
        """Create and start. `descriptors` (stdin, stdout, stderr) take the place of the plan's log."""
        return protocol.parse_state(self.wait(self.send(protocol.OP_RUN, plan=plan, descriptors=descriptors)))

    def kill(self, container_id: str, signal: int = 15, *, everyone: bool = False) -> None:
        """Send a signal to the first process, or to all."""
        self.call(protocol.OP_KILL, id=container_id, signal=int(signal), all=everyone)

    def delete(self, container_id: str, *, force: bool = False) -> None:
        """Forget a container that has exited; `force` kills it first."""
        self.call(protocol.OP_DELETE, id=container_id, force=force)

    def state(self, container_id: str) -> ContainerState:
        """Return one container."""
        return protocol.parse_state(self.call(protocol.OP_STATE, id=container_id))

    def list(self) -> Sequence[ContainerState]:
        """Return every container, those that exited included until they are deleted."""
        return [protocol.parse_state(entry) for entry in self.call(protocol.OP_LIST)["containers"]]

    def exec(
        self,
        container_id: str,
        args: Sequence[str],
        *,
        env: Sequence[str] = (),
        cwd: str = "",
        user: str = "",
        timeout_ms: int = 30_000,
        max_output_bytes: int = 65536,
    ) -> ExecResult:
        """Run a command inside a container. `env` adds to the container's; empty cwd and user mean the container's."""
        answer = self.call(
            protocol.OP_EXEC,
            timeout_s=timeout_ms / 1000 + self._timeout_s,
            id=container_id,
            args=list(args),
            env=list(env),
            cwd=cwd,
            user=user,
            timeout_ms=timeout_ms,
            max_output_bytes=max_output_bytes,
        )
        return protocol.parse_exec(answer)

    def stats(self, ids: Sequence[str] | None = None) -> Sequence[ContainerStats]:
        """Return the usage of all running containers, or of some."""
        answer = self.call(protocol.OP_STATS, ids=None if ids is None else [*ids])
        return [protocol.parse_stats(entry) for entry in answer["stats"]]

    def update(self, container_id: str, limits: LimitsPlan) -> Sequence[str]:
        """Change limits of a running container; returns warnings."""
        answer = self.call(protocol.OP_UPDATE, id=container_id, limits=limits)
        return [str(entry) for entry in answer.get("warnings", ())]

    def pause(self, container_id: str) -> None:
        """Freeze every process."""
        self.call(protocol.OP_PAUSE, id=container_id)

    def resume(self, container_id: str) -> None:
        """Thaw."""
        self.call(protocol.OP_RESUME, id=container_id)

    def subscribe(self) -> None:
        """Ask for events; read them with `events`."""
        self.call(protocol.OP_SUBSCRIBE)

    def events(self, timeout_s: float) -> Iterator[ExitEvent | OomEvent]:
        """Yield events as they come, until timeout_s has passed."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self._events:
                yield self._events.pop(0)
            if time.monotonic() >= deadline:
                return
            try:
                message = self._receive(deadline)
            except Unavailable:
                if time.monotonic() >= deadline:
                    return
                raise
            event = protocol.parse_event(message)
            if event is not None:
                self._events.append(event)

    def version(self) -> Mapping[str, Any]:
        """Return version, pid, cgroup version and counters of the supervisor."""
        return self.call(protocol.OP_VERSION)

    def shutdown(self, *, force: bool = False) -> None:
        """Stop the keeper and its wards; refused while containers are there, unless forced (which kills them)."""
        self.call(protocol.OP_SHUTDOWN, force=force)
