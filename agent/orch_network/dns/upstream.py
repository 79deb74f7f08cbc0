"""Asking the node's own resolvers for names that are not ours.

A socket and a random id per query (a fresh port each: an answer cannot be guessed), one server after the other, a
bounded number at a time. The sockets are those of the node's namespace.
"""

# pathlib is not loaded in this small process
# ruff: noqa: PTH116, PTH123

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from orch_network import limits
from orch_network.dns import message
from orch_network.dns.message import Query
from orch_network.errors import InvalidRequest
from orch_network.ipv4 import parse_address
from orch_network.loop import READ, WRITE, Loop, Timer

Reply = Callable[[bytes | None, str], None]
"""Called once with the response (under the client's id) or None, and the outcome for the counter."""
_REREAD_EVERY_S = 5.0
_DNS_PORT = 53


def parse_resolv_conf(text: str) -> tuple[str, ...]:
    """The first three IPv4 name servers of a resolv.conf(5)."""
    servers = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split(";", 1)[0].split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                parse_address(words[1], "nameserver")
            except InvalidRequest:
                continue  # an IPv6 server: this node's tasks have IPv4 only
            servers.append(words[1])
    return tuple(servers[: limits.DNS_MAX_SERVERS])


class Upstream:
    """The resolvers of the node; the file is read again when it changes."""

    def __init__(self, loop: Loop, resolv_conf: str, port: int = _DNS_PORT) -> None:
        self._loop = loop
        self._path = resolv_conf
        self._port = port
        self._stamp: tuple[int, int] | None = None
        self._servers: tuple[str, ...] = ()
        self._in_flight: dict[str, int] = {}
        self._total = 0
        self._look()

    def _look(self) -> None:
        try:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._servers = parse_resolv_conf(file.read(1 << 16))
                self._stamp = stamp
        except OSError:
            self._servers, self._stamp = (), None
        self._loop.after(_REREAD_EVERY_S, self._look)

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers in use."""
        return self._servers

    @property
    def in_flight(self) -> int:
        """How many queries wait at present."""
        return self._total

    def ask(self, task_id: str, query: Query, data: bytes, reply: Reply, *, by_tcp: bool) -> None:
        """Forward a query; ``reply`` is called later, or at once if there is nobody to ask or no room."""
        if not self._servers:
            reply(None, "no_upstream")
            return
        if self._total >= limits.DNS_MAX_IN_FLIGHT or self._in_flight.get(task_id, 0) >= (
            limits.DNS_MAX_IN_FLIGHT_PER_TASK
        ):
            reply(None, "overload")
            return
        self._total += 1
        self._in_flight[task_id] = self._in_flight.get(task_id, 0) + 1

        def finished(response: bytes | None, outcome: str) -> None:
            self._total -= 1
            self._in_flight[task_id] -= 1
            if not self._in_flight[task_id]:
                del self._in_flight[task_id]
            reply(response, outcome)

        _Exchange(self._loop, self._servers, self._port, query, data=data, reply=finished, by_tcp=by_tcp).start()


@dataclass(slots=True)
class _Incoming:
    """A response by TCP while it arrives."""

    outgoing: bytes
    received: bytearray


class _Exchange:
    """One query on its way through the servers."""

    def __init__(
        self, loop: Loop, servers: tuple[str, ...], port: int, query: Query, *, data: bytes, reply: Reply, by_tcp: bool
    ) -> None:
        self._loop = loop
        self._servers = list(servers)
        self._port = port
        self._query = query
        self._id = int.from_bytes(os.urandom(2), "big")
        self._data = message.with_id(data, self._id)
        self._reply = reply
        self._by_tcp = by_tcp
        self._fallback: bytes | None = None
        self._socket: socket.socket | None = None
        self._timer: Timer | None = None
        self._tcp = _Incoming(b"", bytearray())

    def start(self) -> None:
        """Ask the next server, or give up."""
        self._close()
        if not self._servers:
            if self._fallback is not None:
                self._reply(message.with_id(self._fallback, self._query.id), "forwarded_failure")
            else:
                self._reply(None, "timeout")
            return
        server = self._servers.pop(0)
        kind = socket.SOCK_STREAM if self._by_tcp else socket.SOCK_DGRAM
        self._timer = self._loop.after(limits.DNS_UPSTREAM_TIMEOUT_S, self.start)
        try:
            self._socket = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
            if self._by_tcp:
                self._tcp = _Incoming(len(self._data).to_bytes(2, "big") + self._data, bytearray())
                self._socket.connect_ex((server, self._port))
                self._loop.watch(self._socket.fileno(), self._on_tcp, WRITE)
            else:
                self._socket.connect((server, self._port))
                self._socket.send(self._data)
                self._loop.watch(self._socket.fileno(), self._on_udp)
        except OSError:
            self._loop.soon(self.start)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _on_udp(self, _events: int) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65_535)
        except BlockingIOError:
            return
        except OSError:
            # "Connection refused": nobody listens there.
            self.start()
            return
        self._consider(data)

    def _on_tcp(self, events: int) -> None:
        assert self._socket is not None
        try:
            if events & WRITE and self._tcp.outgoing:
                sent = self._socket.send(self._tcp.outgoing)
                self._tcp.outgoing = self._tcp.outgoing[sent:]
                if not self._tcp.outgoing:
                    self._loop.change(self._socket.fileno(), READ)
                return
            chunk = self._socket.recv(65_537)
        except BlockingIOError:
            return
        except OSError:
            self.start()
            return
        received = self._tcp.received
        received += chunk
        if len(received) >= 2 and len(received) >= 2 + int.from_bytes(received[:2], "big"):
            self._consider(bytes(received[2 : 2 + int.from_bytes(received[:2], "big")]))
        elif not chunk:
            self.start()

    def _consider(self, data: bytes) -> None:
        if not message.answers_query(data, self._id, self._query.question):
            return  # not for this query: go on waiting until the time is up
        if message.rcode_of(data) in (message.SERVFAIL, message.REFUSED, message.NOTIMP):
            self._fallback = data
            self.start()
            return
        self._close()
        self._reply(message.with_id(data, self._query.id), "forwarded")
