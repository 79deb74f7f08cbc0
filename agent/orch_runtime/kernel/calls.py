"""Raw system calls through ctypes.

`PyDLL` keeps the interpreter lock during the call: no thread switch, and no lost errno, around clone3. Numbers of
system calls at or above 424 are the same on every architecture; older ones are listed per architecture.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_ulong, c_void_p

from orch_runtime.errors import KernelError

SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_CLONE3 = 435
SYS_CLOSE_RANGE = 436
SYS_OPENAT2 = 437
SYS_MOUNT_SETATTR = 442
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}[os.uname().machine]

libc = ctypes.PyDLL(None, use_errno=True)


def raise_errno(call: str, path: str | bytes = "") -> None:
    """Raise KernelError for the errno of the ctypes call just made."""
    raise KernelError(call, ctypes.get_errno(), path.decode(errors="replace") if isinstance(path, bytes) else path)


def syscall(*argument_types: type[object]) -> ctypes._NamedFuncPointer:
    """Return a `syscall(2)` taking a number and arguments of the given ctypes (each call gives a new prototype)."""
    function = libc["syscall"]
    function.argtypes = [c_long, *argument_types]  # type: ignore[list-item]
    function.restype = c_long
    return function


def function(name: str, *argument_types: type[object], result: type[object] = c_int) -> ctypes._NamedFuncPointer:
    """Return the C library's function `name` with its prototype set."""
    found = libc[name]
    found.argtypes = list(argument_types)  # type: ignore[arg-type]
    found.restype = result
    return found


__all__ = ["c_char_p", "c_int", "c_long", "c_size_t", "c_uint", "c_ulong", "c_void_p", "function", "libc"]
