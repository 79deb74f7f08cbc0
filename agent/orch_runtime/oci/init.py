"""A container's first process from clone3 to execve, for the OCI command line.

It talks with `create` over a SOCK_SEQPACKET pair: up `H` namespaces are there (time for the caller's hooks), `R` ready,
`E` failed; down `M` the id maps are written, `G` with the state document: go on. Then it waits on the listening socket
for `start`, whose connection ends without a word when the program runs.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass

from orch_runtime.child import execute, identity, terminal
from orch_runtime.child.container import join_cgroups, keep_only, loopback_up, set_names, set_sysctls
from orch_runtime.child.failure import SetupFailed
from orch_runtime.errors import KernelError, StartFailed
from orch_runtime.kernel import calls
from orch_runtime.kernel import process as kernel
from orch_runtime.oci import filesystem, program
from orch_runtime.oci.hooks import run_hooks
from orch_runtime.oci.spec import CLONE_NEWTIME, NAMESPACES, ContainerSpec

HOOKS, READY, FAILED, MAPPED, GO = b"H", b"R", b"E", b"M", b"G"

_personality = calls.function("personality", calls.c_ulong)


@dataclass(frozen=True)
class Setup:
    """What the new process inherits. `console` is a connected socket's descriptor, or -1."""

    spec: ContainerSpec
    channel: socket.socket
    listener: socket.socket
    console: int
    preserved: tuple[int, ...]
    join: tuple[str, ...]
    cgroup_mounts: tuple[tuple[str, str], ...]
    cgroup_path: str
    last_capability: int
    pivot: bool
    seccomp: tuple[bytes, int] | None


def report(channel: socket.socket, error: BaseException) -> int:
    """Send why it failed; returns the exit code a shell would give."""
    code = error.exit_code if isinstance(error, (SetupFailed, StartFailed)) else 1
    known = isinstance(error, (SetupFailed, StartFailed, KernelError))
    message = str(error) if known else f"{type(error).__name__}: {error}"
    try:
        channel.send(FAILED + json.dumps({"exit_code": code, "message": message[:4000]}).encode())
    except OSError:
        return code
    return code


def _join(joined: tuple[tuple[str, str], ...]) -> None:
    """Enter namespaces by path: those of the host's owner first, those that only the user namespace owns after it."""
    opened = {kind: (os.open(path, os.O_RDONLY | os.O_CLOEXEC), path) for kind, path in joined}
    late = []
    order = [kind for kind in opened if kind not in ("user", "mount")]
    for kind in order:
        fd, path = opened[kind]
        try:
            kernel.setns(fd, NAMESPACES[kind], path)
        except KernelError:
            if "user" not in opened:
                raise
            late.append(kind)
    for kind in (["user"] if "user" in opened else []) + late:
        fd, path = opened[kind]
        kernel.setns(fd, NAMESPACES[kind], path)


def _set_time_offsets(offsets: tuple[tuple[str, int, int], ...]) -> None:
    fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
    for clock, seconds, nanoseconds in offsets:
        os.write(fd, f"{clock} {seconds} {nanoseconds}\n".encode())
    os.close(fd)


def run_intermediate(setup: Setup) -> None:
    """Enter what exists already, then make the container's process as a child of our own parent. Never returns."""
    code = 1
    try:
        spec = setup.spec
        if os.geteuid() == 0:
            kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        join_cgroups(list(setup.join))
        _join(spec.joined_namespaces)
        flags = kernel.CLONE_PARENT
        for kind in spec.new_namespaces - {"cgroup", "time"}:
            flags |= NAMESPACES[kind]
        if "time" in spec.new_namespaces:
            kernel.unshare(CLONE_NEWTIME)
            _set_time_offsets(spec.time_offsets)
        pid, _ = kernel.clone3(flags)
        if pid == 0:
            _run_container(setup)
        setup.channel.send(f"{pid}".encode())
        code = 0
    except BaseException as error:
        code = report(setup.channel, error)
    finally:
        os._exit(code)


def _expect(channel: socket.socket, word: bytes) -> bytes:
    data = channel.recv(65536)
    if not data.startswith(word):
        os._exit(1)
    return data[1:]


def _become_root(spec: ContainerSpec) -> None:
    """Take user 0 of the new or joined user namespace."""
    kinds = spec.new_namespaces | {kind for kind, _ in spec.joined_namespaces}
    if "user" in kinds:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def _open_terminal(setup: Setup) -> list[int]:
    process = setup.spec.process
    if setup.console < 0:
        return []
    master, slave = terminal.open_terminal(process.rows, process.columns)
    filesystem.mount_console(slave)
    terminal.take_control(slave, process.plan["user"]["uid"])
    terminal.hand_over(setup.console, master)
    return [slave, slave, slave]


def give_streams(uid: int, gid: int) -> None:
    """Make the program's user the owner of its standard streams, so that it can open /dev/stdout; not of devices."""
    import stat  # noqa: PLC0415 -- keeps the names of this file few

    for fd in range(3):
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            try:
                os.fchown(fd, uid, gid)
            except OSError:
                continue


def _run_container(setup: Setup) -> None:
    channel, spec = setup.channel, setup.spec
    code = 1
    try:
        keep = {channel.fileno(), setup.listener.fileno(), *setup.preserved}
        keep_only(*(keep | {setup.console} if setup.console >= 0 else keep))
        _expect(channel, MAPPED)
        _become_root(spec)
        os.setsid()
        os.umask(0)
        if "cgroup" in spec.new_namespaces:
            kernel.unshare(kernel.CLONE_NEWCGROUP)
        if "network" in spec.new_namespaces:
            loopback_up()
        set_names(spec.hostname, spec.domainname)
        if spec.personality is not None and _personality(spec.personality) < 0:
            calls.raise_errno("personality")
        channel.send(HOOKS)
        state = json.loads(_expect(channel, GO))
        _prepare_files(setup, state)
        standard = _open_terminal(setup)
        if standard:
            execute.set_standard_descriptors(standard, spec.process.plan["user"]["uid"], 0)
        _become_program(setup, state)
    except BaseException as error:
        code = report(channel, error)
    finally:
        os._exit(code)


def _prepare_files(setup: Setup, state: dict[str, object]) -> None:
    spec = setup.spec
    sysctl_fd = os.open("/proc/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    root_fd = filesystem.enter_rootfs(spec)
    filesystem.mount_all(spec, root_fd, list(setup.cgroup_mounts), setup.cgroup_path)
    filesystem.make_devices(spec, root_fd)
    run_hooks(spec.hooks.get("createContainer", ()), state, "createContainer")
    set_sysctls(sysctl_fd, [list(entry) for entry in spec.sysctls])
    os.close(sysctl_fd)
    filesystem.restrict(spec, root_fd)
    if spec.rootfs_readonly:
        # A working directory that is missing cannot be made once the root is read-only.
        filesystem.make_folder(root_fd, spec.process.plan["cwd"])
    filesystem.change_root(spec, root_fd, pivot=setup.pivot)


def _become_program(setup: Setup, state: dict[str, object]) -> None:
    process = setup.spec.process
    plan = process.plan
    user = plan["user"]
    _, _, _, home = identity.resolve_user(user)
    env = execute.environment(plan["env"], home)
    if "LISTEN_FDS" in os.environ:
        env.update(LISTEN_FDS=os.environ["LISTEN_FDS"], LISTEN_PID="1")
    program.enter_working_directory(plan["cwd"])
    path = program.find_program(plan["args"], env)
    program.set_rlimits(plan["rlimits"])
    give_streams(user["uid"], user["gid"])
    setup.channel.send(READY)
    connection = setup.listener.accept()[0]
    setup.channel.close()
    try:
        run_hooks(setup.spec.hooks.get("startContainer", ()), {**state, "status": "created"}, "startContainer")
        execute.reset_signals()
        program.keep_preserved(setup.preserved)
        program.become(process, setup.seccomp, setup.last_capability)
        program.execute_program(path, plan["args"], env)
    except BaseException as error:
        os._exit(report(connection, error))
