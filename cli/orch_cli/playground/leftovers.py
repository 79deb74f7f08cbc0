"""Cgroups, mounts and folders that are a playground's or a node's by their name, and their removal."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orch_cli.playground import tools
from orch_cli.playground.processes import ProcessId, identify

_MOUNTS: Final = Path("/proc/self/mountinfo")
_POLL_S: Final = 0.02
_THAWING: Final = {"freezer.state": "THAWED", "cgroup.freeze": "0"}
_CGROUP_LIMIT_S: Final = 10.0


def unescape(field: str) -> str:
    """A path as mountinfo writes it: blanks and backslashes are three octal digits (proc(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def mounts_beneath(table: str, roots: tuple[Path, ...]) -> list[str]:
    """Mount points at or beneath some folders, the deepest and latest first; from the text of mountinfo."""
    prefixes = tuple(str(root) for root in roots)
    points = [unescape(line.split(" ")[4]) for line in table.splitlines()]
    return [
        point
        for point in reversed(points)
        if any(point == prefix or point.startswith(f"{prefix}/") for prefix in prefixes)
    ]


def cgroup_folders(cgroup: str) -> list[Path]:
    """A cgroup in every hierarchy that has it.

    Args:
        cgroup: its path below each hierarchy's root: a playground's, or a node's.
    """
    folders = []
    for line in _MOUNTS.read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ")[0] in {"cgroup", "cgroup2"}:
            folder = Path(unescape(left.split(" ")[4])) / cgroup.lstrip("/")
            if folder.is_dir():
                folders.append(folder)
    return folders


def processes_in_cgroups(cgroup: str, *, thaw: bool = True) -> Iterator[ProcessId]:
    """Every process in or below a cgroup; frozen ones are thawed unless told not to, as they could not die."""
    for root in cgroup_folders(cgroup):
        for folder, _, files in os.walk(root):
            for name in _THAWING.keys() & set(files) if thaw else ():
                with contextlib.suppress(OSError):
                    Path(folder, name).write_text(_THAWING[name], encoding="ascii")
            try:
                pids = Path(folder, "cgroup.procs").read_text(encoding="ascii").split()
            except (FileNotFoundError, OSError):
                continue
            yield from (identity for pid in pids if (identity := identify(int(pid))) is not None)


def remove_cgroups(cgroup: str) -> list[Path]:
    """Removes a cgroup with all below it from every hierarchy, innermost first; returns those that would not go."""
    deadline = time.monotonic() + _CGROUP_LIMIT_S
    while True:
        left = []
        for root in cgroup_folders(cgroup):
            for folder, _, _ in os.walk(root, topdown=False):
                try:
                    Path(folder).rmdir()
                except FileNotFoundError:
                    continue
                except OSError:
                    # Busy until the kernel has let go of processes that died just now.
                    left.append(Path(folder))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(_POLL_S)


def unmount_beneath(*roots: Path) -> list[str]:
    """Unmounts what is mounted at or beneath some folders; returns what would not go."""
    for point in mounts_beneath(_MOUNTS.read_text(encoding="utf-8"), roots):
        subprocess.run([tools.find("umount"), "--lazy", point], capture_output=True, check=False)
    return mounts_beneath(_MOUNTS.read_text(encoding="utf-8"), roots)


def remove_folders(*roots: Path) -> list[str]:
    """Unmounts what is mounted in some folders and removes them; returns what would not go."""
    still_mounted = unmount_beneath(*roots)
    if still_mounted:
        # Removing the folders would reach through the mounts.
        return still_mounted
    for root in roots:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(root)
    return []
