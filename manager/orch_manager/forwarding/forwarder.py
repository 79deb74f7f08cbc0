"""Carries a call to the leader, as bytes, and its answer back.

What is sent is not looked at: the leader validates and authorises, for the original caller whom the metadata names.
Deadline and cancellation travel along. A call is made again only when it is certain that it did nothing; a write whose
connection broke is told to its caller as what it is: of unknown outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from orch_manager.faults import NotLeading
from orch_manager.forwarding.leader import Leader
from orch_manager.forwarding.methods import Method
from orch_proto import defaults
from orch_rpc import logs
from orch_rpc.addresses import parse_address
from orch_rpc.callers import caller_of
from orch_rpc.errors import OutcomeUnknown, Unavailable
from orch_rpc.tls import ManagerChannels

_log = logs.get("forwarding")
_Context = Any
#: Answers a call on this manager: request and answer as bytes.
Local = Callable[[bytes, _Context], Awaitable[bytes]]
#: In the trailing metadata of a refusal: the manager that was asked does not lead, and has done nothing.
NOT_LEADING: Final = "orch-not-leading"
_FIRST_PAUSE_S: Final = 0.01
_LAST_PAUSE_S: Final = 0.2
#: How long a leader that leads no longer has for an answer that is under way.
_LAST_WORD_S: Final = 1.0


class _NothingDone(Exception):  # noqa: N818 - named for what is certain
    """The call reached no leader: it may be made again."""


class Forwarder:
    """See the module.

    Args:
        leader: knows who leads.
        channels: to the other managers.
        on_call: told the path of each method that is carried.
        wait_s: seconds to wait for a leader while there is none.
    """

    def __init__(
        self,
        leader: Leader,
        channels: ManagerChannels,
        *,
        on_call: Callable[[str], None] = lambda _path: None,
        wait_s: float = defaults.LEADER_WAIT_MS / 1000,
    ) -> None:
        self._leader = leader
        self._channels = channels
        self._on_call = on_call
        self._wait_s = wait_s

    # ---- one request, one answer ---------------------------------------------------------------------

    async def unary(self, method: Method, request: bytes, context: _Context, *, local: Local) -> bytes:
        """Has the leader answer, wherever it is now; waits a moment for one.

        Args:
            method: which.
            request: serialised.
            context: of the caller's call.
            local: answers here; used when this manager leads.

        Raises:
            Unavailable: there is no leader; nothing was done.
            OutcomeUnknown: the connection to the leader broke under a write.
        """
        until_s = asyncio.get_running_loop().time() + _bounded(self._wait_s, context.time_remaining())
        pause_s = _FIRST_PAUSE_S
        last_failure = ""
        while True:
            found = await self._leader.wait(until_s)
            if found is None:
                raise self._leader.nobody_leads(_what(method), last_failure)
            try:
                if found.here:
                    return await local(request, context)
                return await self._ask(method, found.address, request, context)
            except (NotLeading, _NothingDone) as error:
                # It has died, has not begun to act yet, or leads no longer and we have not heard of it.
                _log.debug("no leader there", method=method.path, address=found.address, reason=error)
                last_failure = " ".join(str(error).split())
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LAST_PAUSE_S)

    async def _ask(self, method: Method, address: str, request: bytes, context: _Context) -> bytes:
        self._on_call(method.path)
        call = self._channels.get(parse_address(address)).unary_unary(method.path, None, None)(
            request, timeout=context.time_remaining(), metadata=caller_of(context).to_metadata()
        )
        answer: asyncio.Future[bytes] = asyncio.ensure_future(call)
        moved = asyncio.create_task(self._leader.moved_from(address), name="leader-moved")
        try:
            await asyncio.wait((answer, moved), return_when=asyncio.FIRST_COMPLETED)
            # A leader that was cut off answers nobody, and no connection breaks.
            await asyncio.wait((answer,), timeout=_LAST_WORD_S)
            if not answer.done():
                self._channels.drop(parse_address(address))
                self._broke(method, address, "another manager leads by now")
            return answer.result()
        except grpc.aio.AioRpcError as error:
            await self._failed(method, address, error, context)
        finally:
            moved.cancel()
            answer.cancel()

    # ---- streams -------------------------------------------------------------------------------------

    async def stream(self, method: Method, requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
        """Joins the caller's stream with one to the leader.

        Raises:
            Unavailable: there is no leader, or it moved as the stream began; nothing was done.
            OutcomeUnknown: the connection to the leader broke under a write.
        """
        until_s = asyncio.get_running_loop().time() + _bounded(self._wait_s, context.time_remaining())
        found = await self._leader.wait(until_s)
        if found is None:
            raise self._leader.nobody_leads(_what(method))
        if found.here:
            raise Unavailable(_what(method), "this manager has become the leader this moment", "repeat it")
        self._on_call(method.path)
        call = self._channels.get(parse_address(found.address)).stream_stream(method.path, None, None)(
            requests, timeout=context.time_remaining(), metadata=caller_of(context).to_metadata()
        )
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            try:
                await self._failed(method, found.address, error, context)
            except _NothingDone as nothing:
                raise Unavailable(_what(method), "the leader is changing; nothing was done", "repeat it") from nothing
        finally:
            call.cancel()

    # ---- both ----------------------------------------------------------------------------------------

    async def _failed(self, method: Method, address: str, error: grpc.aio.AioRpcError, context: _Context) -> NoReturn:
        """Tells the caller what became of the call.

        Raises:
            _NothingDone: nothing was done.
            OutcomeUnknown: something may have been.
            AbortError: the leader's own answer.
        """
        details = error.details() or ""
        trailing: Any = error.trailing_metadata() or ()
        if any(key == NOT_LEADING for key, _ in trailing):
            raise _NothingDone(details) from error
        if error.code() is not grpc.StatusCode.UNAVAILABLE or "\n" in details:
            # The leader's own words: three parts, a line each.
            await context.abort(error.code(), details)
        self._channels.drop(parse_address(address))
        if _never_connected(details):
            raise _NothingDone(details) from error
        self._broke(method, address, "the connection to it broke")

    @staticmethod
    def _broke(method: Method, address: str, why: str) -> NoReturn:
        """The leader did not answer, and may have done what it was asked.

        Raises:
            _NothingDone: there was nothing to do but to answer.
            OutcomeUnknown: a write may have been done.
        """
        if method.repeatable:
            raise _NothingDone(why)
        raise OutcomeUnknown(
            _what(method),
            f"the leader ({address}) did not answer: {why}",
            "it may have been done: look at the state before repeating it",
        )


def _bounded(wait_s: float, remaining_s: float | None) -> float:
    return wait_s if remaining_s is None else min(wait_s, max(0.0, remaining_s * 0.9))


def _never_connected(details: str) -> bool:
    """The words of gRPC's core for a call that found no connection (client_channel and pick_first policies)."""
    return details.startswith(("failed to connect to all addresses", "connections to all backends failing"))


def _what(method: Method) -> str:
    return f"cannot have the leader answer {method.path.rpartition('/')[2]}"
