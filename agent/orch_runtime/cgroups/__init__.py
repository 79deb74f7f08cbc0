"""Control groups: one interface; back ends for v1 controllers, pure v2, and where none may be made."""

from __future__ import annotations

import os
import sys

from orch_runtime.cgroups.interface import CgroupBackend
from orch_runtime.cgroups.none import NoCgroups
from orch_runtime.cgroups.v1 import CgroupV1
from orch_runtime.cgroups.v2 import CgroupV2
from orch_runtime.errors import KernelError, Refused
from orch_runtime.kernel.user_namespace import in_user_namespace


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

    In a user namespace, where no group can be made, it is the one that does without.

    Raises:
        Refused: no usable hierarchy is mounted.
    """
    try:
        return _open_hierarchy(parent)
    except (OSError, KernelError, Refused) as error:
        if not in_user_namespace():
            raise
        sys.stderr.write(f"supervisor: containers have no control groups, and no limits: {error}\n")
        return NoCgroups()


def _open_hierarchy(parent: str) -> CgroupBackend:
    controllers, unified = read_cgroup_mounts()
    if "memory" in controllers or "pids" in controllers:
        return CgroupV1(controllers, parent)
    if unified and os.path.exists(f"{unified}/cgroup.controllers"):
        return CgroupV2(unified, parent)
    raise Refused("no cgroup controllers are mounted: mount cgroup2 on /sys/fs/cgroup, or v1 controllers below it")


__all__ = ["CgroupBackend", "CgroupV1", "CgroupV2", "NoCgroups", "open_backend", "read_cgroup_mounts"]
