"""What a test may leave behind: a footprint of kernel objects before and after, and how they differ.

In CI nothing else happens on the machine, so the whole host is compared. Elsewhere people do other things while tests
run, so only what is a playground's own by its name is.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from orch_cli.playground.layout import NAMESPACES, Layout, NodePlace
from orch_cli.playground.leftovers import unescape
from orch_cli.playground.processes import all_pids, identify
from orch_runtime.daemon import DEFAULT_POOL_SIZE

WHOLE_HOST = os.environ.get("CI") == "true"
POLL_S = 0.05


@dataclass(frozen=True)
class Footprint:
    """Kernel objects, each a readable name; a name that stands twice counts twice."""

    mounts: Counter[str]
    cgroups: Counter[str]
    links: Counter[str]
    namespaces: Counter[str]
    rules: Counter[str]
    processes: Counter[str]

    def difference(self, later: Footprint) -> list[str]:
        """What a later footprint has more or less, a sentence each."""
        found = []
        for field in fields(self):
            before, after = getattr(self, field.name), getattr(later, field.name)
            found += [f"{field.name}: new: {name} ({count})" for name, count in sorted((after - before).items())]
            found += [f"{field.name}: gone: {name} ({count})" for name, count in sorted((before - after).items())]
        return found


def settled_difference(
    before: Footprint, take: Callable[[], Footprint], *, only_new: bool = False, limit_s: float = 15.0
) -> list[str]:
    """The difference that remains: the kernel lets go of dead namespaces and cgroups a moment later.

    With ``only_new``, what is less than before is fine, as spare children and namespaces are used up.
    """
    deadline = time.monotonic() + limit_s
    while True:
        left = [found for found in before.difference(take()) if not only_new or ": new: " in found]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_S)


def host(layout: Layout) -> Footprint:
    """The footprint on the host: all of it in CI, elsewhere what is named for the playground."""
    marks = (f"orch-{layout.name}", layout.host_link, layout.table)

    def own(name: str) -> bool:
        return WHOLE_HOST or any(mark in name for mark in marks)

    return Footprint(
        mounts=Counter(point for point in _mount_points() if own(point) and point != str(NAMESPACES)),
        cgroups=Counter(str(folder) for folder in _cgroups() if own(str(folder))),
        links=Counter(name for name in _names(Path("/sys/class/net")) if own(name)),
        namespaces=Counter(name for name in _names(NAMESPACES) if own(name)),
        rules=Counter(line for line in _ruleset(["nft"]) if own(line)),
        processes=Counter(line for line in _command_lines() if f"/orch-{layout.name}/" in line),
    )


def links_of(namespace: Path) -> list[str]:
    """The interfaces of a network namespace."""
    command = ["nsenter", f"--net={namespace}", "--", "cat", "/proc/net/dev"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split(":")[0].strip() for line in table.splitlines()[2:]]


def node(place: NodePlace) -> Footprint:
    """The footprint inside a node: what its containers, networks and services put into the kernel."""
    enter = ["nsenter", f"--net={place.namespace_path}", "--"]
    roots = (f"{place.run_dir}/", f"{place.state_dir}/")
    folders = [str(folder) for folder in _cgroups() if f"{place.cgroup_parent}/" in str(folder)]
    return Footprint(
        mounts=Counter(_numberless(point) for point in _mount_points() if point.startswith(roots)),
        cgroups=_beyond_spares(Counter(_numberless(folder) for folder in folders), "/c-#"),
        links=Counter(_numberless(name) for name in links_of(place.namespace_path)),
        namespaces=Counter(),
        rules=Counter(_ruleset([*enter, "nft"])),
        processes=_beyond_spares(
            Counter(_process_name(line) for line in _command_lines() if f"{place.run_dir}/" in line), "--pool #"
        ),
    )


def _beyond_spares(found: Counter[str], ending: str) -> Counter[str]:
    # The supervisor keeps up to so many children in reserve, each with its cgroups; after a kill it makes new ones.
    spares = Counter({name: DEFAULT_POOL_SIZE + 1 for name in found if name.endswith(ending)})
    return found - spares


def _numberless(name: str) -> str:
    # Spare children, namespaces and links have numbers or random names; one is as good as another.
    return re.sub(r"[0-9a-z]{25}|[0-9a-f]{8,}|\d+", "#", name)


def _process_name(line: str) -> str:
    # A manager is told whom to join when it is one of several, and not when it founded the cluster.
    return "orch_manager" if " -m orch_manager " in line else _numberless(line)


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def _mount_points() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield unescape(line.split(" ")[4])


def _cgroups() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ")[0] in {"cgroup", "cgroup2"}:
            for folder, _, _ in os.walk(unescape(left.split(" ")[4])):
                yield Path(folder)


def _ruleset(nft: list[str]) -> list[str]:
    result = subprocess.run([*nft, "--stateless", "list", "ruleset"], capture_output=True, text=True, check=True)
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def _command_lines() -> Iterator[str]:
    for pid in all_pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words and identify(pid) is not None:
            yield words.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
