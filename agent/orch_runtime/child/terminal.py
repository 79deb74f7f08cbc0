"""A terminal for a program: one of the container's own, whose other end goes to whoever asked."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios

from orch_runtime.child.failure import SetupFailed

_TIOCGPTPEER = 0x5441  # include/uapi/asm-generic/ioctls.h
_TIOCSPTLCK = 0x40045431
_PTMX = (5, 2)  # Documentation/admin-guide/devices.txt


def open_terminal(rows: int, columns: int) -> tuple[int, int]:
    """Open a new terminal of the container's devpts; returns (our end, the program's end).

    To be called inside the container's mount namespace. The program's end is reached from ours by descriptor: a path
    below /dev/pts could lead anywhere.

    Raises:
        SetupFailed: the container has no devpts, or no terminal is left.
    """
    try:
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW)
        device = os.fstat(master).st_rdev
        if (os.major(device), os.minor(device)) != _PTMX:
            raise SetupFailed("terminal: /dev/pts/ptmx of the container is not the kernel's; mount a devpts there")
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        if rows and columns:
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    except OSError as error:
        raise SetupFailed(f"terminal: {error.strerror}; the container needs a devpts at /dev/pts") from error
    return master, slave


def hand_over(console_fd: int, master: int) -> None:
    """Send our end over a unix socket, as the OCI command line's `--console-socket` does, and close both.

    Raises:
        SetupFailed: nobody takes it.
    """
    console = socket.socket(fileno=console_fd)
    try:
        rights = array.array("i", [master])
        console.sendmsg([b"/dev/pts/ptmx"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError as error:
        raise SetupFailed(f"terminal: nobody took it: {error.strerror}") from error
    finally:
        console.close()
        os.close(master)


def take_control(slave: int, uid: int) -> None:
    """Make a terminal the controlling one of this session, and the program's user its owner."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    os.fchown(slave, uid, -1)
