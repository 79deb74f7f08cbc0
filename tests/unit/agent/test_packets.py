"""The agent's links to the local processes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from orch_agent.errors import LinkLost, LinkRefused
from orch_agent.packets import PacketLink

Answer = Callable[[dict[str, object]], dict[str, object] | None]


class Server:
    """A process at the other end; ``answer`` returns what it says, or None to hang up."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.answer = answer
        self.connections = 0

    async def run(self) -> None:
        """Serves one connection after the other."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as listener:
            self.path.unlink(missing_ok=True)
            listener.bind(str(self.path))
            listener.listen()
            while True:
                connection, _ = await loop.sock_accept(listener)
                self.connections += 1
                with connection:
                    await self._serve(connection)

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while packet := await loop.sock_recv(connection, 1 << 20):
            request = json.loads(packet)
            said = self.answer(request)
            if said is None:
                return
            await loop.sock_sendall(connection, json.dumps({"seq": request["seq"], **said}).encode())


async def with_link(server: Server, link: PacketLink, scenario: Callable[[], object]) -> None:
    tasks = [asyncio.create_task(server.run()), asyncio.create_task(link.run())]
    try:
        async with asyncio.timeout(10):
            await scenario()  # type: ignore[misc]
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def test_answers_and_refusals_reach_their_asker(tmp_path: Path) -> None:
    """Each call gets its own answer; a refusal carries the process's kind and sentence."""

    def answer(request: dict[str, object]) -> dict[str, object]:
        if request["op"] == "bad":
            return {"error": {"kind": "not_found", "message": "no such thing"}}
        return {"ok": {"echo": request["value"]}}

    path = tmp_path / "s"
    link = PacketLink("test", path)

    async def scenario() -> None:
        answers = await asyncio.gather(*(link.call("echo", {"value": n}) for n in range(50)))
        assert [item["echo"] for item in answers] == list(range(50))
        with pytest.raises(LinkRefused, match="no such thing") as refused:
            await link.call("bad")
        assert refused.value.kind == "not_found"

    asyncio.run(with_link(Server(path, answer), link, scenario))


def test_a_lost_connection_fails_what_is_in_flight_and_is_made_again(tmp_path: Path) -> None:
    """The call that was under way says so, and the next one goes over a new connection after on_connected."""
    hung_up = []

    def answer(request: dict[str, object]) -> dict[str, object] | None:
        if request["op"] == "die" and not hung_up:
            hung_up.append(True)
            return None
        return {"ok": {}}

    path = tmp_path / "s"
    greeted = []

    async def greet() -> None:
        await link.call_now("hello")
        greeted.append(True)

    link = PacketLink("test", path, on_connected=greet)
    server = Server(path, answer)

    async def scenario() -> None:
        with pytest.raises(LinkLost):
            await link.call("die")
        await link.call("again")
        assert server.connections == 2
        assert len(greeted) == 2

    asyncio.run(with_link(server, link, scenario))


def test_nobody_there_is_an_error_in_time(tmp_path: Path) -> None:
    """A call to a process that does not come up ends with LinkLost when its time is over."""
    link = PacketLink("test", tmp_path / "absent")

    async def scenario() -> None:
        running = asyncio.create_task(link.run())
        with pytest.raises(LinkLost, match="did not answer"):
            await link.call("hello", timeout_s=0.05)
        running.cancel()

    asyncio.run(scenario())
