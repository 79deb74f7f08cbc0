"""Processes by identity: a pid together with its start time, which no later process of the same pid shares."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # Looked up after the handle was opened: the handle cannot mean a successor.
            if self.is_alive():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)


def identify(pid: int) -> ProcessId | None:
    """The identity of the process that has this pid now; None if none has, or it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in {b"Z", b"X"} else ProcessId(pid, int(fields[19]))


def all_pids() -> Iterator[int]:
    """Every process that this one can see."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            yield int(name)


def in_network_namespace(namespace: Path) -> list[ProcessId]:
    """Every process whose network namespace is the one at a path; none if nothing is mounted there."""
    try:
        wanted = namespace.stat()
    except FileNotFoundError:
        return []
    found = []
    for pid in all_pids():
        try:
            has = os.stat(f"/proc/{pid}/ns/net")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if (has.st_dev, has.st_ino) == (wanted.st_dev, wanted.st_ino):
            identity = identify(pid)
            if identity is not None:
                found.append(identity)
    return found


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
