"""The life of a container's first process from clone3 to execve.

It talks with the supervisor over one SOCK_SEQPACKET pair. Up: `P` prepared, `R` ready (with warnings), `X` about to
execute,
`E` failed. Down: the plan (marshal) with descriptors, then `S` start. The descriptor closes on execve: its end after
`X` means that the program runs.

If the supervisor dies, the end of the channel is seen here. Whether the container exists is then decided by its state
file alone: committed as running, the child goes on by itself; otherwise it was never promised to anyone, and ends.
"""

from __future__ import annotations

import array
import fcntl
import json
import marshal
import os
import socket
import struct

from orch_runtime.child import execute, identity, rootfs, stage
from orch_runtime.child.failure import SetupFailed
from orch_runtime.child.init import run_init
from orch_runtime.errors import KernelError
from orch_runtime.kernel import calls
from orch_runtime.kernel import process as kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.plan import Plan, StagePlan

MAX_PLAN_BYTES = 2 << 20
PREPARED, READY, EXECUTING, FAILED, START = b"P", b"R", b"X", b"E", b"S"
START_ERROR_FILE = "start-error"
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_setdomainname = calls.function("setdomainname", calls.c_char_p, calls.c_size_t)


class Prepared:
    """What the child has made before it knows its container, and what it inherited for that."""

    def __init__(self, channel: socket.socket, host_mounts_fd: int, base: str, last_capability: int) -> None:
        self.channel = channel
        self.host_mounts_fd = host_mounts_fd
        self.base = base
        self.last_capability = last_capability
        self.own_mounts_fd = -1
        self.sysctl_fd = -1
        self.has_netns = False


def keep_only(*descriptors: int) -> None:
    """Close everything from 3 up but the given descriptors: what the supervisor holds for others is not ours."""
    previous = 2
    for fd in sorted(descriptors):
        kernel.close_range(previous + 1, fd - 1)
        previous = fd
    kernel.close_range(previous + 1)


def join_cgroups(paths: list[str]) -> None:
    """Enter cgroup v1 groups; each write may wait 10 ms for the kernel, which is why children do it, ahead of need."""
    for path in paths:
        fd = os.open(f"{path}/cgroup.procs", os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)


def run_container_child(
    prepared: Prepared, join: list[str], stages: list[StagePlan], controllers: list[tuple[str, str]]
) -> None:
    """Prepare, wait for the plan, become the container. Never returns."""
    exit_code = 126
    directory_fd = -1
    try:
        channel = prepared.channel
        keep_only(channel.fileno(), prepared.host_mounts_fd)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        join_cgroups(join)
        kernel.unshare(kernel.CLONE_NEWCGROUP)
        # The keeper may be protected from the kernel's out-of-memory killer; a container must not inherit that.
        _set_oom_score(0, [])
        prepared.own_mounts_fd, prepared.sysctl_fd = stage.prepare(stages, prepared.base, controllers)
        _tell(channel, PREPARED)
        plan, fds = _receive_plan(channel)
        directory_fd = fds[0]
        _become_container(prepared, plan, fds)
    except SetupFailed as error:
        exit_code = error.exit_code
        _report(prepared.channel, directory_fd, error.exit_code, str(error))
    except KernelError as error:
        _report(prepared.channel, directory_fd, exit_code, str(error))
    except BaseException as error:
        _report(prepared.channel, directory_fd, exit_code, f"{type(error).__name__}: {error}")
    finally:
        os._exit(exit_code)


def _report(channel: socket.socket, directory_fd: int, exit_code: int, message: str) -> None:
    document = json.dumps({"exit_code": exit_code, "message": message[:4000]}).encode()
    try:
        channel.send(FAILED + document)
    except OSError:
        # The supervisor is gone; the next one finds the reason beside the state file.
        if directory_fd >= 0:
            try:
                fd = os.open(START_ERROR_FILE, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600, dir_fd=directory_fd)
                os.write(fd, document)
            except OSError:
                return


def _receive_plan(channel: socket.socket) -> tuple[Plan, list[int]]:
    """Wait for the plan; returns it with [state folder, stdin, stdout, stderr, netns] (-1 where there is none)."""
    data = b""
    for _ in range(2):
        try:
            data, ancillary, _, _ = channel.recvmsg(MAX_PLAN_BYTES, 256, socket.MSG_CMSG_CLOEXEC)
            break
        except ConnectionResetError:
            # The supervisor died with something of ours unread. That is told once; what it sent before comes after.
            continue
    if not data:
        os._exit(0)
    received = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(payload[: len(payload) - len(payload) % 4])
    plan, layout = marshal.loads(data)  # noqa: S302 -- from our own parent, over our own socket pair
    return plan, [received[position] if position >= 0 else -1 for position in layout]


def loopback_up() -> None:
    """Bring up the loopback interface of this network namespace."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    request = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
    flags = struct.unpack_from("h", request, 16)[0]
    fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
    sock.close()


def _enter_network(prepared: Prepared, plan: Plan, netns_fd: int) -> None:
    if plan["network"] == "path":
        kernel.setns(netns_fd, kernel.CLONE_NEWNET, plan["netns_path"])
    elif plan["network"] == "new":
        if not prepared.has_netns:
            kernel.unshare(kernel.CLONE_NEWNET)
        loopback_up()


def set_sysctls(sysctl_fd: int, sysctls: list[list[str]]) -> None:
    """Write [path, value] pairs below a descriptor of /proc/sys."""
    for path, value in sysctls:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=sysctl_fd)
            os.write(fd, value.encode())
            os.close(fd)
        except OSError as error:
            raise SetupFailed(f"sysctl {path.replace('/', '.')} = {value}: {error.strerror}") from error


def _set_oom_score(value: int | None, warnings: list[str]) -> None:
    if value is None:
        return
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, str(value).encode())
        os.close(fd)
    except OSError as error:
        warnings.append(f"oom_score_adj {value} not set: {error.strerror} (lowering it needs CAP_SYS_RESOURCE)")


def set_names(hostname: str, domainname: str) -> None:
    """Set the names of this uts namespace; "" leaves one as it is."""
    if hostname:
        socket.sethostname(hostname)
    if domainname:
        name = domainname.encode()
        if _setdomainname(name, len(name)) < 0:
            calls.raise_errno("setdomainname", domainname)


def _become_container(prepared: Prepared, plan: Plan, fds: list[int]) -> None:
    directory_fd, stdin, stdout, stderr, netns_fd = fds
    warnings: list[str] = []
    process = plan["process"]
    kernel.setns(prepared.host_mounts_fd, kernel.CLONE_NEWNS, "host mounts")
    _set_oom_score(plan["oom_score_adj"], warnings)
    _enter_network(prepared, plan, netns_fd)  # before mounts are made: sysfs shows the network of whoever makes it
    root_tree = rootfs.open_rootfs(plan["rootfs"], prepared.base)
    trees = rootfs.open_bind_sources(plan)
    kernel.setns(prepared.own_mounts_fd, kernel.CLONE_NEWNS, "own mounts")
    set_sysctls(prepared.sysctl_fd, plan["sysctls"])
    set_names(plan["hostname"], plan["domainname"])
    rootfs.build_root(plan, root_tree, trees)
    uid, gid, groups, home = identity.resolve_user(process["user"])
    execute.enter_working_directory(process["cwd"])
    identity.set_rlimits(process["rlimits"], warnings)
    env = execute.environment(process["env"], home)
    execute.set_standard_descriptors([stdin, stdout, stderr], uid, gid)
    channel = prepared.channel
    _await_start(channel, directory_fd, warnings)
    if not plan["init"]:
        os.setsid()
    identity.become(process, uid, gid, groups, prepared.last_capability)
    identity.filter_calls_at_last(process)

    def start_program() -> None:
        execute.reset_signals()
        try:
            _tell(channel, EXECUTING)
            execute.execute(process["args"], env)
        except SetupFailed as error:
            _report(channel, directory_fd, error.exit_code, str(error))
            os._exit(error.exit_code)

    if plan["init"]:
        run_init(start_program, channel.fileno())
    start_program()


def _tell(channel: socket.socket, message: bytes) -> None:
    try:
        channel.send(message)
    except OSError:
        return


def _await_start(channel: socket.socket, directory_fd: int, warnings: list[str]) -> None:
    _tell(channel, READY + json.dumps(warnings).encode())
    try:
        if channel.recv(16) == START:
            return
    except OSError:
        pass
    if not committed_as_running(directory_fd):
        os._exit(126)


def committed_as_running(directory_fd: int) -> bool:
    """Tell whether the state folder says that this container is to run."""
    for name in ("status.json", "state.json"):
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        except OSError:
            continue
        return os.read(fd, 64).startswith(b'{"status":"running"')
    return False
