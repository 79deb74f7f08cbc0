"""The processes of a container, as both it and the node see them (`orch top`)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from orch_proto import node_pb2 as calls
from orch_runtime.errors import KernelError
from orch_runtime.kernel.mounts import open_in_root

MAX_PASSWD_BYTES = 1 << 20
MAX_COMMAND_BYTES = 4096
_PSEUDO_TERMINAL_MAJORS = range(136, 144)


def read_processes(pids: Iterable[int], container_pid: int) -> list[calls.ContainerProcess]:
    """Reads /proc for each pid of the node; those that end meanwhile are left out.

    Args:
        pids: the container's processes.
        container_pid: its first process, whose /etc/passwd names the users.
    """
    names = user_names(container_pid)
    boot_ms = _boot_time_ms()
    found = []
    inner: dict[int, int] = {}
    for pid in sorted(pids):
        try:
            process, parent = _read_process(pid, boot_ms, names)
        except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
            continue
        inner[pid] = process.pid
        found.append((process, parent))
    for process, parent in found:
        process.parent_pid = inner.get(parent, 0)
    return [process for process, _ in found]


def user_names(container_pid: int) -> dict[int, str]:
    """Names by uid, of the container's own /etc/passwd; empty when there is none."""
    try:
        root = os.open(f"/proc/{container_pid}/root", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        descriptor = open_in_root(root, "/etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except KernelError:
        return {}
    finally:
        os.close(root)
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(MAX_PASSWD_BYTES).decode(errors="replace")
    names: dict[int, str] = {}
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isdigit():
            names.setdefault(int(fields[2]), fields[0])
    return names


def _read_process(pid: int, boot_ms: int, names: dict[int, str]) -> tuple[calls.ContainerProcess, int]:
    """One process, and the pid of its parent as the node sees it (proc(5), /proc/pid/stat)."""
    folder = Path(f"/proc/{pid}")
    text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    ticks = os.sysconf("SC_CLK_TCK")
    status = dict(
        line.split(":\t", 1) for line in (folder / "status").read_text(errors="replace").splitlines() if ":\t" in line
    )
    uid = int(status["Uid"].split()[1])
    arguments = (folder / "cmdline").read_bytes()[:MAX_COMMAND_BYTES].rstrip(b"\0").replace(b"\0", b" ")
    terminal = int(fields[4])
    on_terminal = terminal >> 8 & 0xFFF in _PSEUDO_TERMINAL_MAJORS
    process = calls.ContainerProcess(
        user=names.get(uid, str(uid)),
        pid=int(status["NSpid"].split()[-1]),
        node_pid=pid,
        started_at_unix_ms=boot_ms + int(fields[19]) * 1000 // ticks,
        cpu_time_ms=(int(fields[11]) + int(fields[12])) * 1000 // ticks,
        terminal=f"pts/{terminal & 0xFF | terminal >> 12 & 0xFFF00}" if on_terminal else "",
        command=arguments.decode(errors="replace") or f"[{name}]",
        resident_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
    )
    return process, int(fields[1])


def _boot_time_ms() -> int:
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        if line.startswith("btime "):
            return int(line.split()[1]) * 1000
    return 0
