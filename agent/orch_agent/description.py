"""What the node says of itself: name, platform, resources, what its kernel can do."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types
from orch_proto.version import VERSION

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
}


def memory_total_bytes(meminfo: str) -> int:
    """Total memory from the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/meminfo has no MemTotal line")


def cgroup_version() -> str:
    """Returns "1", "2" or "hybrid": which hierarchy the kernel offers the controllers in."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "2"
    return "hybrid" if Path("/sys/fs/cgroup/unified/cgroup.controllers").exists() else "1"


def describe_node(hostname: str, data_path_address: str, policies: Iterable[str] = ()) -> objects.NodeDescription:
    """The node's description as it is now; ``policies`` are what it allows (`orch_proto.privileges`)."""
    return objects.NodeDescription(
        hostname=hostname,
        platform=types.Platform(os="linux", architecture=_ARCHITECTURES.get(platform.machine(), platform.machine())),
        resources=types.Resources(
            nano_cpus=len(os.sched_getaffinity(0)) * 1_000_000_000,
            memory_bytes=memory_total_bytes(Path("/proc/meminfo").read_text(encoding="ascii")),
        ),
        engine=objects.EngineDescription(
            version=VERSION,
            kernel=platform.release(),
            cgroup_version=cgroup_version(),
            storage_driver="overlay",
        ),
        data_path_address=data_path_address,
        policies=sorted(policies),
    )
