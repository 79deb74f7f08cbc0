"""Which users and groups there are inside: root is the user, the others are ids that the administrator gave them."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from orch_agent.rootless.errors import RootlessError

_MAP_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Range:
    """Host ids `first` to `first + count - 1`."""

    first: int
    count: int


def delegated(path: Path, uid: int) -> list[Range]:
    """The ranges that a file such as /etc/subuid (subuid(5)) gives to a user, by name or by number."""
    try:
        names = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        names = {str(uid)}
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        owner, _, numbers = line.strip().partition(":")
        first, _, count = numbers.partition(":")
        if owner in names and first.isdigit() and count.isdigit() and int(count):
            ranges.append(Range(int(first), int(count)))
    return ranges


def map_arguments(own: int, ranges: list[Range]) -> list[str]:
    """The map as newuidmap(1) takes it: 0 is the user, 1 and up are the delegated ranges one after the other."""
    arguments = ["0", str(own), "1"]
    inside = 1
    for entry in ranges:
        arguments += [str(inside), str(entry.first), str(entry.count)]
        inside += entry.count
    return arguments


def check() -> tuple[list[str], list[str]]:
    """The maps for users and for groups.

    Raises:
        RootlessError: the tools or the ranges are missing.
    """
    for tool in ("newuidmap", "newgidmap"):
        if shutil.which(tool) is None:
            raise RootlessError(
                f"cannot map users: {tool} is not installed; install it (Debian and Ubuntu: apt install uidmap)"
            )
    uid = os.getuid()
    maps = []
    for file, own in (("/etc/subuid", uid), ("/etc/subgid", os.getgid())):
        ranges = delegated(Path(file), uid)
        if not ranges:
            name = _name(uid)
            raise RootlessError(
                f"cannot map users: {file} gives {name} no ids for the files of images; as root run: "
                f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
            )
        maps.append(map_arguments(own, ranges))
    return maps[0], maps[1]


def write(pid: int, users: list[str], groups: list[str]) -> None:
    """Give the namespace of a process its maps.

    Raises:
        RootlessError: the kernel or the tools refuse.
    """
    for tool, arguments in (("newuidmap", users), ("newgidmap", groups)):
        done = subprocess.run(
            [tool, str(pid), *arguments], capture_output=True, text=True, timeout=_MAP_WAIT_S, check=False
        )
        if done.returncode != 0:
            raise RootlessError(
                f"cannot map users: {tool} said {done.stderr.strip()!r}; check /etc/subuid and /etc/subgid, and that "
                f"{tool} is setuid root or has its file capability"
            )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
