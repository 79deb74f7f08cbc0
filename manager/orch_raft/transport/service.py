"""The receiving half of the gRPC transport: `orch.v1.Raft`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from orch_proto import defaults, raft_pb2
from orch_proto.raft_pb2_grpc import RaftServicer
from orch_raft.core.messages import Message, MessageKind
from orch_raft.errors import SnapshotRefused
from orch_raft.transport.client import GrpcTransport
from orch_raft.transport.seam import Receiver
from orch_raft.transport.wire import WireFormatError, decode, decode_meta
from orch_rpc.callers import CallerKind, certificate_caller
from orch_rpc.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable

_CHUNK_TIMEOUT_S = defaults.RAFT_CHUNK_TIMEOUT_MS / 1000


class MembershipCalls(Protocol):
    """Who answers the calls about joining and leaving: the manager, which knows nodes and roles."""

    async def join(self, request: raft_pb2.RaftJoinRequest, context: Any) -> raft_pb2.RaftJoinResponse:
        """Let a node become a member."""
        ...

    async def leave(self, request: raft_pb2.RaftLeaveRequest, context: Any) -> raft_pb2.RaftLeaveResponse:
        """Let a member leave."""
        ...

    async def resolve_address(
        self, request: raft_pb2.RaftResolveAddressRequest, context: Any
    ) -> raft_pb2.RaftResolveAddressResponse:
        """Say where a member is reached."""
        ...


def peer_node_id(context: Any) -> str:
    """The node id in the certificate of a call's peer: who is connected, whoever else the call may name.

    Raises:
        PermissionDenied: it is not a manager's.
    """
    certificates = context.auth_context().get("x509_pem_cert", ())
    caller = certificate_caller(certificates[0]) if certificates else None
    if caller is None or caller.kind is not CallerKind.MANAGER:
        raise PermissionDenied("will not take messages of consensus", "the peer shows no manager's certificate")
    return caller.id


class RaftService(RaftServicer):
    """Serves `orch.v1.Raft`. Whoever calls must be a manager; the server's credentials and access table see to that.

    Args:
        receiver: the engine.
        transport: learns from the first message of a stream where its sender is reached.
        calls: answers join, leave and the rest.
        caller_node_id: the node id in the certificate of a call's peer.
    """

    def __init__(
        self,
        receiver: Receiver,
        transport: GrpcTransport,
        *,
        calls: MembershipCalls,
        caller_node_id: Callable[[Any], str] = peer_node_id,
    ) -> None:
        self._receiver = receiver
        self._transport = transport
        self._caller_node_id = caller_node_id
        self._calls = calls

    async def Stream(  # noqa: N802  # the name is the contract's
        self, request_iterator: AsyncIterator[raft_pb2.RaftMessageBatch], context: Any
    ) -> AsyncIterator[raft_pb2.RaftStreamAck]:
        """Messages of one peer, until it or this member ends."""
        node_id = self._caller_node_id(context)
        checked: set[int] = set()
        receiver = self._receiver
        async for batch in request_iterator:
            try:
                messages = [decode(wire) for wire in batch.messages]
            except WireFormatError as error:
                raise InvalidArgument("cannot read a message of consensus", str(error), "run one version") from error
            for message in messages:
                if message.sender not in checked:
                    self._check_sender(message.sender, node_id)
                    checked.add(message.sender)
                    if batch.sender_address:
                        self._transport.heard_from(message.sender, batch.sender_address)
            if any(receiver.was_removed(sender) for sender in checked):
                raise NotFound("cannot take messages of this member", "it was removed from the cluster")
            receiver.messages_arrived(messages)
            await receiver.wait_for_room()
        acks: tuple[raft_pb2.RaftStreamAck, ...] = ()  # nothing is answered
        for ack in acks:
            yield ack

    async def Snapshot(  # noqa: N802  # the name is the contract's
        self, request_iterator: AsyncIterator[raft_pb2.RaftSnapshotChunk], context: Any
    ) -> raft_pb2.RaftSnapshotAck:
        """A snapshot of the leader."""
        chunks = request_iterator.__aiter__()
        async with asyncio.timeout(_CHUNK_TIMEOUT_S):
            first = await anext(chunks, None)
        if first is None or not first.HasField("meta"):
            raise InvalidArgument("cannot take a snapshot", "its first piece does not say what it covers")
        sender: int = getattr(first, "from")
        self._check_sender(sender, self._caller_node_id(context))
        meta = decode_meta(first.meta)
        message = Message(MessageKind.SNAPSHOT, sender, 0, first.term, snapshot=meta)
        try:
            await self._receiver.receive_snapshot(message, _pieces(first, chunks))
        except SnapshotRefused as error:
            raise Unavailable("cannot take a snapshot", str(error), "send it again later") from error
        return raft_pb2.RaftSnapshotAck(index=meta.index)

    async def Join(  # noqa: N802  # the name is the contract's
        self, request: raft_pb2.RaftJoinRequest, context: Any
    ) -> raft_pb2.RaftJoinResponse:
        """See `MembershipCalls`."""
        return await self._calls.join(request, context)

    async def Leave(  # noqa: N802  # the name is the contract's
        self, request: raft_pb2.RaftLeaveRequest, context: Any
    ) -> raft_pb2.RaftLeaveResponse:
        """See `MembershipCalls`."""
        return await self._calls.leave(request, context)

    async def ResolveAddress(  # noqa: N802  # the name is the contract's
        self, request: raft_pb2.RaftResolveAddressRequest, context: Any
    ) -> raft_pb2.RaftResolveAddressResponse:
        """See `MembershipCalls`."""
        return await self._calls.resolve_address(request, context)

    def _check_sender(self, sender: int, node_id: str) -> None:
        """Refuse a raft id that is another node's: a manager may speak for itself alone."""
        if self._receiver.was_removed(sender):
            raise NotFound("cannot take messages of this member", "it was removed from the cluster")
        member = self._receiver.member(sender)
        if member is not None and member.node_id != node_id:
            raise PermissionDenied(
                f"will not take messages of member {sender:x}", f"the certificate is node {node_id}'s, not its own"
            )


async def _pieces(
    first: raft_pb2.RaftSnapshotChunk, chunks: AsyncIterator[raft_pb2.RaftSnapshotChunk]
) -> AsyncIterator[bytes]:
    """The data of a snapshot; raises when a piece is missing, too large, or does not come in time."""
    chunk: raft_pb2.RaftSnapshotChunk | None = first
    offset = 0
    while True:
        if chunk is None:
            raise FailedPrecondition("cannot take a snapshot", "it ended before its last piece", "send it again")
        if chunk.offset != offset or len(chunk.data) > defaults.RAFT_CHUNK_BYTES:
            raise InvalidArgument("cannot take a snapshot", f"its piece at byte {offset} is missing or too large")
        yield chunk.data
        offset += len(chunk.data)
        if chunk.last:
            return
        async with asyncio.timeout(_CHUNK_TIMEOUT_S):
            chunk = await anext(chunks, None)
