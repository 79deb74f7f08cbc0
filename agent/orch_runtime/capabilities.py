"""Linux capabilities by name: bit numbers of include/uapi/linux/capability.h."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_ORDER = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
NUMBERS: dict[str, int] = {f"CAP_{name}": number for number, name in enumerate(_ORDER.split())}


@cache
def last_capability() -> int:
    """Return the number of the highest capability this kernel knows."""
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))


def mask_of(names: list[str]) -> int:
    """Return the bit mask of capability names; KeyError names an unknown one."""
    mask = 0
    for name in names:
        mask |= 1 << NUMBERS[name]
    return mask
