"""Waiting for descriptors (pipes, terminals, sockets) on the event loop."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket

READ_BYTES = 65536


async def read_some(descriptor: int, over: asyncio.Event) -> bytes:
    """What is there to read, waiting for it; empty at the end, or when there is nothing and ``over`` is set.

    A terminal whose program is gone says EIO where a pipe has its end.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            if over.is_set():
                return b""
        except OSError as error:
            if error.errno == errno.EIO:
                return b""
            raise
        ready = asyncio.Event()
        loop.add_reader(descriptor, ready.set)
        try:
            await _either(ready, over)
        finally:
            loop.remove_reader(descriptor)


async def write_all(descriptor: int, data: bytes, over: asyncio.Event) -> bool:
    """Writes everything, waiting for room; False when nobody reads any more, or ``over`` is set."""
    loop = asyncio.get_running_loop()
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
            continue
        except BlockingIOError:
            if over.is_set():
                return False
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                return False
            raise
        ready = asyncio.Event()
        loop.add_writer(descriptor, ready.set)
        try:
            await _either(ready, over)
        finally:
            loop.remove_writer(descriptor)
    return True


async def receive_descriptor(connection: socket.socket) -> int:
    """The descriptor that is sent over a socket; -1 when the other side goes away without sending one."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
    _, ancillary, _, _ = connection.recvmsg(64, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    received = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
    return received[0] if received else -1


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    waiting = {asyncio.ensure_future(first.wait()), asyncio.ensure_future(second.wait())}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
