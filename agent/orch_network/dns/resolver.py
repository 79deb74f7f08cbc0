"""The resolver at 127.0.0.11 of every task: the socket that a query comes by says whose it is."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orch_network import limits
from orch_network.counters import Counters
from orch_network.dns import message, zone
from orch_network.dns.message import CLASS_ANY, CLASS_IN, Query, Records
from orch_network.dns.upstream import Upstream
from orch_network.loop import Loop, Timer
from orch_network.tasknet import ResolverSockets

_UDP_BURST = 32
"""Queries of one task in a row, before others have their turn."""
_QUERY_BYTES = 65_535
_TCP_BUFFERED_BYTES = 8 * 1024
"""Queries that a client may send ahead on one connection."""


@dataclass(slots=True)
class View:
    """What a task sees: its networks' zones in order, and whether it may ask the world."""

    task_id: str
    zones: Sequence[zone.Zone]
    may_forward: bool


@dataclass(slots=True, eq=False)
class _Served:
    view: View
    sockets: ResolverSockets
    connections: set[_TcpConnection] = field(default_factory=set)


class Resolver:
    """Answers the queries of all tasks of the node."""

    def __init__(self, loop: Loop, upstream: Upstream, counters: Counters) -> None:
        self._loop = loop
        self._upstream = upstream
        self._counters = counters
        self._served: dict[str, _Served] = {}
        self._turn = 0
        self._buffer = bytearray(_QUERY_BYTES)
        self.tcp_connections = 0

    def serve(self, view: View, sockets: ResolverSockets) -> None:
        """Answer a task; the sockets are ours from here on."""
        served = _Served(view, sockets)
        self._served[view.task_id] = served
        self._loop.watch(sockets.udp.fileno(), lambda _events: self._on_udp(served))
        self._loop.watch(sockets.tcp.fileno(), lambda _events: self._on_accept(served))

    def sockets_of(self, task_id: str) -> ResolverSockets | None:
        """The sockets of a task that is served."""
        served = self._served.get(task_id)
        return served.sockets if served is not None else None

    def stop(self, task_id: str) -> None:
        """Stop answering a task and close its sockets, which releases its namespace."""
        served = self._served.pop(task_id, None)
        if served is None:
            return
        for connection in list(served.connections):
            connection.close()
        self._loop.forget(served.sockets.udp.fileno())
        self._loop.forget(served.sockets.tcp.fileno())
        served.sockets.close()

    # ---- UDP -------------------------------------------------------------------------------------------------------
    def _on_udp(self, served: _Served) -> None:
        udp = served.sockets.udp
        for _ in range(_UDP_BURST):
            try:
                size, client = udp.recvfrom_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                # An earlier answer could not be delivered (the client is gone): the error is reported here once.
                self._counters.dns("send_failed")
                continue
            data = bytes(memoryview(self._buffer)[:size])

            def send(response: bytes, client: tuple[str, int] = client) -> None:
                try:
                    udp.sendto(response, client)
                except OSError:
                    self._counters.dns("send_failed")

            self.answer(served.view, data, send, by_tcp=False)

    # ---- TCP -------------------------------------------------------------------------------------------------------
    def _on_accept(self, served: _Served) -> None:
        try:
            client, _ = served.sockets.tcp.accept()
        except OSError:
            return
        full = len(served.connections) >= limits.DNS_MAX_TCP_PER_TASK or self.tcp_connections >= limits.DNS_MAX_TCP
        if full:
            self._counters.dns("overload")
            client.close()
            return
        client.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        _TcpConnection(self, self._loop, served, client)

    # ---- both ------------------------------------------------------------------------------------------------------
    def answer(self, view: View, data: bytes, send: Callable[[bytes], None], *, by_tcp: bool) -> None:
        """Answer one query; ``send`` is called at most once, now or later."""
        try:
            query = message.parse_query(data)
        except message.MalformedMessage:
            self._counters.dns("malformed")
            return
        limit = _QUERY_BYTES if by_tcp else None
        local = self._answer_locally(view, query, limit)
        if local is not None:
            response, outcome = local
            self._counters.dns(outcome)
            send(response)
            return

        def reply(response: bytes | None, outcome: str) -> None:
            self._counters.dns(outcome)
            if response is None:
                missing = outcome == "no_upstream" and "." not in query.name
                rcode = message.NXDOMAIN if missing else message.SERVFAIL
                response = message.build_answer(query, rcode, limit_bytes=limit)
            send(response)

        if view.may_forward:
            self._upstream.ask(view.task_id, query, data, reply, by_tcp=by_tcp)
        else:
            self._counters.dns("not_forwarded")
            send(message.build_answer(query, message.NXDOMAIN, limit_bytes=limit))

    def _answer_locally(  # noqa: PLR0911 -- one return per kind of answer reads best
        self, view: View, query: Query, limit: int | None
    ) -> tuple[bytes, str] | None:
        """The answer and its outcome, or None if the question is not about our names."""
        if query.edns_version:
            return message.build_answer(query, message.BADVERS, limit_bytes=limit), "refused"
        if query.opcode != 0:
            return message.build_answer(query, message.NOTIMP, limit_bytes=limit), "refused"
        if query.klass not in (CLASS_IN, CLASS_ANY):
            return message.build_answer(query, message.REFUSED, limit_bytes=limit), "refused"
        if query.kind == message.TYPE_PTR:
            address = message.reverse_address(query.name)
            names = zone.reverse(view.zones, address) if address is not None else ()
            if not names:
                return None
            records = Records(message.TYPE_PTR, [message.encode_name(name) for name in names], limits.DNS_TTL_S)
            return message.build_answer(query, message.NOERROR, records, limit_bytes=limit), "local"
        addresses = zone.lookup(view.zones, query.name)
        if addresses is None:
            return None
        if query.kind not in (message.TYPE_A, message.TYPE_ANY):
            # AAAA and all else of a name that is ours: it exists, there is no such data; at once and for certain.
            return message.build_answer(query, message.NOERROR, limit_bytes=limit), "local_empty"
        self._turn += 1
        records = Records(message.TYPE_A, zone.rotated(addresses, self._turn), limits.DNS_TTL_S)
        return message.build_answer(query, message.NOERROR, records, limit_bytes=limit), "local"


class _TcpConnection:
    """One client by TCP; answers go out in the order in which they become ready (RFC 7766, 6.2.1.1)."""

    def __init__(self, resolver: Resolver, loop: Loop, served: _Served, client: socket.socket) -> None:
        self._resolver = resolver
        self._loop = loop
        self._served = served
        self._socket = client
        self._received = bytearray()
        self._closed = False
        served.connections.add(self)
        resolver.tcp_connections += 1
        loop.watch(client.fileno(), self._on_ready)
        self._heard_at = time.monotonic()
        self._timer: Timer = loop.after(limits.DNS_TCP_IDLE_S, self._close_if_idle)

    def close(self) -> None:
        """End the connection."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._served.connections.discard(self)
        self._resolver.tcp_connections -= 1
        self._loop.forget(self._socket.fileno())
        self._socket.close()

    def _close_if_idle(self) -> None:
        left_s = self._heard_at + limits.DNS_TCP_IDLE_S - time.monotonic()
        if left_s > 0:
            self._timer = self._loop.after(left_s, self._close_if_idle)
        else:
            self.close()

    def _on_ready(self, _events: int) -> None:
        try:
            chunk = self._socket.recv(_TCP_BUFFERED_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not chunk:
            self.close()
            return
        self._heard_at = time.monotonic()
        self._received += chunk
        while len(self._received) >= 2 and not self._closed:
            length = int.from_bytes(self._received[:2], "big")
            if length > _TCP_BUFFERED_BYTES:
                self.close()
                return
            if len(self._received) < 2 + length:
                return
            data = bytes(self._received[2 : 2 + length])
            del self._received[: 2 + length]
            self._resolver.answer(self._served.view, data, self._send, by_tcp=True)

    def _send(self, response: bytes) -> None:
        if self._closed:
            return
        framed = len(response).to_bytes(2, "big") + response
        with contextlib.suppress(OSError):
            if self._socket.send(framed) == len(framed):
                return
        # The client does not read: it is not our part to buffer for it.
        self.close()
