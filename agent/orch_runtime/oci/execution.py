"""`exec`: one more program in a container that runs, with its namespaces, group and confinement."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass

from orch_runtime.capabilities import last_capability
from orch_runtime.child import execute, identity, terminal
from orch_runtime.child.container import join_cgroups, keep_only
from orch_runtime.errors import StartFailed, WrongState
from orch_runtime.kernel import process as kernel
from orch_runtime.oci import program
from orch_runtime.oci.cgroup import ContainerCgroup
from orch_runtime.oci.init import READY, give_streams, report
from orch_runtime.oci.launch import end_child, receive
from orch_runtime.oci.spec import NAMESPACES, ProcessSpec
from orch_runtime.oci.state import Record

_SETUP_TIMEOUT_S = 60.0
_FILES = {"network": "net", "mount": "mnt"}


@dataclass(frozen=True)
class ExecRequest:
    """What to run. `console` is a connected socket's descriptor, or -1."""

    process: ProcessSpec
    console: int
    preserved: tuple[int, ...]
    seccomp: tuple[bytes, int] | None


def _foreign_namespaces(pid: int) -> int:
    """Return the flags of the namespaces of `pid` that are not ours."""
    flags = 0
    for kind, flag in NAMESPACES.items():
        file = _FILES.get(kind, kind)
        try:
            theirs, ours = os.stat(f"/proc/{pid}/ns/{file}"), os.stat(f"/proc/self/ns/{file}")
        except FileNotFoundError:
            continue
        if theirs.st_ino != ours.st_ino:
            flags |= flag
    return flags


def _run_intermediate(  # noqa: PLR0917 -- called once, in a fork
    request: ExecRequest, channel: socket.socket, pidfd: int, flags: int, join: list[str], last: int
) -> None:
    code = 1
    try:
        # Before any of the container's processes can see us: /proc/PID of ours leads to the host's interpreter.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        join_cgroups(join)
        kernel.setns(pidfd, flags, "the container's namespaces")
        pid, _ = kernel.clone3(kernel.CLONE_PARENT)
        if pid == 0:
            _run_program(request, channel, last, in_user_namespace=bool(flags & kernel.CLONE_NEWUSER))
        channel.send(f"{pid}".encode())
        code = 0
    except BaseException as error:
        code = report(channel, error)
    finally:
        os._exit(code)


def _run_program(request: ExecRequest, channel: socket.socket, last: int, *, in_user_namespace: bool) -> None:
    code = 1
    try:
        keep = {channel.fileno(), *request.preserved}
        keep_only(*(keep | {request.console} if request.console >= 0 else keep))
        if in_user_namespace:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        os.setsid()
        os.umask(0)
        plan = request.process.plan
        user = plan["user"]
        _, _, _, home = identity.resolve_user(user)
        env = execute.environment(plan["env"], home)
        program.enter_working_directory(plan["cwd"])
        path = program.find_program(plan["args"], env)
        program.set_rlimits(plan["rlimits"])
        if request.console >= 0:
            master, slave = terminal.open_terminal(request.process.rows, request.process.columns)
            terminal.take_control(slave, user["uid"])
            terminal.hand_over(request.console, master)
            execute.set_standard_descriptors([slave, slave, slave], user["uid"], user["gid"])
        else:
            give_streams(user["uid"], user["gid"])
        execute.reset_signals()
        channel.send(READY)
        program.keep_preserved(request.preserved)
        program.become(request.process, request.seccomp, last)
        program.execute_program(path, plan["args"], env)
    except BaseException as error:
        code = report(channel, error)
    finally:
        os._exit(code)


def execute_in(record: Record, request: ExecRequest) -> int:
    """Run a program in a container; returns its pid (a child of ours) once it is executed.

    Raises:
        StartFailed: it cannot be executed.
        WrongState: the container's first process is gone.
    """
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError as error:
        raise WrongState(f"cannot exec in container {record.id}: it is stopped") from error
    flags = _foreign_namespaces(record.pid)
    join = ContainerCgroup(record.cgroup).join_paths()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    middle = os.fork()
    if middle == 0:
        _run_intermediate(request, theirs, pidfd, flags, join, last_capability())
    theirs.close()
    ours.settimeout(_SETUP_TIMEOUT_S)
    pid = 0
    try:
        # The two processes speak over one channel: which comes first is chance.
        ready = False
        while not (pid and ready):
            data = receive(ours)
            if data == READY:
                ready = True
            else:
                pid = int(data)
        data = ours.recv(65536)
        _check(data)
    except BaseException:
        if pid:
            end_child(pid)
        raise
    finally:
        os.waitpid(middle, 0)
        os.close(pidfd)
        ours.close()
    return pid


def _check(data: bytes) -> None:
    """Raise what a child said after it was ready; it says nothing when its program runs."""
    if data:
        document = json.loads(data[1:])
        raise StartFailed(document["message"], document["exit_code"])
