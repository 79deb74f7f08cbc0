"""A connection to the supervisor for one caller's command alone: what was started on it ends with it.

The agent's own link (`orch_agent.packets`) is made again when it breaks and its calls are repeated; a command on
somebody's terminal cannot be repeated, and must not outlive who asked for it.
"""

from __future__ import annotations

import array
import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from orch_agent.errors import LinkLost, LinkRefused
from orch_runtime.names import EVENT_EXEC_STARTED, MAX_MESSAGE_BYTES

CALL_WAIT_S = 10.0


class Conversation:
    """See the module. To be used as an asynchronous context manager.

    Args:
        path: the supervisor's socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._sequence = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.started = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            self._socket.connect(str(self._path))
        except OSError as error:
            self._socket.close()
            raise LinkLost(f"the runtime does not answer on this node: {error.strerror}; try again") from error
        self._reader = asyncio.get_running_loop().create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})
        self._socket.close()
        for answer in self._answers.values():
            answer.cancel()

    def send(
        self, operation: str, fields: Mapping[str, object], descriptors: Sequence[int] = ()
    ) -> tuple[int, asyncio.Future[dict[str, Any]]]:
        """Sends a request; returns its number and its answer to come, which is a LinkRefused or LinkLost if it failed.

        Raises:
            LinkLost: the supervisor is away.
        """
        self._sequence += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        data = json.dumps({"seq": self._sequence, "op": operation, **fields}, separators=(",", ":")).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            # A conversation has few requests under way: the socket's buffer takes them.
            self._socket.sendmsg([data], rights)
        except OSError as error:
            raise LinkLost(f"the runtime went away: {error.strerror}; try again") from error
        self._answers[self._sequence] = answer
        return self._sequence, answer

    async def call(self, operation: str, fields: Mapping[str, object]) -> dict[str, Any]:
        """Asks and waits for the answer.

        Raises:
            LinkLost, LinkRefused: there is none, or it is an error.
        """
        _, answer = self.send(operation, fields)
        try:
            async with asyncio.timeout(CALL_WAIT_S):
                return await answer
        except TimeoutError as error:
            raise LinkLost(f"the runtime did not answer {operation!r} in {CALL_WAIT_S:g} s") from error

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet = await loop.sock_recv(self._socket, MAX_MESSAGE_BYTES)
            except OSError:
                packet = b""
            if not packet:
                lost = LinkLost("the runtime was restarted, which ended the command; run it again")
                for answer in self._answers.values():
                    if not answer.done():
                        answer.set_exception(lost)
                return
            self._take(json.loads(packet))

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("event") == EVENT_EXEC_STARTED:
            self.started.set()
            return
        answer = self._answers.get(message.get("seq", 0))
        if answer is None or answer.done():
            return
        if "error" in message:
            error = message["error"]
            answer.set_exception(LinkRefused(str(error.get("kind", "error")), str(error.get("message", "no message"))))
        else:
            answer.set_result(message.get("ok") or {})
