"""Terminals and signals of what runs in the foreground."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import signal
import socket
import termios
import tty

from orch_runtime.errors import InvalidConfig, StartFailed

_FORWARDED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
    signal.SIGALRM,
)  # fmt: skip
_CHUNK_BYTES = 65536
_RECEIVE_TIMEOUT_S = 10.0


def connect_console(path: str) -> int:
    """Connect to the caller's `--console-socket`; returns the descriptor.

    Raises:
        InvalidConfig: nobody listens there.
    """
    folder_fd = -1
    try:
        folder_fd = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # By the folder's descriptor: the path may be longer than the 107 bytes of an address.
        connection.connect(f"/proc/self/fd/{folder_fd}/{os.path.basename(path)}")
    except OSError as error:
        raise InvalidConfig("--console-socket", f"{path}: {error.strerror}") from error
    finally:
        if folder_fd >= 0:
            os.close(folder_fd)
    return connection.detach()


def own_console() -> tuple[socket.socket, int]:
    """Return our end, and the program's, of a pair over which a terminal comes to us."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return ours, theirs.detach()


def receive_terminal(console: socket.socket) -> int:
    """Receive the terminal's descriptor.

    Raises:
        StartFailed: none comes.
    """
    console.settimeout(_RECEIVE_TIMEOUT_S)
    try:
        _, ancillary, _, _ = console.recvmsg(64, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise StartFailed(f"terminal: it did not come: {error}", 1) from error
    finally:
        console.close()
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return array.array("i", payload[:4])[0]
    raise StartFailed("terminal: it did not come", 1)


def _copy_size(master: int) -> None:
    with contextlib.suppress(OSError):
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def relay_terminal(master: int) -> None:
    """Copy between our standard streams and a terminal until that closes."""
    before = None
    if os.isatty(0):
        before = termios.tcgetattr(0)
        tty.setraw(0)
        _copy_size(master)
        signal.signal(signal.SIGWINCH, lambda *_: _copy_size(master))
    sources = [master, 0]
    try:
        while True:
            readable, _, _ = select.select(sources, [], [])
            if master in readable:
                try:
                    data = os.read(master, _CHUNK_BYTES)
                except OSError:
                    return
                if not data:
                    return
                _write_all(1, data)
            if 0 in readable:
                data = os.read(0, _CHUNK_BYTES)
                if data:
                    _write_all(master, data)
                else:
                    sources.remove(0)
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.close(master)


def wait_forwarding(pid: int) -> int:
    """Wait for a child, handing signals that we get on to it; returns its exit code, 128 + N for signal N."""

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    while True:
        done, status = os.waitpid(-1, 0)
        if done == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
