"""seccomp(2): putting a process under a filter of system calls."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from orch_runtime.errors import KernelError
from orch_runtime.kernel import calls

_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277}[os.uname().machine]
_SET_MODE_FILTER = 1
_INSTRUCTION_BYTES = 8  # struct sock_filter

_seccomp = calls.syscall(calls.c_uint, calls.c_uint, calls.c_void_p)


def load_filter(program: bytes, flags: int) -> None:
    """Put this process under a filter; needs no_new_privs or CAP_SYS_ADMIN.

    Raises:
        KernelError: the kernel refuses.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(
        struct.pack("=H6xQ", len(program) // _INSTRUCTION_BYTES, ctypes.addressof(instructions)), 16
    )
    if _seccomp(_SYS_SECCOMP, _SET_MODE_FILTER, flags, ctypes.addressof(header)) < 0:
        number = ctypes.get_errno()
        needs = ""
        if number == errno.EACCES:
            needs = "needs no_new_privs or CAP_SYS_ADMIN"
        elif number in (errno.EINVAL, errno.ENOSYS):
            needs = "this kernel has no filters of system calls, or does not know one that is asked for"
        raise KernelError("seccomp", number, needs)
