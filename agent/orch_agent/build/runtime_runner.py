"""Executes RUN in a container of the node's own runtime, on the host's network.

The confinement is that of tasks: default capabilities, no new privileges, masked paths. The host's resolv.conf and
hosts are mounted, so that names resolve; the empty files and folders that mounts need as targets are taken out of the
layer afterwards, if the image did not have them.
"""

import contextlib
import os
import secrets
import select
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from orch_agent.build.errors import BuildError
from orch_agent.build.runner import Output, StepCommand, StepMount
from orch_agent.images.merged import MergedTree, PathProblem
from orch_runtime.client import RuntimeClient
from orch_runtime.config import DEFAULT_CAPABILITIES, DEFAULT_MOUNTS, compile_config, default_config
from orch_runtime.config.default_seccomp import default_profile
from orch_runtime.config.seccomp_profile import Host, resolve_profile
from orch_runtime.errors import RuntimeFailure, Unavailable
from orch_runtime.plan import OverlayRootfs, Plan
from orch_runtime.protocol import STATUS_EXITED, ContainerState

RUN_TIMEOUT_S = 3600.0
"""The longest a command may take; compilations take minutes."""
CONTAINER_PREFIX = "build-"
"""Containers of builds, told from those of tasks by their ids."""
LINE_BYTES_MAX = 16 * 1024
"""A longer line of output is cut in pieces, as docker's logs do."""
_RECONNECT_S = 10.0
_HOST_FILES = ("/etc/resolv.conf", "/etc/hosts")
_POLL_S = (0.001, 0.1)
_STOP_POLL_S = 0.25


class RuntimeStepRunner:
    """Runs steps by the runtime that listens on a socket; several builds may share one."""

    def __init__(self, socket_path: str, *, timeout_s: float = RUN_TIMEOUT_S) -> None:
        """Use the runtime at `socket_path`; a command may take `timeout_s`."""
        self._socket_path = socket_path
        self._timeout_s = timeout_s

    def run(self, command: StepCommand, output: Output) -> int:
        """Run to the end and return the exit code (128 + n for a signal).

        Raises:
            BuildError: the runtime is away, the command could not be started, or it took too long.
        """
        deadline = time.monotonic() + self._timeout_s
        container_id = CONTAINER_PREFIX + secrets.token_hex(8)
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        try:
            with RuntimeClient(self._socket_path) as client, open(os.devnull, "rb") as null:  # noqa: PTH123 - no path
                try:
                    client.run(_plan(command, container_id), descriptors=(null.fileno(), write_fd, write_fd))
                finally:
                    os.close(write_fd)
            ended = self._follow(read_fd, output, deadline, command.stop) and self._exit(container_id, deadline)
            if command.stop is not None and command.stop.is_set():
                raise BuildError("the command was ended, as another step of the build had failed")
            if not ended:
                raise BuildError(f"the command was stopped after {self._timeout_s:g} s; split it, or make it quicker")
            return _exit_code(ended)
        except RuntimeFailure as error:
            raise BuildError(f"the command could not be run: {error}") from error
        finally:
            os.close(read_fd)
            self._forget(container_id)
            _remove_mount_targets(command)

    def sweep(self) -> tuple[str, ...]:
        """Kill and forget what killed builds left running; returns the ids. Called when no build runs, at the start.

        Raises:
            RuntimeFailure: the runtime is away.
        """
        with RuntimeClient(self._socket_path) as client:
            left = tuple(state.id for state in client.list() if state.id.startswith(CONTAINER_PREFIX))
            for container_id in left:
                client.delete(container_id, force=True)
        return left

    @staticmethod
    def _follow(descriptor: int, output: Output, deadline: float, stop: threading.Event | None) -> bool:
        """Pass on lines until every process has closed its end; False if that is not in time, or `stop` is set."""
        pending = b""
        readable = select.poll()  # select() itself knows no descriptor above 1023
        readable.register(descriptor, select.POLLIN)
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or (stop is not None and stop.is_set()):
                return False
            if not readable.poll(min(left_s, _STOP_POLL_S) * 1000):
                continue
            data = os.read(descriptor, 65536)
            pending += data
            *lines, pending = pending.split(b"\n")
            while len(pending) > LINE_BYTES_MAX:
                lines.append(pending[:LINE_BYTES_MAX])
                pending = pending[LINE_BYTES_MAX:]
            if not data and pending:
                lines.append(pending)
            for line in lines:
                # A progress bar redraws its line: only its last state is worth a line of ours.
                output(line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2])
            if not data:
                return True

    def _exit(self, container_id: str, deadline: float) -> ContainerState | None:
        """Wait for the exit; a command may have closed its output long before. None if it is not in time."""
        wait_s, most_s = _POLL_S
        unavailable_since: float | None = None
        while time.monotonic() < deadline:
            try:
                with RuntimeClient(self._socket_path) as client:
                    state = client.state(container_id)
                unavailable_since = None
            except Unavailable:
                # The supervisor is being restarted; the container and its exit code survive that.
                unavailable_since = unavailable_since or time.monotonic()
                if time.monotonic() - unavailable_since > _RECONNECT_S:
                    raise
            else:
                if state.status == STATUS_EXITED:
                    return state
            time.sleep(wait_s)
            wait_s = min(wait_s * 2, most_s)
        return None

    def _forget(self, container_id: str) -> None:
        # If the runtime is away or never had it, there is nothing to forget; its own sweep finds what is left.
        with contextlib.suppress(RuntimeFailure), RuntimeClient(self._socket_path) as client:
            client.delete(container_id, force=True)


def _plan(command: StepCommand, container_id: str) -> Plan:
    config = default_config(
        args=command.args, env=command.env, cwd=command.working_dir, hostname="build", host_network=command.host_network
    )
    config["mounts"] += [
        {
            "destination": path,
            "type": "bind",
            "source": str(Path(path).resolve()),
            "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
        }
        for path in _HOST_FILES
        if Path(path).exists()
    ]
    config["mounts"] += [_mount_entry(mount) for mount in command.mounts]
    config["linux"]["seccomp"] = resolve_profile(default_profile(), DEFAULT_CAPABILITIES, Host.here())
    rootfs = OverlayRootfs(command.lower_dirs, command.upper_dir, command.work_dir)
    return compile_config(config, rootfs=rootfs, container_id=container_id, user=command.user or None)


def _mount_entry(mount: StepMount) -> dict[str, object]:
    access = "ro" if mount.read_only else "rw"
    if not mount.source:
        options = [access, "nosuid", "nodev", *mount.options]
        return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options}
    options = ["bind", access, "nosuid", "nodev"]
    return {"destination": mount.target, "type": "bind", "source": mount.source, "options": options}


def _exit_code(state: ContainerState) -> int:
    if not state.exit_known:
        raise BuildError("the command ended, but its exit code was lost as the runtime died with it; build again")
    if state.oom_killed:
        raise BuildError("the command was killed for want of memory; give the node more, or let the step use less")
    return state.exit_code


def _remove_mount_targets(command: StepCommand) -> None:
    """Take what mounting made out of the layer: empty files and folders, and folders copied up to hold them."""
    below = MergedTree(command.lower_dirs)
    for named in _mount_targets(command):
        try:
            path = below.resolve(named)
            known = below.lookup(path, follow=False)
        except PathProblem:
            continue
        target = Path(command.upper_dir + path)
        with contextlib.suppress(OSError):  # not there, or no longer empty: then it is the command's own
            status = target.lstat()
            if stat.S_ISDIR(status.st_mode):
                # A folder that is below as well was only copied up to hold a target, if it is still the same.
                if known is None or _same_folder(status, known.status):
                    target.rmdir()
            elif known is None and stat.S_ISREG(status.st_mode) and status.st_size == 0:
                target.unlink()


def _same_folder(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)


def _mount_targets(command: StepCommand) -> Iterator[str]:
    targets = {str(mount["destination"]) for mount in DEFAULT_MOUNTS} | set(_HOST_FILES)
    targets |= {mount.target for mount in command.mounts}
    parents = {str(parent) for target in targets for parent in Path(target).parents} - {"/"}
    yield from sorted(targets | parents, key=len, reverse=True)
