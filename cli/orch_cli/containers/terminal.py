"""The user's own terminal while a remote program has it: raw mode, size, signals, standard input."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

READ_BYTES = 65536
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Every key goes to the remote program as it is; the terminal is set right afterwards, whatever happens."""
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the user's terminal; zeros when there is none."""
    for descriptor in (0, 1, 2):
        try:
            size = os.get_terminal_size(descriptor)
        except OSError:
            continue
        return size.lines, size.columns
    return 0, 0


@contextmanager
def on_resize(call: Callable[[], None]) -> Iterator[None]:
    """Calls back when the terminal has another size."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, call)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


@contextmanager
def passing_signals(call: Callable[[int], None]) -> Iterator[None]:
    """Hands the signals that people send to a program to ``call`` in place of ending this one."""
    loop = asyncio.get_running_loop()
    for number in _PASSED_ON:
        loop.add_signal_handler(number, call, int(number))
    try:
        yield
    finally:
        for number in _PASSED_ON:
            loop.remove_signal_handler(number)


async def standard_input() -> AsyncIterator[bytes]:
    """What comes on standard input, until its end; leaves the terminal's mode alone."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()

    def on_ready() -> None:
        # Told once for each read: standard input is shared with the shell, so it blocks when there is nothing.
        loop.remove_reader(0)
        ready.set()

    try:
        loop.add_reader(0, on_ready)
    except (PermissionError, OSError):
        # A regular file: always ready, and unknown to epoll.
        while data := await asyncio.to_thread(os.read, 0, READ_BYTES):
            yield data
        return
    try:
        while True:
            await ready.wait()
            ready.clear()
            data = os.read(0, READ_BYTES)
            if not data:
                return
            loop.add_reader(0, on_ready)
            yield data
    finally:
        loop.remove_reader(0)


def write_output(stdout: bytes, stderr: bytes) -> None:
    """Passes a program's output on at once."""
    for data, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        if data:
            stream.buffer.write(data)
            stream.buffer.flush()
