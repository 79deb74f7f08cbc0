"""Processes: clone3, namespaces, prctl, capabilities, pidfd information."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import struct

from orch_runtime.kernel.calls import (
    SYS_CLONE3,
    SYS_CLOSE_RANGE,
    c_int,
    c_long,
    c_size_t,
    c_uint,
    c_ulong,
    c_void_p,
    function,
    raise_errno,
    syscall,
)

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_INTO_CGROUP = 0x200000000
SIGCHLD = 17

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLOSE_RANGE_CLOEXEC = 4
FD_MAX = 0xFFFFFFFF

# include/uapi/linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info); exit information since Linux 6.15.
PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO_SIZE = 64
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO_SIZE << 16) | (0xFF << 8) | 11

_clone3 = syscall(c_void_p, c_size_t)
_close_range = syscall(c_uint, c_uint, c_uint)
_setns = function("setns", c_int, c_int)
_unshare = function("unshare", c_int)
_prctl = function("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_capset = function("capset", c_void_p, c_void_p)
_tee = function("tee", c_int, c_int, c_size_t, c_uint, result=c_long)

_CAP_VERSION_3 = 0x20080522
SPLICE_F_NONBLOCK = 2


def clone3(flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """Fork by clone3 with `flags`; returns (pid, pidfd) in the caller and (0, -1) in the new process.

    The C library and Python know nothing of it: the caller must be single-threaded, and the new process may only run
    straight-line code up to execve or _exit. `cgroup_fd` is a cgroup2 folder to be born in.

    Raises:
        KernelError: clone3 was refused.
    """
    pidfd = array.array("i", [-1])
    address, _ = pidfd.buffer_info()
    exit_signal = 0 if flags & CLONE_PARENT else SIGCHLD
    into = 0
    if cgroup_fd >= 0:
        flags |= CLONE_INTO_CGROUP
        into = cgroup_fd
    arguments = ctypes.create_string_buffer(
        struct.pack("=11Q", flags | CLONE_PIDFD, address, 0, 0, exit_signal, 0, 0, 0, 0, 0, into), 88
    )
    pid = _clone3(SYS_CLONE3, ctypes.addressof(arguments), 88)
    if pid < 0:
        raise_errno("clone3")
    if pid == 0:
        return 0, -1
    return pid, pidfd[0]


def setns(fd: int, flags: int, what: str = "") -> None:
    """Enter the namespaces that a namespace file or pidfd stands for."""
    if _setns(fd, flags) < 0:
        raise_errno("setns", what)


def unshare(flags: int) -> None:
    """Leave the given namespaces for new ones."""
    if _unshare(flags) < 0:
        raise_errno("unshare", hex(flags))


def prctl(option: int, value: int = 0, value2: int = 0) -> None:
    """Call prctl with up to two values."""
    if _prctl(option, value, value2, 0, 0) < 0:
        raise_errno("prctl", str(option))


def close_range(first: int, last: int = FD_MAX, flags: int = 0) -> None:
    """Close (or mark close-on-exec) every descriptor from first to last."""
    if first <= last and _close_range(SYS_CLOSE_RANGE, first, last, flags) < 0:
        raise_errno("close_range")


def tee(source: int, target: int, length: int) -> int:
    """Duplicate pipe contents without consuming them; 0 at end of file, -1 when there is nothing yet.

    Raises:
        KernelError: anything but "nothing yet".
    """
    count = int(_tee(source, target, length, SPLICE_F_NONBLOCK))
    if count < 0:
        if ctypes.get_errno() == errno.EAGAIN:
            return -1
        raise_errno("tee")
    return count


def drop_bounding(keep_mask: int, last_capability: int) -> None:
    """Drop from the bounding set every capability that is not in keep_mask."""
    for number in range(last_capability + 1):
        if not keep_mask >> number & 1:
            prctl(PR_CAPBSET_DROP, number)


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Set the three classic capability sets of this process."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAP_VERSION_3, 0), 8)
    low = 0xFFFFFFFF
    data = ctypes.create_string_buffer(
        struct.pack(
            "=6I",
            effective & low,
            permitted & low,
            inheritable & low,
            effective >> 32,
            permitted >> 32,
            inheritable >> 32,
        ),
        24,
    )
    if _capset(ctypes.addressof(header), ctypes.addressof(data)) < 0:
        raise_errno("capset")


def set_ambient(mask: int) -> None:
    """Make the ambient set exactly mask (each must be permitted and inheritable)."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    number = 0
    while mask >> number:
        if mask >> number & 1:
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
        number += 1


def exit_status_of_pidfd(pidfd: int) -> int | None:
    """Return the wait status of a process that somebody else reaped, or None if the kernel does not tell.

    Needs Linux 6.15, and a pidfd that was opened before the process was reaped.
    """
    buffer = bytearray(struct.pack("=Q", PIDFD_INFO_EXIT) + bytes(_PIDFD_INFO_SIZE - 8))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    mask = struct.unpack_from("=Q", buffer)[0]
    # struct pidfd_info: mask, cgroupid (u64), then pid tgid ppid ruid rgid euid egid suid sgid fsuid fsgid, exit_code.
    return int(struct.unpack_from("=i", buffer, 60)[0]) if mask & PIDFD_INFO_EXIT else None
