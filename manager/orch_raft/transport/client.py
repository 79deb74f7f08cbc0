"""The sending half of the gRPC transport: a stream of messages to each member, and snapshots beside it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, BinaryIO, cast

import grpc
import grpc.aio

from orch_proto import defaults, raft_pb2
from orch_proto.raft_pb2_grpc import RaftStub
from orch_raft.core.messages import Message, MessageKind
from orch_raft.engine import Member
from orch_raft.transport.peer import Peer
from orch_raft.transport.seam import Receiver, SnapshotOpener
from orch_raft.transport.wire import Encoder, encode_meta
from orch_rpc.certificates import MANAGER_SERVER_NAME
from orch_rpc.identity import IdentitySource

_logger = logging.getLogger(__name__)
#: Makes a channel to `host:port`. The transport closes it. May raise OrchError.
ChannelFactory = Callable[[str], grpc.aio.Channel]
#: How long a member that has left is still sent to: it has to hear that it was removed.
_FAREWELL_S = 5.0
_CHUNK_TIMEOUT_S = defaults.RAFT_CHUNK_TIMEOUT_MS / 1000

#: Options that a channel between managers should have: a peer that froze or was cut off is noticed, and found again,
#: within seconds, and no other channel's state is shared.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", defaults.MESSAGE_BYTES),
    ("grpc.max_receive_message_length", defaults.MESSAGE_BYTES),
)


def mutual_channels(source: IdentitySource) -> ChannelFactory:
    """Makes mutually authenticated channels to managers, each with the identity of the moment.

    Raises (what is returned does):
        OrchError: there is no identity, or it has expired.
    """

    def open_channel(address: str) -> grpc.aio.Channel:
        identity = source.current()
        identity.check_valid()
        credentials = grpc.ssl_channel_credentials(identity.roots_pem, identity.key_pem, identity.certificate_pem)
        options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", MANAGER_SERVER_NAME)]
        return grpc.aio.secure_channel(address, credentials, options=options)

    return open_channel


class GrpcTransport:
    """A `Transport` over gRPC.

    Args:
        open_channel: makes a channel to an address.
        own_address: where this member is reached, `host:port`; told to peers that do not know it.
    """

    def __init__(self, open_channel: ChannelFactory, own_address: str) -> None:
        self._open_channel = open_channel
        self._own_address = own_address
        self._raft_id = 0
        self._receiver: Receiver | None = None
        self._encoder = Encoder()
        self._peers: dict[int, Peer] = {}
        self._members: dict[int, Member] = {}
        #: Of senders that the membership does not name: a joiner has none yet.
        self._heard_addresses: dict[int, str] = {}
        self._snapshots: dict[int, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._farewells: dict[int, asyncio.TimerHandle] = {}
        self._closed = False

    def start(self, raft_id: int, receiver: Receiver) -> None:
        """See `Transport.start`."""
        self._raft_id = raft_id
        self._receiver = receiver

    def set_members(self, members: Mapping[int, Member]) -> None:
        """See `Transport.set_members`."""
        loop = asyncio.get_running_loop()
        self._members = dict(members)
        for raft_id, peer in list(self._peers.items()):
            member = members.get(raft_id)
            if member is None and members and raft_id not in self._farewells:
                self._farewells[raft_id] = loop.call_later(_FAREWELL_S, self._forget, raft_id)
            elif member is not None and member.address and member.address != peer.address:
                self._forget(raft_id)

    def send(self, messages: Sequence[Message]) -> None:
        """See `Transport.send`."""
        for message in messages:
            peer = self._peers.get(message.to) or self._connect(message.to)
            if peer is None or not peer.send(message):
                self._tell_unreachable(message.to)

    def send_snapshot(self, message: Message, open_snapshot: SnapshotOpener) -> None:
        """See `Transport.send_snapshot`."""
        raft_id = message.to
        peer = self._peers.get(raft_id) or self._connect(raft_id)
        if peer is None or raft_id in self._snapshots:
            self._tell_snapshot(raft_id, ok=False)
            return
        task = asyncio.get_running_loop().create_task(self._send_snapshot(peer, message, open_snapshot))
        self._snapshots[raft_id] = task

    def heard_from(self, raft_id: int, address: str) -> None:
        """A member that the membership may not name said where it is reached."""
        if address and self._heard_addresses.get(raft_id) != address:
            self._heard_addresses[raft_id] = address
            peer = self._peers.get(raft_id)
            if peer is not None and raft_id not in self._members and peer.address != address:
                self._forget(raft_id)

    async def close(self) -> None:
        """See `Transport.close`."""
        self._closed = True
        for timer in self._farewells.values():
            timer.cancel()
        for task in self._snapshots.values():
            task.cancel()
        await asyncio.gather(*self._snapshots.values(), return_exceptions=True)
        peers, self._peers = self._peers, {}
        await asyncio.gather(*(peer.close() for peer in peers.values()), *self._closing)

    def _connect(self, raft_id: int) -> Peer | None:
        member = self._members.get(raft_id)
        address = (member.address if member else "") or self._heard_addresses.get(raft_id, "")
        if not address or self._closed:
            return None
        peer = self._peers[raft_id] = Peer(
            raft_id,
            address,
            self._open_channel,
            encoder=self._encoder,
            own_address=self._own_address,
            unreachable=self._tell_unreachable,
            removed=self._tell_removed,
        )
        return peer

    def _forget(self, raft_id: int) -> None:
        if (timer := self._farewells.pop(raft_id, None)) is not None:
            timer.cancel()
        if (peer := self._peers.pop(raft_id, None)) is not None:
            closing = asyncio.get_running_loop().create_task(peer.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _tell_unreachable(self, raft_id: int) -> None:
        if self._receiver is not None:
            self._receiver.unreachable(raft_id)

    def _tell_removed(self, peer_id: int) -> None:
        """A peer refused the stream because this member was removed."""
        if self._receiver is not None:
            self._receiver.messages_arrived([Message(MessageKind.REMOVED, peer_id, self._raft_id, 0)])

    def _tell_snapshot(self, raft_id: int, *, ok: bool) -> None:
        if self._receiver is not None:
            self._receiver.snapshot_sent(raft_id, ok=ok)

    async def _send_snapshot(self, peer: Peer, message: Message, open_snapshot: SnapshotOpener) -> None:
        ok = False
        try:
            async with contextlib.aclosing(_chunks(message, open_snapshot)) as chunks:
                # The stubs of grpc know asynchronous calls that write in pieces as little as those of the contract do.
                call: Any = cast("Any", RaftStub(peer.channel)).Snapshot()
                try:
                    async for chunk in chunks:
                        # The watchdog: a receiver that takes no more must not hold the file, and this, for ever.
                        async with asyncio.timeout(_CHUNK_TIMEOUT_S):
                            await call.write(chunk)
                    async with asyncio.timeout(_CHUNK_TIMEOUT_S):
                        await call.done_writing()
                        await call
                finally:
                    call.cancel()
            ok = True
        except asyncio.CancelledError:
            raise
        except Exception as error:
            why = error.code() if isinstance(error, grpc.aio.AioRpcError) else str(error) or type(error).__name__
            _logger.warning("snapshot to member %x at %s failed: %s", peer.raft_id, peer.address, why)
        finally:
            del self._snapshots[peer.raft_id]
        self._tell_snapshot(peer.raft_id, ok=ok)


async def _chunks(message: Message, open_snapshot: SnapshotOpener) -> AsyncGenerator[raft_pb2.RaftSnapshotChunk, None]:
    """The newest snapshot in pieces, read in threads."""
    opened = open_snapshot()
    meta, stream = await asyncio.to_thread(opened.__enter__)
    try:
        offset, first = 0, True
        while True:
            data = await asyncio.to_thread(_read, stream)
            last = len(data) < defaults.RAFT_CHUNK_BYTES
            chunk = raft_pb2.RaftSnapshotChunk(term=message.term, offset=offset, data=data, last=last)
            setattr(chunk, "from", message.sender)  # a keyword
            if first:
                chunk.meta.CopyFrom(encode_meta(meta))
                first = False
            yield chunk
            offset += len(data)
            if last:
                return
    finally:
        await asyncio.to_thread(opened.__exit__, None, None, None)


def _read(stream: BinaryIO) -> bytes:
    """One full piece, shorter at the end alone."""
    pieces, missing = [], defaults.RAFT_CHUNK_BYTES
    while missing and (piece := stream.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
