"""Processes by identity: a pid together with its start time, which no later process of the same pid shares."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.01


@dataclass(frozen=True)
class ProcessId:
    """A process for ever: `start_time` is in clock ticks since boot (proc(5), stat field 22)."""

    pid: int
    start_time: int

    def is_alive(self) -> bool:
        """Whether this very process runs; one that has ended and waits to be reaped does not."""
        return identify(self.pid) == self

    def kill(self) -> None:
        """SIGKILL, to this process or to none."""
        self.send(signal.SIGKILL)

    def send(self, number: int) -> bool:
        """Sends a signal to this process or to none; says which."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # Looked up after the handle was opened: the handle cannot mean a successor.
            if not self.is_alive():
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def is_stopped(self) -> bool:
        """Whether it stands still, after SIGSTOP."""
        return _state(self.pid) == b"T"


def identify(pid: int) -> ProcessId | None:
    """The identity of the process that has this pid now; None if none has, or it has ended."""
    fields = _stat(pid)
    return None if not fields or fields[0] in {b"Z", b"X"} else ProcessId(pid, int(fields[19]))


def _state(pid: int) -> bytes:
    fields = _stat(pid)
    return fields[0] if fields else b"X"


def _stat(pid: int) -> list[bytes]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return stat[stat.rindex(b")") + 2 :].split()


def all_pids() -> Iterator[int]:
    """Every process that this one can see."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            yield int(name)


def in_network_namespace(*namespaces: Path) -> list[ProcessId]:
    """Every process whose network namespace is one of those at some paths; none where nothing is mounted."""
    wanted = {identity for path in namespaces if (identity := _inode(path)) is not None}
    if not wanted:
        return []
    return _identities(pid for pid in all_pids() if _inode(Path(f"/proc/{pid}/ns/net")) in wanted)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return found.st_dev, found.st_ino


def with_folder_option(*folders: Path) -> list[ProcessId]:
    """Every process that was told on its command line to work in one of some folders: a part of orch, or its starter.

    A process that has not entered its namespace yet, or has left it for a moment, is found this way.
    """
    exactly = {str(folder).encode() for folder in folders}
    beneath = tuple(f"{folder}/".encode() for folder in folders)

    def is_told(pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return any(
            option in {b"--run-dir", b"--root"} and (value in exactly or value.startswith(beneath))
            for option, value in pairwise(words)
        )

    return _identities(pid for pid in all_pids() if is_told(pid))


def _identities(pids: Iterable[int]) -> list[ProcessId]:
    return [identity for pid in pids if (identity := identify(pid)) is not None]


def kill_until_gone(find: Callable[[], Iterable[ProcessId]], limit_s: float) -> list[ProcessId]:
    """Kills what ``find`` names until it names nothing, as what is killed may have forked; returns what is left."""
    deadline = time.monotonic() + limit_s
    while True:
        left = list(find())
        if not left or time.monotonic() > deadline:
            return left
        for identity in left:
            identity.kill()
        time.sleep(_POLL_S)


def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Polls a condition; False when it did not come true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
