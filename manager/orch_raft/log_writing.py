"""What the core wants on the disk, and what may happen only once it is there.

One batch is written with one sync; meanwhile the next one gathers. The leader's followers write at the same time as it
does: its messages have left before.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from orch_raft.core.messages import Message
from orch_raft.core.node import RaftNode
from orch_raft.core.ready import Ready
from orch_raft.engine import SnapshotInstaller
from orch_raft.errors import EngineDefect, FatalError
from orch_raft.log.records import Entry, HardState
from orch_raft.log_worker import Worker
from orch_raft.membership import SnapshotMeta
from orch_raft.storage import Storage

#: Data up to which a follower's batch may be written on the event loop, see `Worker.submit`.
_BRIEF_BYTES = 16 * 1024


class WritingEvents(Protocol):
    """Whom the writing tells; all on the event loop."""

    @property
    def leads(self) -> bool:
        """Whether this member leads."""

    def send(self, messages: Sequence[Message]) -> None:
        """These may leave now."""

    def installing(self) -> None:
        """A received snapshot is about to be written: what waits to be applied is part of it."""

    def install(self, meta: SnapshotMeta, install: SnapshotInstaller | None) -> None:
        """A received snapshot is durable: put its state in place, when it holds one."""

    def installed(self) -> None:
        """The core goes on from a received snapshot."""

    def durable(self) -> None:
        """The core was told that something is durable."""

    def fail(self, error: FatalError) -> None:
        """The disk refused, or something is wrong in here."""


class LogWriting:
    """Between the core and the disk.

    Args:
        restore: reads a snapshot's state, in the thread.
        synced_index: the last entry that was found on the disk.
    """

    def __init__(
        self,
        core: RaftNode,
        storage: Storage,
        disk: Worker,
        events: WritingEvents,
        restore: Callable[[Any], SnapshotInstaller],
        *,
        synced_index: int,
    ) -> None:
        self._core = core
        self._storage = storage
        self._disk = disk
        self._events = events
        self._restore = restore
        #: The last entry that is on this member's disk. What is applied may be ahead of it, a snapshot never.
        self.synced_index = synced_index
        self._waiting: deque[Ready] = deque()
        self._writing: tuple[Ready, ...] = ()
        self._unsynced_hard_state: HardState | None = None
        self._idle = asyncio.Event()
        self._failed = False

    def add(self, ready: Ready) -> None:
        """Take what is to be written; what need not be, and follows nothing that must, is settled at once."""
        if ready.must_sync or self._writing or self._waiting:
            self._waiting.append(ready)
        else:
            self._settle_unsynced(ready)

    def write_next(self) -> None:
        """Write what has gathered, if nothing is being written."""
        if self._writing:
            return
        while self._waiting and not self._waiting[0].must_sync:
            self._settle_unsynced(self._waiting.popleft())
        if not self._waiting:
            self._idle.set()
            return
        if self._waiting[0].snapshot is not None:
            ready = self._waiting.popleft()
            self._writing = (ready,)
            self._events.installing()
            self._disk.submit(partial(self._write_snapshot, ready), self._snapshot_written)
            return
        readies: list[Ready] = []
        while self._waiting and self._waiting[0].snapshot is None:
            readies.append(self._waiting.popleft())
        hard_state = self._unsynced_hard_state
        self._unsynced_hard_state = None
        entries: Sequence[Entry] = readies[0].entries if len(readies) == 1 else []
        for ready in readies:
            hard_state = ready.hard_state or hard_state
            if len(readies) > 1:
                entries = [*entries, *ready.entries]
        self._writing = tuple(readies)
        self._append(entries, hard_state)

    async def wait_idle(self) -> None:
        """Return when nothing is being written, or never will be."""
        while (self._writing or self._waiting) and not self._failed:
            self._idle.clear()
            await self._idle.wait()

    async def write_last(self) -> None:
        """Before the end: what needed no sync by itself is not thrown away.

        Raises:
            DurabilityLost: the disk refused.
        """
        hard_state, self._unsynced_hard_state = self._unsynced_hard_state, None
        if hard_state is not None and not self._failed:
            await self._disk.run(partial(self._storage.log.append, (), hard_state))

    def stop(self) -> None:
        """The engine failed: whatever the disk says now counts no more."""
        self._failed = True
        self._idle.set()

    def _append(self, entries: Sequence[Entry], hard_state: HardState | None) -> None:
        append = partial(self._storage.log.append, entries, hard_state)
        if self._events.leads:
            # After what is on its way to the followers: their disks are waited for, this one seldom.
            asyncio.get_running_loop().call_soon(self._disk.submit, append, self._written)
        else:
            brief = sum(len(entry.data) for entry in entries) <= _BRIEF_BYTES
            self._disk.submit(append, self._written, brief=brief)

    def _settle_unsynced(self, ready: Ready) -> None:
        """Nothing is to be synced, and nothing earlier is outstanding."""
        self._unsynced_hard_state = ready.hard_state or self._unsynced_hard_state
        self._core.persisted(ready)
        self._events.send(ready.messages_after_sync)

    def _written(self, _result: object, error: BaseException | None) -> None:
        """A batch is on stable storage: what depended on it may leave."""
        if not self._succeeded(error):
            return
        readies, self._writing = self._writing, ()
        self._core.persisted(readies[-1])
        self.synced_index = readies[-1].last_index
        for ready in readies:
            self._events.send(ready.messages_after_sync)
        self._events.durable()

    def _write_snapshot(self, ready: Ready) -> SnapshotInstaller | None:
        """In the thread: make a received snapshot durable, and read it."""
        meta = ready.snapshot
        assert meta is not None
        self._storage.install_received(meta, ready.hard_state or self._unsynced_hard_state, ready.entries)
        read, stream = self._storage.snapshots.open_latest()
        assert (read.index, read.term) == (meta.index, meta.term)
        return self._restore(stream) if self._storage.snapshots.has_state(meta) else None

    def _snapshot_written(self, install: Any, error: BaseException | None) -> None:
        if not self._succeeded(error):
            return
        (ready,), self._writing = self._writing, ()
        assert ready.snapshot is not None
        self._unsynced_hard_state = None
        self._events.install(ready.snapshot, install)
        self.synced_index = ready.last_index
        self._core.persisted(ready)
        self._core.snapshot_persisted(ready.snapshot)
        self._events.send(ready.messages_after_sync)
        self._events.installed()
        self._events.durable()

    def _succeeded(self, error: BaseException | None) -> bool:
        if self._failed:
            return False
        if error is None:
            return True
        self._events.fail(error if isinstance(error, FatalError) else EngineDefect(error))
        return False
