"""Messages between members as they stand on the wire (`raft.proto`), and back."""

from orch_proto import raft_pb2
from orch_raft.core.messages import Message, MessageKind
from orch_raft.log.records import Batch, BatchFormatError, Entry, decode_batch, encode_batch
from orch_raft.membership import Membership, SnapshotMeta


class WireFormatError(ValueError):
    """What a peer sent is no message, or one of a newer version."""


class Encoder:
    """Encodes messages. Entries that go to several members one after the other are encoded once."""

    def __init__(self) -> None:
        self._entries: object = None
        self._encoded = b""

    def encode(self, message: Message) -> raft_pb2.RaftMessage:
        """The form of a message on the wire."""
        wire = raft_pb2.RaftMessage(
            type=message.kind,  # type: ignore[arg-type]  # the numbers are the same
            to=message.to,
            term=message.term,
            log_term=message.log_term,
            index=message.index,
            commit=message.commit,
            reject=message.reject,
            hint_index=message.hint_index,
            hint_term=message.hint_term,
            context=message.context,
            leadership_transfer=message.transfer,
        )
        setattr(wire, "from", message.sender)  # a keyword
        if message.entries:
            if message.entries is not self._entries:
                self._entries = message.entries
                self._encoded = encode_batch(Batch(None, tuple(message.entries)))
            wire.entries = self._encoded
        if message.snapshot is not None:
            wire.snapshot.CopyFrom(encode_meta(message.snapshot))
        return wire


def decode(wire: raft_pb2.RaftMessage) -> Message:
    """The message that stands on the wire.

    Raises:
        WireFormatError: it is none.
    """
    entries: tuple[Entry, ...] = ()
    try:
        if wire.entries:
            entries = decode_batch(wire.entries).entries
        return Message(
            MessageKind(wire.type),
            getattr(wire, "from"),
            wire.to,
            wire.term,
            wire.index,
            wire.log_term,
            wire.commit,
            entries,
            wire.reject,
            wire.hint_index,
            wire.hint_term,
            wire.context,
            decode_meta(wire.snapshot) if wire.HasField("snapshot") else None,
            wire.leadership_transfer,
        )
    except (BatchFormatError, ValueError) as error:
        raise WireFormatError(str(error)) from error


def encode_meta(meta: SnapshotMeta) -> raft_pb2.RaftSnapshotMeta:
    """What a snapshot covers, on the wire."""
    return raft_pb2.RaftSnapshotMeta(
        index=meta.index,
        term=meta.term,
        membership=raft_pb2.RaftMembership.FromString(meta.membership.to_bytes()),
    )


def decode_meta(wire: raft_pb2.RaftSnapshotMeta) -> SnapshotMeta:
    """What a snapshot on the wire covers."""
    return SnapshotMeta(wire.index, wire.term, Membership.from_bytes(wire.membership.SerializeToString()))
