"""Create, start, run and delete: a container's life from the caller's side."""

from __future__ import annotations

import json
import os
import pwd
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orch_runtime.capabilities import last_capability
from orch_runtime.config.seccomp import compile_filter
from orch_runtime.errors import InvalidConfig, KernelError, RuntimeFailure, StartFailed, WrongState
from orch_runtime.oci import init
from orch_runtime.oci.cgroup import ContainerCgroup
from orch_runtime.oci.hooks import run_hooks, run_hooks_leniently
from orch_runtime.oci.program import drop_missing_capabilities
from orch_runtime.oci.spec import ContainerSpec, IdMap, read_spec
from orch_runtime.oci.state import CONFIG_FILE, START_SOCKET, Record, Store, oci_state, process_state

DEFAULT_CGROUP_PARENT = "/orch-runtime"
_SETUP_TIMEOUT_S = 300.0
_END_TIMEOUT_S = 10.0
_MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True)
class CreateRequest:
    """What the command line says of a new container. `console` is a connected socket's descriptor, or -1."""

    id: str
    bundle: str
    config_path: str
    pid_file: str
    console: int
    preserved: tuple[int, ...]
    pivot: bool


def read_config(path: str) -> dict[str, Any]:
    """Read a JSON object from a file of the caller's.

    Raises:
        InvalidConfig: it is not there, too large, or no JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InvalidConfig(path, f"{error.strerror}: --bundle must name a folder with config.json") from error
    if len(text) > _MAX_CONFIG_BYTES:
        raise InvalidConfig(path, f"is larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(path, f"is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidConfig(path, "must be a JSON object")
    return document


def cgroup_path(spec_path: str, container_id: str) -> str:
    """Return where the group goes: `linux.cgroupsPath`, or one of our own."""
    if not spec_path:
        return f"{DEFAULT_CGROUP_PARENT}/{container_id}"
    if ":" in spec_path and not spec_path.startswith("/"):
        raise InvalidConfig(
            "linux.cgroupsPath",
            f"{spec_path!r} is systemd's form, which this runtime does not take: use the cgroupfs manager",
        )
    return "/" + spec_path.strip("/")


def write_pid_file(path: str, pid: int) -> None:
    """Write a pid file by rename, so that no reader sees half of it."""
    if path:
        temporary = f"{path}.orch-{os.getpid()}"
        with open(temporary, "w", encoding="ascii") as file:
            file.write(str(pid))
        os.rename(temporary, path)


def preserved_descriptors(count: int) -> tuple[int, ...]:
    """Return which of the descriptors 3 to 2 + count are open; to be called before we open any of our own."""
    opened = []
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError:
            continue
        opened.append(fd)
    return tuple(opened)


def _listen(folder: str) -> socket.socket:
    folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"/proc/self/fd/{folder_fd}/{START_SOCKET}")
    listener.listen(1)
    os.close(folder_fd)
    return listener


def _write_maps(pid: int, spec: ContainerSpec) -> None:
    def write(file: str, text: str) -> None:
        try:
            fd = os.open(f"/proc/{pid}/{file}", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, text.encode())
            os.close(fd)
        except OSError as error:
            raise KernelError(f"write {text!r} to", error.errno or 0, f"{file} of the container") from error

    def lines(maps: tuple[IdMap, ...]) -> str:
        return "".join(f"{entry.inside} {entry.outside} {entry.size}\n" for entry in maps)

    if os.geteuid() != 0:
        write("setgroups", "deny")
    write("uid_map", lines(spec.uid_maps))
    write("gid_map", lines(spec.gid_maps))


def _set_oom_score(pid: int, value: int | None) -> None:
    if value is None:
        return
    try:
        with open(f"/proc/{pid}/oom_score_adj", "r+", encoding="ascii") as file:
            if int(file.read()) != value:
                file.seek(0)
                file.write(str(value))
    except OSError as error:
        raise KernelError(
            f"process.oomScoreAdj = {value}", error.errno or 0, "(lowering it needs CAP_SYS_RESOURCE)"
        ) from error


def receive(channel: socket.socket) -> bytes:
    """Receive one message of a child; its failure is raised here.

    Raises:
        StartFailed: the child failed, ended, or did not answer in time.
    """
    try:
        data = channel.recv(65536)
    except TimeoutError as error:
        raise StartFailed(f"the container's set-up did not end within {_SETUP_TIMEOUT_S:g} s", 1) from error
    except OSError:
        data = b""
    if data.startswith(init.FAILED):
        document = json.loads(data[1:])
        raise StartFailed(document["message"], document["exit_code"])
    if not data:
        raise StartFailed("the container's first process was killed during set-up", 1)
    return data


def end_child(pid: int) -> None:
    """Kill and reap a child of ours."""
    try:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


class Launcher:
    """Makes one container; `undo` takes back whatever has been made."""

    def __init__(self, store: Store, request: CreateRequest) -> None:
        self._store = store
        self._request = request
        self.config = read_config(request.config_path)
        self.spec = read_spec(self.config, request.bundle)
        if not os.path.isdir(self.spec.rootfs):
            raise InvalidConfig("root.path", f"{self.spec.rootfs} is not a folder")
        if self.spec.process.terminal and request.console < 0:
            raise InvalidConfig("process.terminal", "needs --console-socket, or `run` in the foreground")
        if not self.spec.process.terminal and request.console >= 0:
            raise InvalidConfig("--console-socket", "has no meaning without process.terminal")
        self._seccomp = compile_filter(self.spec.seccomp) if self.spec.seccomp is not None else None
        self.cgroup = ContainerCgroup(cgroup_path(self.spec.cgroups_path, request.id))
        self.warnings = [f"{key} is not known to this runtime and has no effect" for key in self.spec.unknown_keys]
        kinds = self.spec.new_namespaces | {kind for kind, _ in self.spec.joined_namespaces}
        if "user" not in kinds:
            self.warnings += drop_missing_capabilities(self.spec.process)
        self.pid = 0

    def _record(self, pid: int) -> Record:
        return Record(
            id=self._request.id,
            oci_version=self.spec.oci_version,
            bundle=self._request.bundle,
            rootfs=self.spec.rootfs,
            created=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() % 10**9:09d}Z",
            owner=pwd.getpwuid(os.geteuid()).pw_name,
            pid=pid,
            start_time=process_state(pid)[1],
            cgroup=self.cgroup.path,
            annotations=dict(self.spec.annotations),
        )

    def create(self) -> Record:
        """Make the container, up to the point before its program is executed.

        Raises:
            RuntimeFailure: nothing is left of it.
        """
        folder = self._store.make(self._request.id)
        try:
            with open(f"{folder}/{CONFIG_FILE}", "w", encoding="utf-8") as file:
                json.dump(self.config, file)
            self.cgroup.create()
            self.warnings += self.cgroup.apply(self.spec.resources, new=True)
            record = self._fork(folder)
            self._store.save(record)
            write_pid_file(self._request.pid_file, record.pid)
        except BaseException:
            self._undo()
            raise
        return record

    def _undo(self) -> None:
        if self.pid:
            end_child(self.pid)
            state = oci_state(self._record(0), "stopped")
            self.warnings += run_hooks_leniently(self.spec.hooks.get("poststop", ()), state, "poststop")
        try:
            self.cgroup.kill()
            self.cgroup.remove()
        except RuntimeFailure as failure:
            self.warnings.append(str(failure))
        self._store.remove(self._request.id)

    def _fork(self, folder: str) -> Record:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = _listen(folder)
        setup = init.Setup(
            spec=self.spec,
            channel=theirs,
            listener=listener,
            console=self._request.console,
            preserved=self._request.preserved,
            join=tuple(self.cgroup.join_paths()),
            cgroup_mounts=tuple(self.cgroup.container_mounts()),
            cgroup_path=self.cgroup.path,
            last_capability=last_capability(),
            pivot=self._request.pivot,
            seccomp=self._seccomp,
        )
        middle = os.fork()
        if middle == 0:
            init.run_intermediate(setup)
        theirs.close()
        listener.close()
        ours.settimeout(_SETUP_TIMEOUT_S)
        try:
            self.pid = int(receive(ours))
        finally:
            os.waitpid(middle, 0)
        if "user" in self.spec.new_namespaces:
            _write_maps(self.pid, self.spec)
        _set_oom_score(self.pid, self.spec.process.oom_score_adj)
        ours.send(init.MAPPED)
        receive(ours)
        record = self._record(self.pid)
        # OCI runtime.md, "State": created is what follows the making of the environment, and hooks come after that.
        state = oci_state(record, "created")
        for stage in ("prestart", "createRuntime"):
            run_hooks(self.spec.hooks.get(stage, ()), state, stage)
        ours.send(init.GO + json.dumps(state).encode())
        receive(ours)
        ours.close()
        return record


def hooks_of(store: Store, record: Record, stage: str) -> Any:
    """Return the hooks of a stage of a container that exists."""
    try:
        return read_spec(store.config(record.id), record.bundle).hooks.get(stage, ())
    except (OSError, ValueError, InvalidConfig):
        return ()


def start(store: Store, record: Record) -> list[str]:
    """Let a created container execute its program; returns warnings of poststart hooks.

    Raises:
        WrongState: it is not in state created.
        StartFailed: the program cannot be executed.
    """
    folder = store.folder(record.id)
    if store.status(record) != "created":
        raise WrongState(f"cannot start container {record.id}: it is {store.status(record)}, not created")
    claimed = f"{START_SOCKET}.claimed"
    try:
        # Whoever renames it starts the container; nobody else does.
        os.rename(f"{folder}/{START_SOCKET}", f"{folder}/{claimed}")
    except FileNotFoundError as error:
        raise WrongState(f"cannot start container {record.id}: it is being started already") from error
    folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(_SETUP_TIMEOUT_S)
    connection.connect(f"/proc/self/fd/{folder_fd}/{claimed}")
    os.unlink(claimed, dir_fd=folder_fd)
    os.close(folder_fd)
    try:
        data = connection.recv(65536)
    except ConnectionResetError:
        data = b""
    finally:
        connection.close()
    if data.startswith(init.FAILED):
        document = json.loads(data[1:])
        raise StartFailed(document["message"], document["exit_code"])
    return run_hooks_leniently(hooks_of(store, record, "poststart"), oci_state(record, "running"), "poststart")


def _wait_for_end(store: Store, record: Record) -> None:
    deadline = time.monotonic() + _END_TIMEOUT_S
    pause = 0.001
    while store.status(record) != "stopped":
        if time.monotonic() > deadline:
            raise WrongState(f"container {record.id} does not end: process {record.pid} cannot be killed")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def delete(store: Store, record: Record, *, force: bool) -> list[str]:
    """Remove what is left of a container; returns warnings of poststop hooks.

    Raises:
        WrongState: it runs, and force is not given.
    """
    cgroup = ContainerCgroup(record.cgroup)
    status = store.status(record)
    if status == "running" and not force:
        raise WrongState(f"cannot delete container {record.id} that is not stopped: {status}; stop it, or use --force")
    if status != "stopped":
        try:
            os.kill(record.pid, 9)
        except ProcessLookupError:
            pass
        if cgroup.frozen():
            cgroup.freeze(frozen=False)
        cgroup.thaw_elsewhere(record.pid)
    # Without a pid namespace of its own the container's other processes outlive the first.
    if cgroup.processes():
        cgroup.kill()
    _wait_for_end(store, record)
    cgroup.remove()
    hooks = hooks_of(store, record, "poststop")
    store.remove(record.id)
    return run_hooks_leniently(hooks, oci_state(record, "stopped"), "poststop")


def update(record: Record, resources: Mapping[str, object]) -> list[str]:
    """Set new limits on a container; returns warnings."""
    return ContainerCgroup(record.cgroup).apply(resources, new=False)
