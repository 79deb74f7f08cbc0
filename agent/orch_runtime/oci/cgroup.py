"""The control group of a container of the OCI command line, where its caller wants it, with all of the resources."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from typing import Any

from orch_runtime.cgroups import CgroupBackend, CgroupV1, CgroupV2, read_cgroup_mounts
from orch_runtime.cgroups.interface import read_file, write_file
from orch_runtime.cgroups.v2 import weight_of_shares
from orch_runtime.config.reader import Reader
from orch_runtime.config.resources import read_limits
from orch_runtime.errors import InvalidConfig, KernelError, Refused

_EXTRA_V1 = ("cpuset", "hugetlb", "net_cls", "net_prio")
# What runtimes allow beside the config's own rules: OCI config-linux, "Default Devices", consoles and terminals.
_DEFAULT_DEVICES = (
    "allow c *:* m", "allow b *:* m", "allow c 1:3 rwm", "allow c 1:5 rwm", "allow c 1:7 rwm", "allow c 1:8 rwm",
    "allow c 1:9 rwm", "allow c 5:0 rwm", "allow c 5:1 rwm", "allow c 5:2 rwm", "allow c 136:* rwm",
)  # fmt: skip
_REMOVE_TIMEOUT_S = 10.0


def _without_zeroes(resources: Mapping[str, object]) -> dict[str, Any]:
    """Drop zero figures: engines send them for "not set"."""
    cleaned: dict[str, Any] = dict(resources)
    for key in ("cpu", "memory"):
        value = cleaned.get(key)
        if isinstance(value, Mapping):
            cleaned[key] = {name: entry for name, entry in value.items() if entry not in (0, None, "")}
    return cleaned


class ContainerCgroup:
    """One container's group; `path` is absolute below the mount points."""

    def __init__(self, path: str) -> None:
        parent, _, self._name = path.rstrip("/").rpartition("/")
        if not self._name or ".." in path.split("/"):
            raise InvalidConfig("linux.cgroupsPath", f"{path!r} must name a group below the root, without '..'")
        self.path = path
        controllers, unified = read_cgroup_mounts()
        self._mounts = controllers
        self.backend: CgroupBackend
        if "memory" in controllers or "pids" in controllers:
            self.backend = CgroupV1(controllers, parent, _EXTRA_V1)
        elif unified and os.path.exists(f"{unified}/cgroup.controllers"):
            self.backend = CgroupV2(unified, parent)
        else:
            raise Refused("no cgroup controllers are mounted: mount cgroup2 on /sys/fs/cgroup, or v1 controllers below")

    def create(self) -> None:
        """Make the group; on v1 its cpuset has to be filled before a process may enter."""
        self.backend.create(self._name)
        cpuset = self._folder("cpuset")
        if self.backend.version == 1 and cpuset:
            self._fill_cpuset(cpuset)

    def _folder(self, controller: str) -> str:
        if isinstance(self.backend, CgroupV1):
            return self.backend.folder(controller, self._name)
        return self.backend.exec_paths(self._name)[0]

    def _fill_cpuset(self, folder: str) -> None:
        root = self._mounts["cpuset"]
        missing = []
        while folder != root and not (
            read_file(f"{folder}/cpuset.cpus").strip() and read_file(f"{folder}/cpuset.mems").strip()
        ):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for place in reversed(missing):
            for file in ("cpuset.cpus", "cpuset.mems"):
                write_file(f"{place}/{file}", read_file(f"{os.path.dirname(place)}/{file}").strip())

    def join_paths(self) -> list[str]:
        """Return the folders a process enters by writing to their cgroup.procs."""
        return self.backend.exec_paths(self._name)

    def container_mounts(self) -> list[tuple[str, str]]:
        """Return what to mount at /sys/fs/cgroup, as CgroupBackend has it."""
        return self.backend.container_mounts()

    def apply(self, resources: Mapping[str, object], *, new: bool) -> list[str]:
        """Set `linux.resources`; a new group also gets the default devices. Returns warnings.

        Raises:
            InvalidConfig: naming the JSON path.
            KernelError: naming the file and the value that the kernel refused.
        """
        cleaned = _without_zeroes(resources)
        limits = read_limits(Reader(cleaned, "linux.resources", []))
        memory = cleaned.get("memory")
        if isinstance(memory, Mapping) and "swap" not in memory:
            limits.pop("memory_swap_bytes", None)
        if limits.get("devices") and new:
            limits["devices"] = [*limits["devices"], *_DEFAULT_DEVICES]
        elif not new:
            limits.pop("devices", None)
        warnings = self.backend.set_limits(self._name, limits)
        writes = read_extra_writes(cleaned, self.backend.version)
        for controller, file, value in writes:
            folder = self._folder(controller)
            if not folder or not os.path.exists(f"{folder}/{file}"):
                raise KernelError(
                    f"set {file} = {value}: the {controller} controller has no such file here", errno.ENOENT
                )
            write_file(f"{folder}/{file}", value)
        return warnings

    def processes(self) -> list[int]:
        """Return the processes in the group and below."""
        return self.backend.processes(self._name)

    def kill(self) -> None:
        """SIGKILL every process, frozen or not."""
        self.backend.kill(self._name)

    def freeze(self, *, frozen: bool) -> None:
        """Freeze or thaw."""
        self.backend.freeze(self._name, frozen=frozen)

    def thaw_elsewhere(self, pid: int) -> None:
        """Thaw the freezer group (v1) that a process has been moved to: no kill ends a frozen process there."""
        if self.backend.version != 1 or "freezer" not in self._mounts:
            return
        for line in read_file(f"/proc/{pid}/cgroup").splitlines():
            _, names, path = line.split(":", 2)
            if names == "freezer" and path != "/":
                write_file(f"{self._mounts['freezer']}{path}/freezer.state", "THAWED")

    def frozen(self) -> bool:
        """Tell whether the group is frozen."""
        if self.backend.version == 1:
            return read_file(f"{self._folder('freezer')}/freezer.state").strip() in ("FROZEN", "FREEZING")
        return read_file(f"{self._folder('')}/cgroup.freeze").strip() == "1"

    def stats(self) -> dict[str, int]:
        """Return usage figures."""
        return self.backend.stats(self._name)

    def remove(self) -> None:
        """Remove the group, waiting while the kernel still holds it.

        Raises:
            Refused: it is not empty after 10 s.
        """
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        pause = 0.001
        while not self.backend.remove(self._name):
            if time.monotonic() > deadline:
                raise Refused(f"cgroup {self.path} is still in use: end the processes {self.processes()} first")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)


def read_extra_writes(resources: Mapping[str, object], version: int) -> list[tuple[str, str, str]]:
    """Return (controller, file, value) of the resources that only the OCI command line sets.

    Raises:
        InvalidConfig: naming the JSON path.
    """
    return _writes_v1(resources) if version == 1 else _writes_v2(resources)


def _numbers(reader: Reader, key: str, low: int = 0, high: int = 1 << 62) -> int:
    return reader.integer(key, low, high)


def _block_devices(block: Reader, key: str, file: str) -> list[tuple[str, str, str]]:
    return [
        (
            "blkio",
            file,
            f"{_numbers(entry, 'major')}:{_numbers(entry, 'minor')} {_numbers(entry, 'rate')}",
        )
        for entry in block.readers(key, 256)
    ]


_THROTTLES = {
    "throttleReadBpsDevice": ("blkio.throttle.read_bps_device", "rbps"),
    "throttleWriteBpsDevice": ("blkio.throttle.write_bps_device", "wbps"),
    "throttleReadIOPSDevice": ("blkio.throttle.read_iops_device", "riops"),
    "throttleWriteIOPSDevice": ("blkio.throttle.write_iops_device", "wiops"),
}


def _writes_v1(resources: Mapping[str, object]) -> list[tuple[str, str, str]]:
    top = Reader(resources, "linux.resources", [])
    cpu, memory, block = top.reader("cpu"), top.reader("memory"), top.reader("blockIO")
    writes: list[tuple[str, str, str]] = []
    for key, controller, file in (
        ("realtimePeriod", "cpu", "cpu.rt_period_us"),
        ("realtimeRuntime", "cpu", "cpu.rt_runtime_us"),
        ("burst", "cpu", "cpu.cfs_burst_us"),
        ("idle", "cpu", "cpu.idle"),
    ):
        if cpu.has(key):
            writes.append((controller, file, str(cpu.integer(key, -1, 1 << 62))))
    writes += [("cpuset", f"cpuset.{key}", cpu.text(key)) for key in ("cpus", "mems") if cpu.has(key)]
    if memory.has("swappiness"):
        writes.append(("memory", "memory.swappiness", str(_numbers(memory, "swappiness", 0, 100))))
    if memory.boolean("disableOOMKiller"):
        writes.append(("memory", "memory.oom_control", "1"))
    if block.has("weight") and block.integer("weight", 0, 1000):
        writes.append(("blkio", "blkio.weight", str(_numbers(block, "weight", 10, 1000))))
    for key, (file, _) in _THROTTLES.items():
        writes += _block_devices(block, key, file)
    for entry in top.readers("hugepageLimits", 16):
        size = entry.text("pageSize")
        writes.append(("hugetlb", f"hugetlb.{size}.limit_in_bytes", str(_numbers(entry, "limit"))))
    network = top.reader("network")
    if network.has("classID"):
        writes.append(("net_cls", "net_cls.classid", str(_numbers(network, "classID", 0, (1 << 32) - 1))))
    for entry in network.readers("priorities", 256):
        writes.append(("net_prio", "net_prio.ifpriomap", f"{entry.text('name')} {_numbers(entry, 'priority')}"))
    if top.text_map("unified"):
        raise top.fail("unified", "needs a host with cgroup v2")
    return writes


def _writes_v2(resources: Mapping[str, object]) -> list[tuple[str, str, str]]:
    top = Reader(resources, "linux.resources", [])
    cpu, block = top.reader("cpu"), top.reader("blockIO")
    writes = [("cpuset", f"cpuset.{key}", cpu.text(key)) for key in ("cpus", "mems") if cpu.has(key)]
    if cpu.has("idle"):
        writes.append(("cpu", "cpu.idle", str(cpu.integer("idle", 0, 1))))
    if cpu.has("burst"):
        writes.append(("cpu", "cpu.max.burst", str(_numbers(cpu, "burst"))))
    if block.has("weight") and block.integer("weight", 0, 1000):
        weight = weight_of_shares(_numbers(block, "weight", 10, 1000) * 262142 // 1000 + 2)
        writes.append(("io", "io.weight", str(weight)))
    for key, (_, word) in _THROTTLES.items():
        writes += [("io", "io.max", value.replace(" ", f" {word}=")) for _, _, value in _block_devices(block, key, "")]
    for entry in top.readers("hugepageLimits", 16):
        writes.append(("hugetlb", f"hugetlb.{entry.text('pageSize')}.max", str(_numbers(entry, "limit"))))
    for file, value in top.text_map("unified").items():
        if "/" in file:
            raise top.fail(f"unified.{file}", "must be the name of a file, without '/'")
        writes += [("unified", file, line) for line in value.splitlines()]
    return writes
