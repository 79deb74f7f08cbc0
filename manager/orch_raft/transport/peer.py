"""The messages to one other member: a bounded queue, and the stream that empties it.

A queue that is full, or a stream that breaks, loses messages; consensus sends anew what counts. So nothing is kept for
a member that does not answer.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import grpc
import grpc.aio

from orch_proto import defaults, raft_pb2
from orch_proto.raft_pb2_grpc import RaftStub
from orch_raft.core.messages import Message, MessageKind
from orch_raft.transport.wire import Encoder

_logger = logging.getLogger(__name__)
#: Data in one batch, below gRPC's bound on a message with room for one entry more.
_BATCH_BYTES = 1024 * 1024
_BACKOFF_FIRST_S = 0.05
_BACKOFF_LAST_S = 1.0
#: Time a batch may wait for the peer to take it.
_WRITE_TIMEOUT_S = 5.0
#: What a message costs besides its entries.
_MESSAGE_BYTES = 64
_ENTRY_BYTES = 32


class _StreamEnded(Exception):  # noqa: N818  # it says it all
    """The peer, or the connection, ended the stream."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code.name)
        self._code = code

    def code(self) -> grpc.StatusCode:
        """With which status."""
        return self._code


class Peer:
    """One other member, at one address.

    Args:
        raft_id: who it is.
        address: `host:port`.
        open_channel: makes a channel to an address.
        encoder: shared by all peers, so that entries are encoded once.
        own_address: told to the peer.
        unreachable: called when messages were dropped.
        removed: called when the peer says that this member was removed.
    """

    def __init__(
        self,
        raft_id: int,
        address: str,
        open_channel: Callable[[str], grpc.aio.Channel],
        *,
        encoder: Encoder,
        own_address: str,
        unreachable: Callable[[int], None],
        removed: Callable[[int], None],
    ) -> None:
        self.raft_id = raft_id
        self.address = address
        self._open_channel = open_channel
        self._encoder = encoder
        self._own_address = own_address
        self._unreachable = unreachable
        self._removed = removed
        self._queue: deque[Message] = deque()
        self._queue_bytes = 0
        self._wake = asyncio.Event()
        self._backoff_s = _BACKOFF_FIRST_S
        self._channel: grpc.aio.Channel | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"raft-peer-{raft_id:x}")

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to it, for calls of other kinds. Raises OrchError when there can be none."""
        if self._channel is None:
            self._channel = self._open_channel(self.address)
        return self._channel

    def send(self, message: Message) -> bool:
        """Queue a message; False when the queue is full."""
        queue = self._queue
        if queue and _replaces(message, queue[-1]):
            queue[-1] = message
            return True
        size_bytes = _size_bytes(message)
        full = len(queue) >= defaults.RAFT_QUEUE_MESSAGES or self._queue_bytes + size_bytes > defaults.RAFT_QUEUE_BYTES
        if full and queue:
            return False
        queue.append(message)
        self._queue_bytes += size_bytes
        self._wake.set()
        return True

    async def close(self) -> None:
        """Drop what waits and end the stream."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close(None)

    async def _run(self) -> None:
        """Keep a stream to the peer for as long as there is something to say; try again, ever more slowly."""
        while True:
            await self._wake.wait()
            try:
                await self._stream()
            except Exception as error:
                # Whatever it is (no certificate, nobody there, a defect), consensus goes on with the others.
                code = error.code() if isinstance(error, _StreamEnded | grpc.aio.AioRpcError) else None
                why = code.name if code is not None else str(error) or type(error).__name__
                _logger.info("stream to member %x at %s ended: %s", self.raft_id, self.address, why)
                if code is grpc.StatusCode.NOT_FOUND:
                    self._removed(self.raft_id)
            self._drop()
            await self._drop_channel()
            await asyncio.sleep(self._backoff_s * random.uniform(0.5, 1.0))  # noqa: S311  # spreads retries
            self._backoff_s = min(self._backoff_s * 2, _BACKOFF_LAST_S)
            self._wake.clear()
            if self._queue:
                self._wake.set()

    async def _stream(self) -> None:
        """Send what is queued until the stream breaks, which raises."""
        call: Any = cast("Any", RaftStub(self.channel)).Stream()
        call.add_done_callback(lambda _call: self._wake.set())
        first = True
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue and not call.done():
                    batch = self._take_batch()
                    if first:
                        batch.sender_address = self._own_address
                        first = False
                    async with asyncio.timeout(_WRITE_TIMEOUT_S):
                        await call.write(batch)
                    self._backoff_s = _BACKOFF_FIRST_S
                if call.done():
                    raise _StreamEnded(await call.code())
        except asyncio.InvalidStateError:  # it ended in the middle of a write
            raise _StreamEnded(await call.code()) from None
        finally:
            call.cancel()

    def _take_batch(self) -> raft_pb2.RaftMessageBatch:
        messages: list[raft_pb2.RaftMessage] = []
        size_bytes = 0
        queue, encode = self._queue, self._encoder.encode
        while queue:
            cost_bytes = _size_bytes(queue[0])
            if messages and size_bytes + cost_bytes > _BATCH_BYTES:
                break
            size_bytes += cost_bytes
            messages.append(encode(queue.popleft()))
        self._queue_bytes -= size_bytes
        return raft_pb2.RaftMessageBatch(messages=messages)

    def _drop(self) -> None:
        self._queue.clear()
        self._queue_bytes = 0
        self._unreachable(self.raft_id)

    async def _drop_channel(self) -> None:
        """A new channel knows the address anew, and our present certificate."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)


def _replaces(new: Message, old: Message) -> bool:
    """Whether a later answer says all that an earlier one does: what is stored is cumulative."""
    return (
        new.kind is MessageKind.APPEND_ANSWER
        and old.kind is MessageKind.APPEND_ANSWER
        and new.term == old.term
        and new.index >= old.index
        and not new.reject
        and not old.reject
    )


def _size_bytes(message: Message) -> int:
    if not message.entries:
        return _MESSAGE_BYTES
    return _MESSAGE_BYTES + sum(_ENTRY_BYTES + len(entry.data) for entry in message.entries)
