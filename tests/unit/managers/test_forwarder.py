"""What becomes of a call that is carried to a leader which goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from orch_manager.clock import SystemClock
from orch_manager.faults import NotLeading
from orch_manager.forwarding.forwarder import NOT_LEADING, Forwarder
from orch_manager.forwarding.leader import Leader
from orch_manager.forwarding.methods import METHODS
from orch_raft.engine import EngineStatus, Member, Role
from orch_rpc.addresses import Address
from orch_rpc.errors import NotFound, OrchError, OutcomeUnknown, Unavailable, from_status

WRITE = METHODS["/orch.v1.Control/Create"]
READ = METHODS["/orch.v1.Control/PlanStack"]
Behaviour = Callable[[bytes, Any], Awaitable[bytes]]


class Engine:
    """Says who leads: one of two other managers, this one, or nobody."""

    def __init__(self, *addresses: str) -> None:
        self.members = (Member(1, "self", "127.0.0.1:1"), *(Member(n, "", a) for n, a in enumerate(addresses, 2)))
        self.leader_id: int | None = None

    def knows(self, address: str) -> None:
        """An entry of the log tells of one more."""
        self.members = (*self.members, Member(len(self.members) + 1, "", address))

    def status(self) -> EngineStatus:
        role = Role.LEADER if self.leader_id == 1 else Role.FOLLOWER
        return EngineStatus(1, role, 5, self.leader_id, 0, 0, 0, 0, 0, self.members)


class Channels:
    """Plain channels in the place of the authenticated ones."""

    def __init__(self) -> None:
        self._channels: dict[Address, grpc.aio.Channel] = {}

    def get(self, address: Address) -> grpc.aio.Channel:
        return self._channels.setdefault(address, grpc.aio.insecure_channel(str(address)))

    def drop(self, address: Address) -> None:
        self._channels.pop(address, None)


class Context:
    """A caller over the host's socket."""

    code: grpc.StatusCode
    details: str

    def time_remaining(self) -> float | None:
        return None

    def peer(self) -> str:
        return "unix:"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise from_status(code, details)


async def serve(behaviour: Behaviour) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    handlers = {"Create": behaviour, "PlanStack": behaviour}
    made = {name: grpc.unary_unary_rpc_method_handler(each) for name, each in handlers.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("orch.v1.Control", made),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


class Scene:
    """A forwarder of a manager that does not lead, and two others."""

    def __init__(self, *addresses: str, wait_s: float = 5.0) -> None:
        self.engine = Engine(*addresses)
        self.leader = Leader(self.engine.status, clock=SystemClock())
        self._forwarder = Forwarder(self.leader, Channels(), wait_s=wait_s)  # type: ignore[arg-type]

    def leads(self, raft_id: int | None) -> None:
        self.engine.leader_id = raft_id
        self.leader.changed(acts_here=raft_id == 1)

    async def ask(self, method: Any = WRITE) -> bytes:
        async def local(_request: bytes, _context: Any) -> bytes:
            return b"here"

        return await self._forwarder.unary(method, b"request", Context(), local=local)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await story()

    asyncio.run(bounded())


def test_the_leaders_answer_and_its_errors_come_back_as_they_are() -> None:
    """What the leader says is what the caller hears, in its three parts."""

    async def story() -> None:
        async def behave(request: bytes, context: Any) -> bytes:
            if request == b"request":
                return b"answer"
            raise AssertionError

        async def refuse(_request: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.NOT_FOUND, "cannot find it\nthere is none\nlook again")
            return b""

        first, good = await serve(behave)
        second, bad = await serve(refuse)
        scene = Scene(good, bad)
        scene.leads(2)
        assert await scene.ask() == b"answer"
        scene.leads(3)
        with pytest.raises(NotFound) as caught:
            await scene.ask()
        assert (caught.value.what, caught.value.why, caught.value.todo) == (
            "cannot find it",
            "there is none",
            "look again",
        )
        await first.stop(None)
        await second.stop(None)

    run(story)


def test_a_call_that_did_nothing_follows_the_leader() -> None:
    """A manager that says it does not lead has done nothing: the call goes to the next leader, wherever that is."""

    async def story() -> None:
        scene: Scene

        async def moved(_request: bytes, context: Any) -> bytes:
            scene.leads(1)
            context.set_trailing_metadata(((NOT_LEADING, "1"),))
            await context.abort(grpc.StatusCode.UNAVAILABLE, NotLeading("no").to_details())
            return b""

        server, address = await serve(moved)
        scene = Scene(address, "127.0.0.1:1")
        scene.leads(2)
        assert await scene.ask() == b"here"
        # Nobody listens there: that, too, is a call that did nothing.
        scene.leads(3)
        asking = asyncio.create_task(scene.ask())
        await asyncio.sleep(0.05)
        scene.leads(1)
        assert await asking == b"here"
        await server.stop(None)

    run(story)


@pytest.mark.parametrize("how", ["breaks", "is cut off"])
def test_a_write_whose_leader_goes_away_is_of_unknown_outcome(how: str) -> None:
    """A write on a leader that dies, or is cut off, ends as "outcome unknown"; a read asks the next leader."""

    async def story() -> None:
        begun, never = asyncio.Event(), asyncio.Event()

        async def hang(_request: bytes, _context: Any) -> bytes:
            begun.set()
            await never.wait()
            return b""

        async def answer(_request: bytes, _context: Any) -> bytes:
            return b"answer"

        new, new_address = await serve(answer)
        for method in (WRITE, READ):
            old, old_address = await serve(hang)
            begun.clear()
            scene = Scene(old_address, new_address)
            scene.leads(2)
            asking = asyncio.create_task(scene.ask(method))
            await begun.wait()
            if how == "breaks":
                await old.stop(None)
            scene.leads(3)
            if method is WRITE:
                with pytest.raises(OutcomeUnknown, match="may have been done"):
                    await asking
            else:
                assert await asking == b"answer"
            await old.stop(None)
        never.set()
        await new.stop(None)

    run(story)


def test_without_a_leader_the_caller_is_told_after_a_moment() -> None:
    """While nobody leads a call waits, then says for how long there has been no leader and what to do."""

    async def story() -> None:
        scene = Scene("127.0.0.1:1", wait_s=0.1)
        scene.leads(None)
        with pytest.raises(Unavailable, match=r"no leader for \d+ s .*nothing was changed; .*orch --stale") as caught:
            await scene.ask()
        assert isinstance(caught.value, OrchError)

    run(story)


def test_a_leader_whose_address_comes_late_is_found() -> None:
    """A leader that joined anew is known by its id first: the call waits for its address, and no longer."""

    async def story() -> None:
        async def behave(_request: bytes, _context: Any) -> bytes:
            return b"answer"

        server, address = await serve(behave)
        scene = Scene(wait_s=20.0)
        scene.leads(2)
        asked = asyncio.create_task(scene.ask())
        await asyncio.sleep(0.01)
        assert not asked.done()
        scene.engine.knows(address)
        assert await asked == b"answer"
        await server.stop(None)

    run(story)
