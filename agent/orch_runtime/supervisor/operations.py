"""What each request does."""

from __future__ import annotations

import os

from orch_runtime import fdstore, names
from orch_runtime.errors import InvalidConfig, NotFound, Refused, RuntimeFailure
from orch_runtime.supervisor.launch import close_all
from orch_runtime.supervisor.usage import container_usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.plan import LimitsPlan
    from orch_runtime.supervisor.container import Container
    from orch_runtime.supervisor.engine import Engine
    from orch_runtime.supervisor.execs import Execs, RunningCommand
    from orch_runtime.supervisor.server import Connection, Handler, Server

PROTOCOL_VERSION = 1
_LIMIT_NAMES = {
    "memory_bytes",
    "memory_swap_bytes",
    "memory_reservation_bytes",
    "cpu_shares",
    "cpu_quota_us",
    "cpu_period_us",
    "pids_max",
}


class Operations:
    """One method for each operation of the protocol."""

    def __init__(self, engine: Engine, execs: Execs) -> None:
        self.engine = engine
        self.execs = execs
        self.server: Server | None = None
        self._running: dict[tuple[Connection, int], RunningCommand] = {}
        self.handlers: dict[str, Handler] = {
            names.OP_CREATE: self._launch,
            names.OP_RUN: self._launch,
            names.OP_START: self._start,
            names.OP_KILL: self._kill,
            names.OP_DELETE: self._delete,
            names.OP_STATE: self._state,
            names.OP_LIST: self._list,
            names.OP_EXEC: self._exec,
            names.OP_EXEC_SIGNAL: self._exec_signal,
            names.OP_PROCESSES: self._processes,
            names.OP_STATS: self._stats,
            names.OP_UPDATE: self._update,
            names.OP_PAUSE: self._pause,
            names.OP_RESUME: self._pause,
            names.OP_SUBSCRIBE: self._subscribe,
            names.OP_VERSION: self._version,
            names.OP_SHUTDOWN: self._shutdown,
        }

    def _answer(
        self, connection: Connection, seq: int, result: dict[str, object], error: Exception | None = None
    ) -> None:
        if error is None:
            connection.send({"seq": seq, "ok": result})
        else:
            assert self.server is not None
            self.server.fail(connection, seq, error)

    def _launch(self, connection: Connection, seq: int, message: dict[str, object], raw: bytes, fds: list[int]) -> None:
        def done(container: Container, error: Exception | None) -> None:
            self._answer(connection, seq, container.public(), error)

        if fds and len(fds) != 3:
            for fd in fds:
                os.close(fd)
            raise InvalidConfig("descriptors", "must be stdin, stdout and stderr, or none")
        self.engine.launch(message.get("plan"), raw, fds, done, start=message["op"] == names.OP_RUN)  # type: ignore[arg-type]

    def _start(
        self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        container = self.engine.get(message.get("id"))
        self.engine.start(container, lambda error: self._answer(connection, seq, container.public(), error))

    def _kill(self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, _fds: list[int]) -> None:
        number = message.get("signal", 15)
        if not isinstance(number, int):
            raise InvalidConfig("signal", "must be a number")
        self.engine.kill(self.engine.get(message.get("id")), number, everyone=bool(message.get("all")))
        self._answer(connection, seq, {})

    def _delete(
        self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        container = self.engine.get(message.get("id"))
        self.engine.delete(container, lambda: self._answer(connection, seq, {}), force=bool(message.get("force")))

    def _state(
        self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        self._answer(connection, seq, self.engine.get(message.get("id")).public())

    def _list(
        self, connection: Connection, seq: int, _message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        containers = [container.public() for container in self.engine.containers.values()]
        self._answer(connection, seq, {"containers": containers})

    def _exec(self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, fds: list[int]) -> None:
        def done(result: dict[str, object]) -> None:
            connection.on_close.pop(seq, None)
            self._running.pop((connection, seq), None)
            self._answer(connection, seq, result)

        def started() -> None:
            connection.send({"event": names.EVENT_EXEC_STARTED, "seq": seq})

        try:
            container = self.engine.get(message.get("id"))
            command = self.execs.start(container, message, done, fds, started)
        finally:
            close_all(fds)
        if fds:
            self._running[connection, seq] = command
            connection.on_close[seq] = command.hang_up

    def _exec_signal(
        self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        """Signal a command that was started on this connection: `exec` is the number of its request."""
        number, of = message.get("signal"), message.get("exec")
        if not isinstance(number, int) or not 1 <= number < 65:
            raise InvalidConfig("signal", "must be a number between 1 and 64")
        command = self._running.get((connection, of)) if isinstance(of, int) else None
        if command is None:
            raise NotFound(f"no command with the request number {of!r} runs on this connection; it may have ended")
        command.signal(number)
        self._answer(connection, seq, {})

    def _processes(
        self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        container = self.engine.get(message.get("id"))
        alive = container.status != names.STATUS_EXITED
        pids = self.engine.cgroups.processes(container.cgroup) if alive else []
        self._answer(connection, seq, {"pids": sorted(pids)})

    def _stats(
        self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        ids = message.get("ids")
        if ids is not None and not isinstance(ids, list):
            raise InvalidConfig("ids", "must be a list of ids, or null for all")
        containers = self.engine.alive() if ids is None else [self.engine.get(entry) for entry in ids]
        running = (names.STATUS_RUNNING, names.STATUS_PAUSED)
        usage = [container_usage(self.engine.cgroups, entry) for entry in containers if entry.status in running]
        self._answer(connection, seq, {"stats": usage})

    def _update(
        self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        limits = message.get("limits")
        if not isinstance(limits, dict):
            raise InvalidConfig("limits", "must be an object")
        for key, value in limits.items():
            if key not in _LIMIT_NAMES or not isinstance(value, int):
                raise InvalidConfig(f"limits.{key}", f"must be a number under one of {', '.join(sorted(_LIMIT_NAMES))}")
        checked: LimitsPlan = limits  # type: ignore[assignment]
        self._answer(connection, seq, {"warnings": self.engine.update(self.engine.get(message.get("id")), checked)})

    def _pause(
        self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        paused = message["op"] == names.OP_PAUSE
        self.engine.set_paused(self.engine.get(message.get("id")), paused=paused)
        self._answer(connection, seq, {})

    def _subscribe(
        self, connection: Connection, seq: int, _message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        connection.subscribed = True
        self._answer(connection, seq, {})

    def _version(
        self, connection: Connection, seq: int, _message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        engine = self.engine
        self._answer(
            connection,
            seq,
            {
                "protocol": PROTOCOL_VERSION,
                "pid": os.getpid(),
                "keeper_pid": os.getppid(),
                "cgroup_version": engine.cgroups.version,
                "containers": len(engine.containers),
                "pool_hits": engine.pool.hits,
                "pool_misses": engine.pool.misses,
                "execs_running": self.execs.running,
                "failures": engine.loop.failures,
            },
        )

    def _shutdown(
        self, connection: Connection, seq: int, message: dict[str, object], _raw: bytes, _fds: list[int]
    ) -> None:
        engine = self.engine
        alive = engine.alive()
        if alive and not message.get("force"):
            raise Refused(f"{len(alive)} containers are there; delete them first, or shut down with force")
        engine.closing = True
        remaining = {container.id for container in alive}

        def one_gone(container_id: str) -> None:
            remaining.discard(container_id)
            if not remaining:
                engine.pool.empty()
                self._finish_shutdown(connection, seq, 0)

        if not remaining:
            one_gone("")
        for container in alive:
            try:
                engine.delete(container, lambda gone=container.id: one_gone(gone), force=True)  # type: ignore[misc]
            except RuntimeFailure:
                one_gone(container.id)

    def _finish_shutdown(self, connection: Connection, seq: int, attempt: int) -> None:
        left = [name for name in self.engine.cgroups.names() if not self.engine.cgroups.remove(name)]
        if left and attempt < 200:
            self.engine.loop.later(0.01, lambda: self._finish_shutdown(connection, seq, attempt + 1))
            return
        self.engine.cgroups.remove_parent()
        self._answer(connection, seq, {"left": left})
        fdstore.send(self.engine.store.channel, {"op": "shutdown"})
