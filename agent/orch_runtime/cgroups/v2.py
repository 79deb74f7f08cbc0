"""Pure cgroup v2: one tree, births into it, kill and freeze by file.

Device rules need a BPF program on v2; until that is built, a plan with device rules is started with a warning:
without CAP_MKNOD the container still cannot make nodes of its own.
"""

from __future__ import annotations

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

_CONTROLLERS = ("memory", "cpu", "pids", "io")


def weight_of_shares(shares: int) -> int:
    """Convert cpu.shares (2 to 262144) to cpu.weight (1 to 10000) by the OCI formula."""
    return 1 + ((shares - 2) * 9999) // 262142


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)


class CgroupV2(CgroupBackend):
    """Groups as folders below the parent."""

    version = 2

    def __init__(self, mount: str, parent: str) -> None:
        self._mount = mount
        self._parent = parent
        self._folder = mount + parent
        os.makedirs(self._folder, 0o755, exist_ok=True)
        self.controllers = self._delegate()

    def _delegate(self) -> set[str]:
        """Enable the controllers on the way down to the parent; returns those that arrived."""
        path = self._mount
        for part in ["", *self._parent.strip("/").split("/")]:
            path = f"{path}/{part}" if part else path
            for controller in _CONTROLLERS:
                if controller in read_file(f"{path}/cgroup.controllers").split():
                    try:
                        write_file(f"{path}/cgroup.subtree_control", f"+{controller}")
                    except KernelError:
                        continue
        return set(read_file(f"{self._folder}/cgroup.subtree_control").split())

    def create(self, name: str) -> None:
        """Make the folder."""
        try:
            os.mkdir(f"{self._folder}/{name}")
        except FileExistsError:
            return
        except OSError as error:
            raise KernelError("mkdir", error.errno or 0, f"{self._folder}/{name}") from error

    def open_for_clone(self, name: str) -> int:
        """Return the folder's descriptor."""
        return os.open(f"{self._folder}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def join_paths(self, name: str) -> list[str]:  # noqa: ARG002
        """Nothing to join: processes are born inside."""
        return []

    def exec_paths(self, name: str) -> list[str]:
        """Return the folder."""
        return [f"{self._folder}/{name}"]

    def container_mounts(self) -> list[tuple[str, str]]:
        """Return the one cgroup2 mount."""
        return [("", "cgroup2")]

    def set_limits(self, name: str, limits: LimitsPlan) -> list[str]:
        """Write what is given and warn about controllers that are not delegated here."""
        folder = f"{self._folder}/{name}"
        writes: list[tuple[str, str, str]] = []
        if "memory_bytes" in limits:
            writes.append(("memory", "memory.max", _or_max(limits["memory_bytes"])))
        if "memory_swap_bytes" in limits and "memory_bytes" in limits:
            swap = limits["memory_swap_bytes"]
            writes.append(("memory", "memory.swap.max", _or_max(swap if swap < 0 else swap - limits["memory_bytes"])))
        if "memory_reservation_bytes" in limits:
            writes.append(("memory", "memory.low", str(max(limits["memory_reservation_bytes"], 0))))
        if "cpu_shares" in limits:
            writes.append(("cpu", "cpu.weight", str(weight_of_shares(limits["cpu_shares"]))))
        if "cpu_quota_us" in limits or "cpu_period_us" in limits:
            quota = _or_max(limits.get("cpu_quota_us", -1))
            writes.append(("cpu", "cpu.max", f"{quota} {limits.get('cpu_period_us', 100_000)}"))
        if "pids_max" in limits:
            writes.append(("pids", "pids.max", _or_max(limits["pids_max"] or -1)))
        warnings: list[str] = []
        for controller, file, value in writes:
            if controller in self.controllers and os.path.exists(f"{folder}/{file}"):
                write_file(f"{folder}/{file}", value)
            else:
                warnings.append(f"{file} not set: the {controller} controller is not delegated to {self._parent}")
        if limits.get("devices"):
            warnings.append("device rules not set: not built yet for cgroup v2")
        return warnings

    def processes(self, name: str) -> list[int]:
        """Read cgroup.procs of the group and those below."""
        return processes_below(f"{self._folder}/{name}")

    def kill(self, name: str) -> None:
        """Write cgroup.kill, which takes frozen and newborn processes too."""
        write_file(f"{self._folder}/{name}/cgroup.kill", "1")

    def freeze(self, name: str, *, frozen: bool) -> None:
        """Write cgroup.freeze."""
        write_file(f"{self._folder}/{name}/cgroup.freeze", "1" if frozen else "0")

    def oom_kills(self, name: str) -> int:
        """Read memory.events."""
        return read_table(f"{self._folder}/{name}/memory.events").get("oom_kill", 0)

    def watch_oom(self, name: str) -> int:  # noqa: ARG002
        """Not watched: the counter is read at exit and with every stats request."""
        return -1

    def stats(self, name: str) -> dict[str, int]:
        """Read usage."""
        folder = f"{self._folder}/{name}"
        cpu = read_table(f"{folder}/cpu.stat")
        result = {
            "cpu_usage_ns": cpu.get("usage_usec", 0) * 1000,
            "cpu_user_ns": cpu.get("user_usec", 0) * 1000,
            "cpu_system_ns": cpu.get("system_usec", 0) * 1000,
            "cpu_periods": cpu.get("nr_periods", 0),
            "cpu_throttled_periods": cpu.get("nr_throttled", 0),
            "cpu_throttled_ns": cpu.get("throttled_usec", 0) * 1000,
            "pids_current": read_number(f"{folder}/pids.current"),
            "pids_limit": max(read_number(f"{folder}/pids.max"), 0),
        }
        usage = read_number(f"{folder}/memory.current")
        memory = read_table(f"{folder}/memory.stat")
        events = read_table(f"{folder}/memory.events")
        result["memory_usage_bytes"] = usage
        result["memory_working_set_bytes"] = max(usage - memory.get("inactive_file", 0), 0)
        result["memory_rss_bytes"] = memory.get("anon", 0)
        result["memory_cache_bytes"] = memory.get("file", 0)
        result["memory_limit_bytes"] = max(read_number(f"{folder}/memory.max"), 0)
        result["memory_failures"] = events.get("max", 0)
        result["oom_kills"] = events.get("oom_kill", 0)
        read = written = 0
        for line in read_file(f"{folder}/io.stat").splitlines():
            for field in line.split()[1:]:
                key, _, value = field.partition("=")
                if key == "rbytes":
                    read += int(value)
                elif key == "wbytes":
                    written += int(value)
        result["block_read_bytes"] = read
        result["block_write_bytes"] = written
        return result

    def remove(self, name: str) -> bool:
        """Remove the folder and those below it."""
        return remove_tree(f"{self._folder}/{name}")

    def names(self) -> list[str]:
        """Return the folders below the parent."""
        return list_groups(self._folder)

    def remove_parent(self) -> bool:
        """Remove the parent, and the folders above it if they are empty."""
        folder = self._folder
        while folder != self._mount:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError:
                return folder != self._folder
            folder = os.path.dirname(folder)
        return True
