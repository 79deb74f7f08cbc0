"""What a container gets when nobody says otherwise: Docker's defaults, less what hardly any program needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orch_runtime.kernel.user_namespace import highest_group

# Docker's fourteen without NET_RAW (forging packets) and MKNOD (the six usual devices are there already).
DEFAULT_CAPABILITIES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

DEFAULT_MASKED_PATHS: tuple[str, ...] = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)

DEFAULT_READONLY_PATHS: tuple[str, ...] = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

DEFAULT_PIDS_LIMIT = 4096

# Programs that listen below 1024 or send pings need no privilege for it inside their own network namespace.
DEFAULT_SYSCTLS: dict[str, str] = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": f"0 {highest_group()}",
}

DEFAULT_SHM_BYTES = 64 * 1024 * 1024


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


DEFAULT_MOUNTS: tuple[dict[str, Any], ...] = (
    _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
    _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", f"size={DEFAULT_SHM_BYTES}"),  # noqa: S108 -- a mount target
    _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
    _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "ro"),
)


def _rule(kind: str, major: int | None, minor: int | None, access: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    if major is not None:
        rule["major"] = major
    if minor is not None:
        rule["minor"] = minor
    return rule


# Nodes may be made of any kind (m), but only these can be opened: null zero full tty urandom random, ptmx and pts.
DEFAULT_DEVICE_RULES: tuple[dict[str, Any], ...] = (
    {"allow": False, "access": "rwm"},
    _rule("c", None, None, "m"),
    _rule("b", None, None, "m"),
    _rule("c", 1, 3, "rwm"),
    _rule("c", 1, 5, "rwm"),
    _rule("c", 1, 7, "rwm"),
    _rule("c", 1, 8, "rwm"),
    _rule("c", 1, 9, "rwm"),
    _rule("c", 5, 0, "rwm"),
    _rule("c", 5, 2, "rwm"),
    _rule("c", 136, None, "rwm"),
)


def default_config(
    *,
    args: Sequence[str],
    env: Sequence[str] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",),
    cwd: str = "/",
    hostname: str = "",
    readonly_rootfs: bool = False,
    capabilities: Sequence[str] = DEFAULT_CAPABILITIES,
    sysctls: Mapping[str, str] | None = None,
    pids_limit: int = DEFAULT_PIDS_LIMIT,
    host_network: bool = False,
) -> dict[str, Any]:
    """Return an OCI config.json (as a fresh dict that the caller may change) with the secure defaults.

    `args` is the program, `env` a list of `NAME=value`. The default sysctls belong to the network namespace and are
    left out when the container shares the host's.
    """
    names = list(capabilities)
    namespaces = [{"type": kind} for kind in ("pid", "mount", "uts", "ipc", "cgroup")]
    if not host_network:
        namespaces.append({"type": "network"})
    if sysctls is None:
        sysctls = {} if host_network else DEFAULT_SYSCTLS
    config: dict[str, Any] = {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": list(env),
            "cwd": cwd,
            "capabilities": {
                "bounding": names,
                "effective": list(names),
                "permitted": list(names),
                # Nothing inheritable, nothing ambient: a non-root user gains no capability from a file's inheritable
                # set.
            },
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": readonly_rootfs},
        "mounts": [{**mount, "options": [*mount["options"]]} for mount in DEFAULT_MOUNTS],
        "linux": {
            "namespaces": namespaces,
            "resources": {"pids": {"limit": pids_limit}, "devices": [{**rule} for rule in DEFAULT_DEVICE_RULES]},
            "maskedPaths": list(DEFAULT_MASKED_PATHS),
            "readonlyPaths": list(DEFAULT_READONLY_PATHS),
            "sysctl": dict(sysctls),
        },
    }
    if hostname:
        config["hostname"] = hostname
    return config
