"""Brings together those who want a stream to a node and the streams that agents open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import grpc.aio

from orch_manager.dispatcher.hub import Hub
from orch_manager.streaming import END_OF_STREAM
from orch_proto import defaults
from orch_proto.dispatcher_pb2 import ManagerMessage, RelayDirective, RelayDown
from orch_proto.node_pb2 import CallError, RelayCall, RelayInput, RelayOutput
from orch_rpc import logs
from orch_rpc.authorization import current_call
from orch_rpc.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable

_log = logs.get("relay")
#: Frames that wait on each side; a slow reader slows the writer down.
_QUEUE_FRAMES: Final = 16
#: Relays open at once.
_MAX_RELAYS: Final = 500
_OPEN_TIMEOUT_S: Final = defaults.NODE_CALL_TIMEOUT_MS / 1000
_Context = Any
_Frame = TypeVar("_Frame")


class Relay:
    """One stream to a node, as its caller sees it."""

    def __init__(self, relay_id: str, node_id: str, call: RelayCall) -> None:
        self.relay_id = relay_id
        self.node_id = node_id
        self.call = call
        self.opened = asyncio.Event()
        self.done = asyncio.Event()
        self._down: asyncio.Queue[RelayDown] = asyncio.Queue(maxsize=_QUEUE_FRAMES)
        self._up: asyncio.Queue[RelayOutput | None] = asyncio.Queue(maxsize=_QUEUE_FRAMES)

    async def send(self, message: RelayInput) -> None:
        """Passes a frame to the node; dropped when the stream is over.

        Raises:
            InvalidArgument: the frame is larger than allowed.
        """
        if len(message.data) > defaults.RELAY_CHUNK_BYTES:
            limit = defaults.RELAY_CHUNK_BYTES
            raise InvalidArgument(
                "cannot pass data to the node", f"a frame has at most {limit} bytes", "send smaller ones"
            )
        frame = RelayDown(input=message)
        if not self.done.is_set():
            await _put_unless(self._down, frame, self.done)

    async def outputs(self) -> AsyncIterator[RelayOutput]:
        """What the node says, until its result or error, which comes as well."""
        while True:
            output = await self._up.get()
            if output is None:
                return
            yield output
            if output.WhichOneof("output") in ("result", "error"):
                return

    # ---- the node's side -----------------------------------------------------------------------------

    async def next_down(self) -> RelayDown:
        """The next frame for the node."""
        return await self._down.get()

    async def take_up(self, output: RelayOutput) -> None:
        """A frame from the node."""
        await _put_unless(self._up, output, self.done)

    async def ended(self, error: CallError | None) -> None:
        """The node's stream is over; with an error unless it said its last word."""
        await _put_unless(self._up, RelayOutput(error=error) if error is not None else None, self.done)


async def _put_unless(queue: asyncio.Queue[_Frame], item: _Frame, over: asyncio.Event) -> None:
    """Puts an item into a queue, unless the reader goes away first."""
    if not queue.full():
        queue.put_nowait(item)
        return
    putting = asyncio.ensure_future(queue.put(item))
    leaving = asyncio.ensure_future(over.wait())
    try:
        await asyncio.wait((putting, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        putting.cancel()
        leaving.cancel()


class RelayBroker:
    """Opens relays, and serves `Relay.Open`.

    Args:
        hub: has the sessions over which agents are told.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._relays: dict[str, Relay] = {}

    @asynccontextmanager
    async def open(self, node_id: str, call: RelayCall) -> AsyncIterator[Relay]:
        """A stream to a node for one call; cancelled at the node when the block is left.

        Raises:
            Unavailable: the node is not attached, or does not open the stream in time.
            ResourceExhausted: too many are open.
        """
        session = self._hub.sessions.get(node_id)
        if session is None:
            todo = "check that orchd runs there: orch node ls"
            raise Unavailable(f"cannot reach node {node_id}", "its agent is not attached", todo)
        if len(self._relays) >= _MAX_RELAYS:
            raise ResourceExhausted(f"cannot reach node {node_id}", f"{_MAX_RELAYS} streams are open", "close some")
        relay = Relay(self._hub.ids.new(), node_id, call)
        self._relays[relay.relay_id] = relay
        try:
            session.send(ManagerMessage(relay=RelayDirective(relay_id=relay.relay_id)))
            try:
                async with asyncio.timeout(_OPEN_TIMEOUT_S):
                    await relay.opened.wait()
            except TimeoutError as error:
                why = f"its agent did not open a stream in {_OPEN_TIMEOUT_S:g} s"
                raise Unavailable(f"cannot reach node {node_id}", why, "check the node, then repeat") from error
            yield relay
        finally:
            relay.done.set()
            self._relays.pop(relay.relay_id, None)

    async def serve(self, request_iterator: Any, context: _Context) -> None:
        """The stream that an agent opened; see dispatcher.proto."""
        del request_iterator  # read through the context
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                first = await context.read()
        except TimeoutError as error:
            raise InvalidArgument("cannot open a relay", "nothing was said in time") from error
        if first is END_OF_STREAM or first.WhichOneof("message") != "hello":
            raise InvalidArgument("cannot open a relay", "the first message must be `hello`")
        current_call().require_node(first.hello.node_id)
        relay = self._relays.get(first.hello.relay_id)
        if relay is None or relay.node_id != first.hello.node_id or relay.opened.is_set():
            raise NotFound(
                "cannot open a relay", f"nobody waits for {first.hello.relay_id}", "the caller has gone away"
            )
        relay.opened.set()
        await context.write(RelayDown(call=relay.call))
        pumps = [
            asyncio.create_task(self._pump_up(relay, context), name="relay-up"),
            asyncio.create_task(self._pump_down(relay, context), name="relay-down"),
            asyncio.create_task(relay.done.wait(), name="relay-done"),
        ]
        try:
            await asyncio.wait((pumps[0], pumps[2]), return_when=asyncio.FIRST_COMPLETED)
            if relay.done.is_set() and not pumps[0].done():
                await context.write(RelayDown(input=RelayInput(cancel=True)))
        except grpc.aio.UsageError:
            _log.debug("stream is gone", node=relay.node_id)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            if not relay.done.is_set():
                await relay.ended(CallError(code="UNAVAILABLE", message=f"the stream to node {relay.node_id} broke"))

    @staticmethod
    async def _pump_up(relay: Relay, context: _Context) -> None:
        while True:
            message = await context.read()
            if message is END_OF_STREAM:
                return
            if message.WhichOneof("message") == "output":
                await relay.take_up(message.output)

    @staticmethod
    async def _pump_down(relay: Relay, context: _Context) -> None:
        while True:
            await context.write(await relay.next_down())
