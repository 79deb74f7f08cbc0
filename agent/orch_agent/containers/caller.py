"""The caller of a relayed call, as those who serve it see it: frames in, outputs out."""

from __future__ import annotations

import asyncio

import grpc

from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import node_pb2 as calls

Stream = grpc.aio.StreamStreamCall[dispatcher.RelayUp, dispatcher.RelayDown]

LAST_WORD_WAIT_S = 60.0


class Caller:
    """One relay stream. Outputs may be said by several tasks; frames are for one reader."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._saying = asyncio.Lock()
        self.has_left = False

    async def say(self, output: calls.RelayOutput) -> None:
        """Tells the caller something; waits while it reads slowly; nothing once it has left."""
        async with self._saying:
            if not self.has_left:
                await self._stream.write(dispatcher.RelayUp(output=output))

    async def finish(self, listening: asyncio.Task[None]) -> None:
        """After the last word: waits until the caller has taken it, by whoever reads frames until now.

        A read that is cancelled, or a call that is, throws away what is still on its way.
        """
        await self._stream.done_writing()
        await asyncio.wait({listening}, timeout=LAST_WORD_WAIT_S)

    async def next_input(self) -> calls.RelayInput | None:
        """The next frame; None when the caller has gone away."""
        message = await self._stream.read()
        if not isinstance(message, dispatcher.RelayDown) or message.input.WhichOneof("input") == "cancel":
            return None
        return message.input
