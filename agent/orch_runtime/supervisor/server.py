"""The runtime's socket: connections, requests, answers, events."""

from __future__ import annotations

import array
import json
import os
import socket
import sys

from orch_runtime import names
from orch_runtime.errors import ProtocolFailure, RuntimeFailure
from orch_runtime.kernel.buffers import enlarge_buffers
from orch_runtime.supervisor import loop as events
from orch_runtime.supervisor.engine import log_failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from orch_runtime.supervisor.loop import Loop

    Handler = Callable[["Connection", int, dict[str, object], bytes, list[int]], None]

MAX_CONNECTIONS = 256
MAX_WAITING = 8192


class Connection:
    """One client."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._socket = sock
        self._waiting: list[bytes] = []
        self.subscribed = False
        self.closed = False
        # What ends with the client: commands that it runs on its own streams.
        self.on_close: dict[int, Callable[[], None]] = {}
        sock.setblocking(False)
        enlarge_buffers(sock, names.MAX_MESSAGE_BYTES * 2)
        server.loop.watch(sock.fileno(), self._on_ready)

    def _on_ready(self, ready: int) -> None:
        if ready & events.WRITE:
            self._flush()
        if ready & ~events.WRITE and not self.closed:
            self._receive()

    def _receive(self) -> None:
        buffer = self._server.buffer
        try:
            size, ancillary, flags, _ = self._socket.recvmsg_into([buffer], 256, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % 4])
        if size == 0:
            self.close()
            return
        raw = bytes(memoryview(buffer)[:size])
        self._server.handle(self, raw, list(descriptors), truncated=bool(flags & socket.MSG_TRUNC))

    def send(self, message: dict[str, object]) -> None:
        """Send, or queue while the client does not read; one that lets the queue fill is disconnected."""
        if self.closed:
            return
        data = json.dumps(message, separators=(",", ":")).encode()
        if not self._waiting:
            try:
                self._socket.send(data)
            except BlockingIOError:
                self._server.loop.change(self._socket.fileno(), events.READ | events.WRITE)
            except OSError:
                self.close()
                return
            else:
                return
        self._waiting.append(data)
        if len(self._waiting) > MAX_WAITING:
            self.close()

    def _flush(self) -> None:
        while self._waiting:
            try:
                self._socket.send(self._waiting[0])
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            self._waiting.pop(0)
        self._server.loop.change(self._socket.fileno(), events.READ)

    def close(self) -> None:
        """Disconnect; answers still to come are dropped, as the client will ask again."""
        if not self.closed:
            self.closed = True
            self._server.connections.discard(self)
            self._server.loop.forget(self._socket.fileno())
            self._socket.close()
            waiting, self.on_close = self.on_close, {}
            for callback in waiting.values():
                callback()


class Server:
    """Accepts connections and hands requests to their handlers."""

    def __init__(self, loop: Loop, listener: socket.socket, handlers: dict[str, Handler]) -> None:
        self.loop = loop
        self.buffer = bytearray(names.MAX_MESSAGE_BYTES)
        self.connections: set[Connection] = set()
        self._listener = listener
        self._handlers = handlers
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._accept)

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        if len(self.connections) >= MAX_CONNECTIONS:
            sys.stderr.write(f"supervisor: refused a connection: there are {MAX_CONNECTIONS}\n")
            sock.close()
            return
        self.connections.add(Connection(self, sock))

    def handle(self, connection: Connection, raw: bytes, descriptors: list[int], *, truncated: bool) -> None:
        """Answer one request, now or later."""
        seq = -1
        try:
            message = _parse(raw, truncated=truncated)
            seq = message["seq"]
            given, descriptors = descriptors, []
            self._handlers.get(str(message.get("op")), _unknown)(connection, seq, message, raw, given)
        except Exception as error:
            self.fail(connection, seq, error)
        finally:
            for fd in descriptors:
                os.close(fd)

    def fail(self, connection: Connection, seq: int, error: Exception) -> None:
        """Answer with an error; one that is not ours is a defect and is logged."""
        if isinstance(error, RuntimeFailure):
            content = {**error.details(), "kind": error.kind, "message": str(error)}
        else:
            log_failure("request failed", error)
            content = {"kind": "internal", "message": f"{type(error).__name__}: {error} (see keeper.log)"}
        connection.send({"seq": seq, "error": content})

    def publish(self, event: dict[str, object]) -> None:
        """Send an event to every subscriber."""
        for connection in list(self.connections):
            if connection.subscribed:
                connection.send(event)


def _parse(raw: bytes, *, truncated: bool) -> dict[str, Any]:
    if truncated:
        raise ProtocolFailure(f"message larger than {names.MAX_MESSAGE_BYTES} bytes")
    try:
        message = json.loads(raw)
    except ValueError as error:
        raise ProtocolFailure(f"not JSON: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("seq"), int):
        raise ProtocolFailure('a request must be an object with a number "seq"')
    return message


def _unknown(_connection: Connection, _seq: int, message: dict[str, object], _raw: bytes, fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    raise ProtocolFailure(f"unknown operation {message.get('op')!r}")
