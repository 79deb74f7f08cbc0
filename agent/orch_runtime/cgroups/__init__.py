"""Control groups: one interface, two back ends (v1 controllers, pure v2), chosen by looking at the mounts."""

from __future__ import annotations

import os

from orch_runtime.cgroups.interface import CgroupBackend
from orch_runtime.cgroups.v1 import CgroupV1
from orch_runtime.cgroups.v2 import CgroupV2
from orch_runtime.errors import Refused


def read_cgroup_mounts() -> tuple[dict[str, str], str]:
    """Return (v1 controller to mount point, cgroup2 mount point or "") from /proc/self/mountinfo."""
    controllers: dict[str, str] = {}
    unified = ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(" ", 2)
            place = left.split(" ")[4]
            if kind == "cgroup2":
                unified = unified or place
            elif kind == "cgroup":
                for option in options.strip().split(","):
                    controllers.setdefault(option, place)
    return controllers, unified


def open_backend(parent: str) -> CgroupBackend:
    """Return the back end for this host with `parent` ("/orch/node") made in every hierarchy it uses.

    Raises:
        Refused: no usable hierarchy is mounted.
    """
    controllers, unified = read_cgroup_mounts()
    if "memory" in controllers or "pids" in controllers:
        return CgroupV1(controllers, parent)
    if unified and os.path.exists(f"{unified}/cgroup.controllers"):
        return CgroupV2(unified, parent)
    raise Refused("no cgroup controllers are mounted: mount cgroup2 on /sys/fs/cgroup, or v1 controllers below it")


__all__ = ["CgroupBackend", "CgroupV1", "CgroupV2", "open_backend", "read_cgroup_mounts"]
