"""The agent's end of a local packet socket: the same client for the runtime supervisor and the network process.

Both processes listen on a unix ``SOCK_SEQPACKET`` socket and speak JSON, one message per packet: ``{"seq": n, "op":
...}`` is answered by ``{"seq": n, "ok": {...}}`` or ``{"seq": n, "error": {"kind", "message"}}``; ``{"event": ...}``
comes unasked. Both may be killed and restarted at any time, so a lost connection fails what is in flight with
:class:`LinkLost` and is made again; whoever needs to look anew after that registers ``on_connected``.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from orch_agent.errors import LinkLost, LinkRefused
from orch_rpc import logs

MAX_PACKET_BYTES = 8 * 1024 * 1024
MAX_IN_FLIGHT = 4096
RECONNECT_FIRST_S = 0.01
RECONNECT_LAST_S = 1.0

JsonObject = dict[str, Any]
log = logs.get("packets")


class PacketLink:
    """A connection that heals itself to one local process.

    Args:
        name: what the process is called in logs and errors ("runtime", "network").
        path: its socket.
        on_event: called for each unasked message, on the event loop; must not block.
        on_connected: awaited after each (re)connection, before calls of others are let through on it.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        on_event: Callable[[JsonObject], None] | None = None,
        on_connected: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self._on_event = on_event
        self._on_connected = on_connected
        self._socket: socket.socket | None = None
        self._sequence = 0
        self._in_flight: dict[int, asyncio.Future[JsonObject]] = {}
        self._unsent: deque[bytes] = deque()
        self._lost = asyncio.Event()
        self._ready = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether calls go through now."""
        return self._ready.is_set()

    async def run(self) -> None:
        """Keeps the connection up until cancelled."""
        delay_s = RECONNECT_FIRST_S
        try:
            while True:
                try:
                    self._connect()
                except OSError:
                    await asyncio.sleep(delay_s)
                    delay_s = min(delay_s * 2, RECONNECT_LAST_S)
                    continue
                delay_s = RECONNECT_FIRST_S
                try:
                    if self._on_connected is not None:
                        await self._on_connected()
                    self._ready.set()
                    await self._lost.wait()
                except LinkLost:
                    await asyncio.sleep(RECONNECT_FIRST_S)
                    continue
                except LinkRefused as error:
                    log.warning("link.greeting_refused", process=self.name, why=str(error))
                    await asyncio.sleep(RECONNECT_LAST_S)
                    continue
                finally:
                    self._disconnect("the connection was lost")
                log.warning("link.lost", process=self.name)
        finally:
            self._disconnect("the agent is stopping")

    async def call(
        self,
        operation: str,
        fields: Mapping[str, object] | None = None,
        *,
        timeout_s: float = 30.0,
        repeat: bool = False,
    ) -> JsonObject:
        """Asks the process to do ``operation`` and returns its answer.

        Args:
            operation: the name of the operation.
            fields: the request's fields.
            timeout_s: longest wait, for the connection and the answer together.
            repeat: ask again when the connection breaks, as long as there is time.

        Raises:
            LinkLost: the connection broke or did not come up in time; whether the operation was done is unknown, and
                every operation may be repeated.
            LinkRefused: the process answered with an error.
        """
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                while True:
                    if not self._ready.is_set():
                        await self._ready.wait()
                    try:
                        return await self.call_now(operation, fields)
                    except LinkLost:
                        if not repeat:
                            raise
                    # Until the loss has been noticed everywhere, the link still looks ready.
                    await asyncio.sleep(RECONNECT_FIRST_S)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise LinkLost(f"the {self.name} process did not answer {operation!r} in {timeout_s:g} s") from error

    async def call_now(self, operation: str, fields: Mapping[str, object] | None = None) -> JsonObject:
        """Like :meth:`call`, on the connection as it is and without a limit of time: for use by ``on_connected``."""
        if self._socket is None:
            raise LinkLost(f"the {self.name} process is not connected")
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            raise LinkLost(f"{MAX_IN_FLIGHT} requests to the {self.name} process wait for an answer already")
        self._sequence += 1
        sequence = self._sequence
        future: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self._in_flight[sequence] = future
        try:
            request = {"seq": sequence, "op": operation, **(fields or {})}
            self._send(json.dumps(request, separators=(",", ":")).encode())
            return await future
        finally:
            self._in_flight.pop(sequence, None)

    # ---- connection --------------------------------------------------------------------------------

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            for option in (socket.SO_SNDBUF, getattr(socket, "SO_SNDBUFFORCE", 32)):
                try:
                    connection.setsockopt(socket.SOL_SOCKET, option, MAX_PACKET_BYTES)
                except PermissionError:
                    continue  # SO_SNDBUFFORCE wants CAP_NET_ADMIN; without it large packets are refused by name
            connection.connect(str(self.path))
        except OSError:
            connection.close()
            raise
        self._socket = connection
        self._lost.clear()
        asyncio.get_running_loop().add_reader(connection.fileno(), self._readable)

    def _disconnect(self, why: str) -> None:
        self._ready.clear()
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket.fileno())
            loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._unsent.clear()
        for future in self._in_flight.values():
            if not future.done():
                future.set_exception(LinkLost(f"{why} while the {self.name} process was asked"))

    def _send(self, packet: bytes) -> None:
        assert self._socket is not None
        self._unsent.append(packet)
        if len(self._unsent) == 1 and not self._write():
            asyncio.get_running_loop().add_writer(self._socket.fileno(), self._writable)

    def _write(self) -> bool:
        """Sends what waits; False when the other side takes no more for now."""
        assert self._socket is not None
        while self._unsent:
            try:
                self._socket.send(self._unsent[0])
            except BlockingIOError:
                return False
            except OSError as error:
                self._lost.set()
                raise LinkLost(f"the {self.name} process could not be asked: {error}") from error
            self._unsent.popleft()
        return True

    def _writable(self) -> None:
        if self._socket is None:
            return
        try:
            done = self._write()
        except LinkLost:
            done = True  # whoever waits for an answer is told when the connection is put away
        if done:
            asyncio.get_running_loop().remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        while self._socket is not None:
            try:
                packet = self._socket.recv(MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._lost.set()
                asyncio.get_running_loop().remove_reader(self._socket.fileno())
                for future in self._in_flight.values():
                    if not future.done():
                        future.set_exception(LinkLost(f"the {self.name} process went away"))
                return
            self._dispatch(json.loads(packet))

    def _dispatch(self, message: JsonObject) -> None:
        if "event" in message:
            if self._on_event is not None:
                self._on_event(message)
            return
        future = self._in_flight.get(message.get("seq", 0))
        if future is None or future.done():
            return  # the asker has given up
        if "error" in message:
            error = message["error"]
            future.set_exception(LinkRefused(str(error.get("kind", "error")), str(error.get("message", "no message"))))
        else:
            future.set_result(message.get("ok") or {})
