"""A network of engines in one process: messages are handed over on the event loop, links can be cut."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from orch_raft.core.messages import Message
from orch_raft.engine import Member
from orch_raft.transport.seam import Receiver, SnapshotOpener

PIECE_BYTES = 1000


class MemoryNetwork:
    """Who is there, and which links are cut."""

    def __init__(self) -> None:
        self.receivers: dict[int, Receiver] = {}
        self.cut: set[int] = set()
        self.snapshots_sent = 0
        self.fail_snapshots = 0

    def link(self, sender: int, to: int) -> Receiver | None:
        """The other end, if it can be reached."""
        return None if sender in self.cut or to in self.cut else self.receivers.get(to)


class MemoryTransport:
    """A `Transport` over a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._raft_id = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, raft_id: int, receiver: Receiver) -> None:
        """See `Transport.start`."""
        self._raft_id = raft_id
        self._receiver = receiver
        self._network.receivers[raft_id] = receiver

    def set_members(self, members: Mapping[int, Member]) -> None:
        """See `Transport.set_members`."""

    def send(self, messages: Sequence[Message]) -> None:
        """See `Transport.send`."""
        for message in messages:
            asyncio.get_running_loop().call_soon(self._deliver, message)

    def send_snapshot(self, message: Message, open_snapshot: SnapshotOpener) -> None:
        """See `Transport.send_snapshot`."""
        task = asyncio.get_running_loop().create_task(self._send_snapshot(message, open_snapshot))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """See `Transport.close`."""
        self._network.receivers.pop(self._raft_id, None)
        await asyncio.gather(*self._tasks)

    def _deliver(self, message: Message) -> None:
        other = self._network.link(self._raft_id, message.to)
        if other is None:
            self._receiver.unreachable(message.to)
        else:
            other.messages_arrived([message])

    async def _send_snapshot(self, message: Message, open_snapshot: SnapshotOpener) -> None:
        other = self._network.link(self._raft_id, message.to)
        ok = False
        if other is not None:
            with open_snapshot() as (meta, stream):

                async def pieces() -> AsyncIterator[bytes]:
                    if self._network.fail_snapshots:
                        self._network.fail_snapshots -= 1
                        raise ConnectionError("the stream broke")
                    while piece := stream.read(PIECE_BYTES):
                        await asyncio.sleep(0)
                        yield piece

                arrived = Message(message.kind, message.sender, message.to, message.term, snapshot=meta)
                try:
                    await other.receive_snapshot(arrived, pieces())
                    ok = True
                    self._network.snapshots_sent += 1
                except Exception as error:
                    print(f"snapshot refused: {error!r}")
        self._receiver.snapshot_sent(message.to, ok=ok)
