"""System calls that the standard library of Python 3.11 lacks."""

from __future__ import annotations

import ctypes
import os

from orch_network.errors import KernelError

CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# PyDLL keeps the interpreter lock: no thread switch and no lost errno around a call.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)


def _check(result: int, call: str) -> None:
    if result != 0:
        raise KernelError(call, ctypes.get_errno())


def unshare_network() -> None:
    """Move the calling thread into a new, empty network namespace."""
    _check(_libc.unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")


def enter_network(namespace_fd: int) -> None:
    """Move the calling thread into the network namespace that ``namespace_fd`` refers to."""
    _check(_libc.setns(namespace_fd, CLONE_NEWNET), f"setns(fd {namespace_fd}, CLONE_NEWNET)")


def bind_mount(source: str, target: str) -> None:
    """Bind-mount ``source`` onto the existing file ``target``."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None)
    _check(result, f"mount --bind {source} {target}")


def unmount(target: str) -> None:
    """Detach whatever is mounted at ``target``; never follows a symbolic link."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH | UMOUNT_NOFOLLOW), f"umount {target}")
