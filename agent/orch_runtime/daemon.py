"""Starting the keeper as a daemon, for the agent and the command line."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from orch_runtime.errors import Unavailable

SOCKET_NAME = "runtime.sock"
DEFAULT_POOL_SIZE = 4


def keeper_argv(
    root: str,
    cgroup_parent: str,
    *,
    wards: Mapping[str, Sequence[str]] | None = None,
    pool_size: int = DEFAULT_POOL_SIZE,
) -> list[str]:
    """Return the command that runs a keeper in the foreground; `wards` maps names to argument vectors."""
    argv = [sys.executable, "-I", "-m", "orch_runtime.keeper", "--root", root, "--cgroup-parent", cgroup_parent]
    argv += ["--pool", str(pool_size)]
    for name, command in (wards or {}).items():
        argv += ["--ward", f"{name}={json.dumps(list(command))}"]
    return argv


def answers(root: str) -> bool:
    """Tell whether somebody accepts connections on the runtime's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(f"{root}/{SOCKET_NAME}")
        except OSError:
            return False
        return True


def keeper_runs(root: str) -> bool:
    """Tell whether a keeper holds the lock of root; its supervisor may outlive it by a moment, and still answer."""
    try:
        fd = os.open(f"{root}/keeper.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _daemonise(argv: list[str], log_path: str) -> None:
    """Fork twice and execute argv in a session of its own, with nothing of ours but its log."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 65536)
        os.execv(argv[0], argv)
    finally:
        os._exit(127)


def ensure_keeper(
    root: str,
    cgroup_parent: str,
    *,
    wards: Mapping[str, Sequence[str]] | None = None,
    pool_size: int = DEFAULT_POOL_SIZE,
    timeout_s: float = 10.0,
) -> None:
    """Start the keeper of `root` unless it runs, and return when its supervisor accepts connections.

    Raises:
        Unavailable: it does not answer in time; ROOT/keeper.log says why.
    """
    if keeper_runs(root) and answers(root):
        return
    os.makedirs(root, 0o700, exist_ok=True)
    log_path = f"{root}/keeper.log"
    command = keeper_argv(root, cgroup_parent, wards=wards, pool_size=pool_size)
    # By a process of its own: forking the caller is not safe, as gRPC's threads may hold locks at that moment.
    launcher = [sys.executable, "-I", "-m", "orch_runtime.daemon", log_path, *command]
    subprocess.run(launcher, check=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + timeout_s
    while not (keeper_runs(root) and answers(root)):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the runtime did not answer within {timeout_s:g} s of starting its keeper: see {log_path}"
            )
        time.sleep(0.005)


if __name__ == "__main__":
    _daemonise(sys.argv[2:], sys.argv[1])
