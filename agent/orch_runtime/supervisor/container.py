"""A container as the supervisor holds it, and its files.

ROOT/containers/ID/state.json is written once, by rename: the commit, with the request that made the container inside.
ROOT/containers/ID/status.json carries what changes later. Both begin with the status, which a child left alone by a
dead supervisor reads (`child.container.committed_as_running`).
"""

from __future__ import annotations

import json
import os
import shutil

from orch_runtime import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from orch_runtime.supervisor.children import Child
    from orch_runtime.supervisor.logs import LogPump

_PERSISTENT = (
    "status",
    "pid",
    "start_time",
    "cgroup",
    "created_at_unix_ms",
    "started_at_unix_ms",
    "finished_at_unix_ms",
    "exit_code",
    "exit_signal",
    "exit_known",
    "oom_killed",
    "checksum",
    "pipes",
    "warnings",
)


class Container:
    """Plain record; the supervisor's modules change it."""

    __slots__ = (
        "annotations",
        "bundle",
        "cgroup",
        "checksum",
        "child",
        "created_at_unix_ms",
        "directory",
        "exit_code",
        "exit_known",
        "exit_signal",
        "finished_at_unix_ms",
        "id",
        "log",
        "log_options",
        "on_exit",
        "on_settled",
        "oom_fd",
        "oom_killed",
        "pid",
        "pidfd",
        "pipes",
        "start_time",
        "started_at_unix_ms",
        "status",
        "warnings",
    )

    def __init__(self, container_id: str, directory: str) -> None:
        self.id = container_id
        self.directory = directory
        self.status = names.STATUS_CREATING
        self.pid = 0
        self.start_time = 0
        self.cgroup = ""
        self.created_at_unix_ms = 0
        self.started_at_unix_ms = 0
        self.finished_at_unix_ms = 0
        self.exit_code = 0
        self.exit_signal = 0
        self.exit_known = True
        self.oom_killed = False
        self.checksum = 0
        self.pipes: list[int] = []
        self.warnings: list[str] = []
        self.bundle = ""
        self.annotations: dict[str, str] = {}
        self.log_options: dict[str, object] | None = None
        self.child: Child | None = None
        self.pidfd = -1
        self.oom_fd = -1
        self.log: LogPump | None = None
        # Called with the failure, or None, when creating or starting has ended one way or the other.
        self.on_settled: list[Callable[[Exception | None], None]] = []
        self.on_exit: list[Callable[[], None]] = []

    def public(self) -> dict[str, object]:
        """Return what protocol.ContainerState carries."""
        return {
            "id": self.id,
            "status": self.status,
            "pid": self.pid,
            "created_at_unix_ms": self.created_at_unix_ms,
            "started_at_unix_ms": self.started_at_unix_ms,
            "finished_at_unix_ms": self.finished_at_unix_ms,
            "exit_code": self.exit_code,
            "exit_signal": self.exit_signal,
            "exit_known": self.exit_known,
            "oom_killed": self.oom_killed,
            "bundle": self.bundle,
            "annotations": self.annotations,
            "warnings": self.warnings,
            "logs_dropped": self.log.dropped if self.log is not None else 0,
        }

    def _persistent(self) -> bytes:
        return json.dumps({key: getattr(self, key) for key in _PERSISTENT}, separators=(",", ":")).encode()

    def commit(self, request: bytes) -> None:
        """Write state.json with the raw request inside; from its rename on the container exists."""
        self._write("state.json", self._persistent()[:-1] + b',"request":' + request + b"}")

    def save(self) -> None:
        """Write status.json."""
        self._write("status.json", self._persistent())

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self.directory}/{name}"
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
        os.rename(f"{path}.new", path)

    def forget_files(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.directory, ignore_errors=True)


def read_request(directory: str) -> dict[str, object]:
    """Return the request that made the container."""
    with open(f"{directory}/state.json", "rb") as file:
        request = json.load(file)["request"]
    assert isinstance(request, dict)
    return request


def load_container(container_id: str, directory: str) -> Container | None:
    """Read a container back from its files; None if it was never committed."""
    try:
        with open(f"{directory}/state.json", "rb") as file:
            state = json.load(file)
    except (FileNotFoundError, ValueError):
        return None
    plan = state.pop("request")["plan"]
    try:
        with open(f"{directory}/status.json", "rb") as file:
            state.update(json.load(file))
    except FileNotFoundError:
        pass
    container = Container(container_id, directory)
    for key in _PERSISTENT:
        setattr(container, key, state[key])
    container.bundle = plan["bundle"]
    container.annotations = plan["annotations"]
    container.log_options = plan["log"]
    return container
