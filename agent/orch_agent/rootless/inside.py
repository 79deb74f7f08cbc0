"""The first process inside: makes the mounts that orchd expects of a host, starts it, reaps what it leaves.

With this process its process namespace ends, and so does everything that orchd has started.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from orch_agent.rootless import slirp
from orch_runtime.kernel import mounts, process

#: Below the run directory: what holds secrets or speaks of processes, neither of which may outlive us. The sockets
#: beside them must be seen from outside, where a mount of ours is not.
IN_MEMORY = ("tasks", "runtime", "network")
#: Held back by the half outside until there is somebody to pass them on to: to the first process of a namespace a
#: signal without a handler is lost.
STOPPING = (signal.SIGTERM, signal.SIGINT)
_RESTRICTED = mounts.MS_NOSUID | mounts.MS_NODEV


def become_root(outside: int) -> None:
    """Take on the namespace's root, and die with the half outside.

    Args:
        outside: the reading end of a pipe that it holds open.
    """
    os.setresgid(0, 0, 0)
    os.setgroups([])
    os.setresuid(0, 0, 0)
    process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
    poller = select.poll()
    poller.register(outside, select.POLLIN)
    if any(events & select.POLLHUP for _, events in poller.poll(0)):
        raise OSError("the process outside has ended")


def make_mounts(run_dir: Path) -> None:
    """Show our own processes, network and name server instead of the host's.

    Raises:
        KernelError, OSError: a mount failed.
    """
    mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)
    mounts.mount("proc", "/proc", "proc", _RESTRICTED | mounts.MS_NOEXEC)
    for name in IN_MEMORY:
        folder = run_dir / name
        folder.mkdir(mode=0o700, exist_ok=True)
        mounts.mount("tmpfs", str(folder), "tmpfs", _RESTRICTED, "mode=0700")
    resolver = run_dir / "resolv.conf"
    resolver.write_text(f"nameserver {slirp.NAME_SERVER}\n")
    host_resolver = Path("/etc/resolv.conf").resolve()
    if host_resolver.is_file():
        mounts.mount(str(resolver), str(host_resolver), "", mounts.MS_BIND)


def run(run_dir: Path, command: Sequence[str], outside: int) -> int:
    """Do all of it; returns orchd's exit status."""
    become_root(outside)
    make_mounts(run_dir)
    child = os.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            os.execv(command[0], list(command))  # noqa: S606 -- ourselves
        finally:
            os._exit(127)

    def pass_on(*_: object) -> None:
        os.kill(child, signal.SIGTERM)

    for number in STOPPING:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main(run_dir: Path, command: Sequence[str], outside: int) -> None:
    """Run, and end the process: never returns."""
    code = 1
    try:
        code = run(run_dir, command, outside)
    except BaseException as error:
        sys.stderr.write(f"orchd: cannot set the namespaces up: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)
