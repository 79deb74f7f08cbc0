"""Usage of a container: its group's figures and its network counters."""

from __future__ import annotations

from orch_runtime.cgroups.interface import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.cgroups import CgroupBackend
    from orch_runtime.supervisor.container import Container

# Columns of /proc/PID/net/dev.
_COLUMNS = (
    ("receive_bytes", 0),
    ("receive_packets", 1),
    ("receive_errors", 2),
    ("receive_dropped", 3),
    ("transmit_bytes", 8),
    ("transmit_packets", 9),
    ("transmit_errors", 10),
    ("transmit_dropped", 11),
)


def network_usage(text: str) -> list[dict[str, object]]:
    """Parse /proc/PID/net/dev; loopback is left out."""
    interfaces: list[dict[str, object]] = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        if name.strip() == "lo" or len(fields) < 12:
            continue
        entry: dict[str, object] = {"interface": name.strip()}
        for key, column in _COLUMNS:
            entry[key] = int(fields[column])
        interfaces.append(entry)
    return interfaces


def container_usage(cgroups: CgroupBackend, container: Container) -> dict[str, object]:
    """Return what protocol.ContainerStats carries."""
    return {
        "id": container.id,
        "started_at_unix_ms": container.started_at_unix_ms,
        **cgroups.stats(container.cgroup),
        "networks": network_usage(read_file(f"/proc/{container.pid}/net/dev")),
    }
