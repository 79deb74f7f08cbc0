"""Groups without control groups, for a user to whom none are delegated: a container is its process namespace.

The namespace's first process stands for the group: with it the kernel kills all others. Nothing can be limited or
frozen, and usage is what /proc tells of the processes that there are.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module: `signal` wraps every number in an enum
import errno
import os

from orch_runtime.cgroups.interface import CgroupBackend, read_file
from orch_runtime.config.defaults import DEFAULT_PIDS_LIMIT
from orch_runtime.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.plan import LimitsPlan

_WHY = "no control group is delegated to the user that runs orchd"
_LIMITS = (
    ("memory", ("memory_bytes", "memory_swap_bytes", "memory_reservation_bytes")),
    ("cpu", ("cpu_shares", "cpu_quota_us")),
)
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class NoCgroups(CgroupBackend):
    """Containers by their first process."""

    version = 0

    def __init__(self) -> None:
        # Name to (process id, pidfd); (0, -1) until the process is there.
        self._first: dict[str, tuple[int, int]] = {}

    def create(self, name: str) -> None:
        """Know the name."""
        self._first.setdefault(name, (0, -1))

    def adopt(self, name: str, pid: int) -> None:
        """Take the process as the group's first; one that has ended already is fine."""
        self.remove(name)
        try:
            self._first[name] = (pid, os.pidfd_open(pid))
        except ProcessLookupError:
            self._first[name] = (0, -1)

    def open_for_clone(self, name: str) -> int:  # noqa: ARG002
        """There is nothing to be born into."""
        return -1

    def join_paths(self, name: str) -> list[str]:  # noqa: ARG002
        """There is nothing to join."""
        return []

    def container_mounts(self) -> list[tuple[str, str]]:
        """Return none: /sys/fs/cgroup is an empty folder in containers."""
        return []

    def set_limits(self, name: str, limits: LimitsPlan) -> list[str]:  # noqa: ARG002
        """Return a warning for each kind of limit that was asked for; the default of processes is nobody's wish."""
        warnings = [f"{kind} limit not set: {_WHY}" for kind, keys in _LIMITS if any(limits.get(key) for key in keys)]
        if limits.get("pids_max", DEFAULT_PIDS_LIMIT) not in (DEFAULT_PIDS_LIMIT, 0, -1):
            warnings.append(f"limit of processes not set: {_WHY}")
        return warnings

    def processes(self, name: str) -> list[int]:
        """Return the members of the first process's namespace."""
        first, _ = self._first.get(name, (0, -1))
        namespace = _pid_namespace(first) if first else 0
        if not namespace:
            return []
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _pid_namespace(int(pid)) == namespace]

    def kill(self, name: str) -> None:
        """SIGKILL the first process; the kernel kills the others with it."""
        _, pidfd = self._first.get(name, (0, -1))
        if pidfd >= 0:
            try:
                _signal.pidfd_send_signal(pidfd, 9)
            except ProcessLookupError:
                return

    def freeze(self, name: str, *, frozen: bool) -> None:
        """Refuse: processes can be stopped by signals, but they and their parents would notice."""
        if frozen:
            raise KernelError("freeze", errno.ENOTSUP, f"{name}: {_WHY}")

    def oom_kills(self, name: str) -> int:  # noqa: ARG002
        """Nobody counts."""
        return 0

    def watch_oom(self, name: str) -> int:  # noqa: ARG002
        """Nobody tells."""
        return -1

    def stats(self, name: str) -> dict[str, int]:
        """Add up /proc: memory that processes share counts once for each of them."""
        pids = self.processes(name)
        user = system = pages = 0
        for pid in pids:
            fields = read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()
            if len(fields) > 14:  # from field 3 on: 14, 15 own times, 16, 17 those of children that were waited for
                user += int(fields[11]) + int(fields[13])
                system += int(fields[12]) + int(fields[14])
            sizes = read_file(f"/proc/{pid}/statm").split()
            pages += int(sizes[1]) if len(sizes) > 1 else 0
        resident = pages * _PAGE_BYTES
        return {
            "cpu_usage_ns": (user + system) * _NS_PER_TICK,
            "cpu_user_ns": user * _NS_PER_TICK,
            "cpu_system_ns": system * _NS_PER_TICK,
            "memory_usage_bytes": resident,
            "memory_working_set_bytes": resident,
            "memory_rss_bytes": resident,
            "pids_current": len(pids),
        }

    def remove(self, name: str) -> bool:
        """Forget the name."""
        _, pidfd = self._first.pop(name, (0, -1))
        if pidfd >= 0:
            os.close(pidfd)
        return True

    def names(self) -> list[str]:
        """Return the names that are known; a new supervisor knows those that it adopted."""
        return list(self._first)

    def remove_parent(self) -> bool:
        """There is none."""
        return True


def _pid_namespace(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0
