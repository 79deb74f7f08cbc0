"""cgroup v1 (and hybrid hosts, whose controllers are v1)."""

from __future__ import annotations

import errno
import os

from orch_runtime.cgroups.interface import (
    CgroupBackend,
    list_groups,
    processes_below,
    read_file,
    read_number,
    read_table,
    remove_tree,
    write_file,
)
from orch_runtime.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.plan import LimitsPlan

_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "freezer", "devices", "blkio")
# v1 shows "no limit" as the largest page-aligned number.
_UNLIMITED = 1 << 60


class CgroupV1(CgroupBackend):
    """One group per controller hierarchy, all of the same name."""

    version = 1

    def __init__(self, mounts: dict[str, str], parent: str, more: tuple[str, ...] = ()) -> None:
        self._parent = parent
        self._roots = {name: mounts[name] + parent for name in (*_CONTROLLERS, *more) if name in mounts}
        self._folders = list(dict.fromkeys(self._roots.values()))
        self._mounts = {
            os.path.basename(mounts[name]): ",".join(other for other in self._roots if mounts[other] == mounts[name])
            for name in self._roots
        }
        for folder in self._folders:
            os.makedirs(folder, 0o755, exist_ok=True)

    def folder(self, controller: str, name: str) -> str:
        """Return the group's folder in a controller's hierarchy, "" where that is not mounted."""
        return self._path(controller, name)

    def _path(self, controller: str, name: str) -> str:
        return f"{self._roots[controller]}/{name}" if controller in self._roots else ""

    def create(self, name: str) -> None:
        """Make the group in every hierarchy."""
        for folder in self._folders:
            try:
                os.mkdir(f"{folder}/{name}")
            except FileExistsError:
                continue
            except FileNotFoundError:
                os.makedirs(f"{folder}/{name}", exist_ok=True)
            except OSError as error:
                raise KernelError("mkdir", error.errno or 0, f"{folder}/{name}") from error

    def open_for_clone(self, name: str) -> int:  # noqa: ARG002
        """v1 has no birth into a group."""
        return -1

    def join_paths(self, name: str) -> list[str]:
        """Return the group's folder in each hierarchy."""
        return [f"{folder}/{name}" for folder in self._folders]

    def container_mounts(self) -> list[tuple[str, str]]:
        """Return one mount per hierarchy."""
        return list(self._mounts.items())

    def _set_memory(self, name: str, limits: LimitsPlan, warnings: list[str]) -> None:
        folder = self._path("memory", name)
        if not folder:
            if "memory_bytes" in limits:
                warnings.append("memory limit not set: the memory controller is not mounted")
            return
        if "memory_bytes" in limits:
            steps = [("memory.limit_in_bytes", limits["memory_bytes"])]
            if "memory_swap_bytes" in limits:
                if os.path.exists(f"{folder}/memory.memsw.limit_in_bytes"):
                    steps.append(("memory.memsw.limit_in_bytes", limits["memory_swap_bytes"]))
                else:
                    warnings.append("swap limit not set: this kernel does not account swap")
            # Memory must never exceed memory plus swap: when growing, the second has to go first.
            if len(steps) == 2 and (
                steps[1][1] < 0 or 0 < read_number(f"{folder}/memory.memsw.limit_in_bytes") < steps[0][1]
            ):
                steps.reverse()
            for file, value in steps:
                write_file(f"{folder}/{file}", str(value))
        if "memory_reservation_bytes" in limits:
            write_file(f"{folder}/memory.soft_limit_in_bytes", str(limits["memory_reservation_bytes"]))

    def set_limits(self, name: str, limits: LimitsPlan) -> list[str]:
        """Write what is given; what is not given stays as it is."""
        warnings: list[str] = []
        self._set_memory(name, limits, warnings)
        cpu = self._path("cpu", name)
        if cpu:
            if "cpu_shares" in limits:
                write_file(f"{cpu}/cpu.shares", str(limits["cpu_shares"]))
            if "cpu_period_us" in limits:
                write_file(f"{cpu}/cpu.cfs_period_us", str(limits["cpu_period_us"]))
            if "cpu_quota_us" in limits:
                write_file(f"{cpu}/cpu.cfs_quota_us", str(limits["cpu_quota_us"]))
        elif "cpu_quota_us" in limits or "cpu_shares" in limits:
            warnings.append("cpu limit not set: the cpu controller is not mounted")
        pids = self._path("pids", name)
        if pids and "pids_max" in limits:
            write_file(f"{pids}/pids.max", str(limits["pids_max"]) if limits["pids_max"] > 0 else "max")
        devices = self._path("devices", name)
        if devices:
            for rule in limits.get("devices", ()):
                verb, _, value = rule.partition(" ")
                write_file(f"{devices}/devices.{verb}", "a" if value.startswith("a *:*") else value)
        elif limits.get("devices"):
            warnings.append("device rules not set: the devices controller is not mounted")
        return warnings

    def processes(self, name: str) -> list[int]:
        """Read the first hierarchy: a process is in the same group of each."""
        return processes_below(f"{self._folders[0]}/{name}")

    def kill(self, name: str) -> None:
        """Freeze, so that nothing is born meanwhile; signal all; thaw, so that the signal takes effect."""
        freezer = self._path("freezer", name)
        if freezer:
            self.freeze(name, frozen=True)
        for pid in self.processes(name):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        if freezer:
            self.freeze(name, frozen=False)

    def freeze(self, name: str, *, frozen: bool) -> None:
        """Write freezer.state; freezing may take a few ms to complete."""
        freezer = self._path("freezer", name)
        if not freezer:
            raise KernelError("freeze", errno.ENOTSUP, "the freezer controller is not mounted")
        try:
            write_file(f"{freezer}/freezer.state", "FROZEN" if frozen else "THAWED")
        except KernelError as error:
            if error.number != errno.ENOENT:
                raise

    def oom_kills(self, name: str) -> int:
        """Read the counter: the exit code alone does not tell."""
        folder = self._path("memory", name)
        return read_table(f"{folder}/memory.oom_control").get("oom_kill", 0) if folder else 0

    def watch_oom(self, name: str) -> int:
        """Register an eventfd on memory.oom_control."""
        folder = self._path("memory", name)
        if not folder:
            return -1
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(f"{folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                write_file(f"{folder}/cgroup.event_control", f"{event} {control}")
            finally:
                os.close(control)
        except (OSError, KernelError):
            os.close(event)
            return -1
        return event

    def stats(self, name: str) -> dict[str, int]:
        """Read usage from every hierarchy."""
        result: dict[str, int] = {}
        cpuacct, cpu, pids = (self._path(controller, name) for controller in ("cpuacct", "cpu", "pids"))
        if cpuacct:
            result["cpu_usage_ns"] = read_number(f"{cpuacct}/cpuacct.usage")
            result["cpu_user_ns"] = read_number(f"{cpuacct}/cpuacct.usage_user")
            result["cpu_system_ns"] = read_number(f"{cpuacct}/cpuacct.usage_sys")
        if cpu:
            table = read_table(f"{cpu}/cpu.stat")
            result["cpu_periods"] = table.get("nr_periods", 0)
            result["cpu_throttled_periods"] = table.get("nr_throttled", 0)
            result["cpu_throttled_ns"] = table.get("throttled_time", 0)
        if pids:
            result["pids_current"] = read_number(f"{pids}/pids.current")
            result["pids_limit"] = max(read_number(f"{pids}/pids.max"), 0)
        result.update(self._memory_stats(self._path("memory", name)))
        blkio = self._path("blkio", name)
        if blkio:
            result["block_read_bytes"], result["block_write_bytes"] = _block_bytes(
                read_file(f"{blkio}/blkio.throttle.io_service_bytes_recursive")
            )
        return result

    def _memory_stats(self, folder: str) -> dict[str, int]:
        if not folder:
            return {}
        usage = read_number(f"{folder}/memory.usage_in_bytes")
        table = read_table(f"{folder}/memory.stat")
        limit = read_number(f"{folder}/memory.limit_in_bytes")
        return {
            "memory_usage_bytes": usage,
            # As cAdvisor has it: what cannot be given back without work.
            "memory_working_set_bytes": max(usage - table.get("total_inactive_file", 0), 0),
            "memory_rss_bytes": table.get("total_rss", 0),
            "memory_cache_bytes": table.get("total_cache", 0),
            "memory_limit_bytes": 0 if limit >= _UNLIMITED else limit,
            "memory_failures": read_number(f"{folder}/memory.failcnt"),
            "oom_kills": read_table(f"{folder}/memory.oom_control").get("oom_kill", 0),
        }

    def remove(self, name: str) -> bool:
        """Remove the group from every hierarchy."""
        done = True
        for folder in self._folders:
            done = remove_tree(f"{folder}/{name}") and done
        return done

    def names(self) -> list[str]:
        """Return names found in any hierarchy."""
        return list(dict.fromkeys(name for folder in self._folders for name in list_groups(folder)))

    def remove_parent(self) -> bool:
        """Remove the parent, and the folders above it if they are empty."""
        done = True
        for folder in self._folders:
            root = folder.removesuffix(self._parent)
            while folder != root:
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    pass
                except OSError:
                    done = done and folder != root + self._parent
                    break
                folder = os.path.dirname(folder)  # noqa: PLW2901
        return done


def _block_bytes(text: str) -> tuple[int, int]:
    read = written = 0
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3:
            if fields[1] == "Read":
                read += int(fields[2])
            elif fields[1] == "Write":
                written += int(fields[2])
    return read, written
