"""The control socket: one request per packet, one answer each, in order."""

# pathlib is not loaded in this small process
# ruff: noqa: PTH108

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orch_network import limits, protocol
from orch_network.counters import Counters
from orch_network.errors import InvalidRequest, NetworkFailure
from orch_network.kernel import netns
from orch_network.kernel.buffers import enlarge_buffers
from orch_network.loop import Loop


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation answers; ``netns`` is the path of a namespace whose fd goes along."""

    value: Mapping[str, object]
    netns: str = ""


Operation = Callable[[dict[str, Any]], Answer]
"""Gets the request without ``seq`` and ``op``; must refuse keys that it does not know."""


def bind_control_socket(path: str) -> socket.socket:
    """A listening socket at ``path``, for root alone. An old file there is replaced: the caller holds the lock."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(mask)
    sock.listen(limits.MAX_CLIENTS)
    return sock


class ControlServer:
    """Serves the clients of the control socket from the loop."""

    def __init__(
        self, loop: Loop, listener: socket.socket, operations: Mapping[str, Operation], counters: Counters
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._operations = operations
        self._counters = counters
        self._clients: set[socket.socket] = set()
        # Lazily backed by pages, so a large limit costs nothing until a large message comes.
        self._buffer = mmap.mmap(-1, limits.MAX_MESSAGE_BYTES + 1)
        listener.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        loop.watch(listener.fileno(), self._on_connect)

    def close(self) -> None:
        """Close all connections; what was answered is delivered."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for client in list(self._clients):
            self._drop(client)

    def _on_connect(self, _events: int) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= limits.MAX_CLIENTS:
            client.close()
            self._counters.failed("too_many_clients")
            return
        client.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        enlarge_buffers(client, 2 * limits.MAX_MESSAGE_BYTES)
        self._clients.add(client)
        self._loop.watch(client.fileno(), lambda _events: self._on_packet(client))

    def _drop(self, client: socket.socket) -> None:
        self._clients.discard(client)
        self._loop.forget(client.fileno())
        client.close()

    def _on_packet(self, client: socket.socket) -> None:
        try:
            size = client.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if size == 0:
            self._drop(client)
            return
        seq: object = None
        fd = -1
        try:
            request = self._read(size)
            seq = request.pop("seq", None)
            answer = self._perform(request)
            if answer.netns:
                fd = netns.open_namespace(answer.netns)
            packet = protocol.encode({"seq": seq, "ok": answer.value})
        except NetworkFailure as failure:
            self._counters.failed(failure.kind)
            packet = protocol.encode({"seq": seq, "error": {"kind": failure.kind, "message": str(failure)[:4096]}})
        except Exception as failure:
            # A defect of ours: the client must not wait for ever, and the loop logs and counts it.
            message = f"{type(failure).__name__}: {failure}; the log of the network process has the place"
            self._send(client, protocol.encode({"seq": seq, "error": {"kind": "internal", "message": message}}), fd)
            raise
        self._send(client, packet, fd)

    def _read(self, size: int) -> dict[str, Any]:
        if size > limits.MAX_MESSAGE_BYTES:
            raise InvalidRequest(f"a packet exceeds {limits.MAX_MESSAGE_BYTES} bytes")
        return protocol.decode(self._buffer[:size])

    def _perform(self, message: dict[str, Any]) -> Answer:
        op = message.pop("op", None)
        operation = self._operations.get(op) if isinstance(op, str) else None
        if operation is None:
            raise InvalidRequest(f"unknown operation {str(op)[:80]!r}; known are {', '.join(sorted(self._operations))}")
        self._counters.requests[str(op)] = self._counters.requests.get(str(op), 0) + 1
        return operation(message)

    def _send(self, client: socket.socket, packet: bytes, fd: int) -> None:
        try:
            if fd >= 0:
                socket.send_fds(client, [packet], [fd])
            else:
                client.send(packet)
        except OSError:
            # The client is gone, or does not read its answers: it will connect and ask again.
            self._counters.failed("client_lost")
            self._drop(client)
        finally:
            if fd >= 0:
                os.close(fd)
