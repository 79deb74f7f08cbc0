"""What the engine asks of a transport, and what a transport tells the engine."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from orch_raft.core.messages import Message
from orch_raft.engine import Member
from orch_raft.membership import SnapshotMeta

#: Opens the newest snapshot, which stays on disk while the context lasts. May raise StorageError, OSError.
SnapshotOpener = Callable[[], AbstractContextManager[tuple[SnapshotMeta, BinaryIO]]]


class Receiver(Protocol):
    """What a transport tells. To be called on the event loop."""

    def messages_arrived(self, messages: Sequence[Message]) -> None:
        """Messages came in, from the member they name as their sender."""
        ...

    async def wait_for_room(self) -> None:
        """Return once more messages may be handed in; until then none is to be read from peers."""
        ...

    def unreachable(self, raft_id: int) -> None:
        """Messages to a member were dropped."""
        ...

    def snapshot_sent(self, raft_id: int, *, ok: bool) -> None:
        """A snapshot arrived whole, or could not be sent."""
        ...

    def member(self, raft_id: int) -> Member | None:
        """A present member of the cluster; None when it is unknown, or this member knows no cluster yet."""
        ...

    def was_removed(self, raft_id: int) -> bool:
        """Whether a member was removed, for good."""
        ...

    async def receive_snapshot(self, message: Message, pieces: AsyncIterator[bytes]) -> None:
        """Take a snapshot: `message` is of kind SNAPSHOT, `pieces` are its state.

        Raises:
            SnapshotRefused: not now; the sender will try again.
            Exception: whatever `pieces` raises; nothing is kept.
        """
        ...


class Transport(Protocol):
    """Sends messages to members. All methods are called on the event loop.

    Nothing in it waits, and everything in it is bounded: what cannot be sent is dropped and told as
    `Receiver.unreachable`.
    """

    def start(self, raft_id: int, receiver: Receiver) -> None:
        """Begin, on behalf of a member."""
        ...

    def set_members(self, members: Mapping[int, Member]) -> None:
        """Who belongs to the cluster now, this member included."""
        ...

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages, each to the member it names. None is of kind SNAPSHOT."""
        ...

    def send_snapshot(self, message: Message, open_snapshot: SnapshotOpener) -> None:
        """Send the newest snapshot to the member that the message names; tells the receiver once what became of it."""
        ...

    async def close(self) -> None:
        """Stop sending."""
        ...
