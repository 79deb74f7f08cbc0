"""Snapshots of this member's own state, and those that the leader sends."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial

from orch_raft.core.messages import Message
from orch_raft.engine import Observer, SnapshotWriter, StateMachine
from orch_raft.errors import FatalError, SnapshotRefused
from orch_raft.limits import EngineOptions
from orch_raft.log.snapshots import SnapshotFolder, SnapshotReceiver
from orch_raft.log_worker import Worker
from orch_raft.membership import SnapshotMeta
from orch_raft.storage import Storage

_logger = logging.getLogger(__name__)


class Snapshotter:
    """Takes snapshots when they are due, one at a time, and drops the log that they make needless.

    While data keys are being changed a snapshot is due as soon as it covers everything under the old ones.
    """

    def __init__(
        self,
        storage: Storage,
        disk: Worker,
        state_machine: StateMachine,
        *,
        options: EngineOptions,
        observer: Observer,
        last_index: int,
    ) -> None:
        self._storage = storage
        self._disk = disk
        self._state_machine = state_machine
        self._options = options
        self._observer = observer
        self.last_index = last_index
        self._thread = Worker("raft-snapshot")
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        #: A snapshot at or after this index makes the old data keys needless.
        self._retire_after: int | None = storage.log.last_index if storage.has_old_keys else None
        self._keys_retired = asyncio.Event()

    def is_due(self, applied_index: int, bytes_since: int) -> bool:
        """Whether to take one now."""
        if self._closed or (self._task is not None and not self._task.done()):
            return False
        since = applied_index - self.last_index
        if since > 0 and self._retire_after is not None and applied_index >= self._retire_after:
            return True
        return since >= self._options.snapshot_every_entries or bytes_since >= self._options.snapshot_every_bytes

    def take(
        self, meta: SnapshotMeta, taken: Callable[[SnapshotMeta, int], None], failed: Callable[[FatalError], None]
    ) -> None:
        """Begin one.

        Args:
            meta: what it covers: the state as it is now.
            taken: told when it is durable, with the first index that the log keeps.
            failed: told when the log cannot be written any more.
        """
        self.last_index = meta.index
        write_state = self._state_machine.snapshot()
        self._task = asyncio.get_running_loop().create_task(
            self._save(meta, write_state, taken, failed), name="raft-snapshot"
        )

    def installed(self, meta: SnapshotMeta) -> None:
        """A snapshot of the leader took the place of everything."""
        self.last_index = max(self.last_index, meta.index)

    def retire_keys_after(self, index: int) -> None:
        """Data keys were changed; what stands up to this index may need the old ones."""
        self._retire_after = index
        self._keys_retired.clear()

    async def wait_keys_retired(self) -> None:
        """Return when the old data keys are forgotten, or the engine ends."""
        await self._keys_retired.wait()

    async def close(self) -> None:
        """Finish what is under way."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task])
        self._keys_retired.set()
        self._thread.close()

    async def _save(
        self,
        meta: SnapshotMeta,
        write_state: SnapshotWriter,
        taken: Callable[[SnapshotMeta, int], None],
        failed: Callable[[FatalError], None],
    ) -> None:
        """Save a snapshot, then drop the log that it makes needless.

        A failure costs no promise, as the log is kept: it is logged, and the next snapshot tries again.
        """
        started_s = time.monotonic()
        storage = self._storage
        try:
            size_bytes = await self._thread.run(lambda: storage.snapshots.save(meta, write_state))
        except Exception:
            _logger.exception("snapshot failed index=%d; the log is kept, and grows until one succeeds", meta.index)
            self._observer.snapshot_failed()
            return
        self._observer.snapshot_written(time.monotonic() - started_s, size_bytes)
        _logger.info("snapshot written index=%d term=%d bytes=%d", meta.index, meta.term, size_bytes)
        retires_keys = self._retire_after is not None and meta.index >= self._retire_after
        through_index = meta.index if retires_keys else meta.index - self._options.keep_entries
        try:
            await self._disk.run(lambda: storage.log.release(through_index))
            if retires_keys and await self._disk.run(storage.retire_keys):
                self._retire_after = None
                self._keys_retired.set()
        except FatalError as error:
            failed(error)
            return
        taken(meta, through_index + 1)


class IncomingSnapshots:
    """Writes what the leader sends to a side file, one snapshot at a time."""

    def __init__(self, folder: SnapshotFolder) -> None:
        self._folder = folder
        self._thread = Worker("raft-incoming")
        self._taken: SnapshotMeta | None = None

    async def receive(self, message: Message, pieces: AsyncIterator[bytes]) -> None:
        """Take a snapshot; when this returns it lies aside, whole. No other is taken until it is settled or discarded.

        Raises:
            SnapshotRefused: another one is being received, or the disk refused.
        """
        meta = message.snapshot
        if meta is None or self._taken is not None:
            raise SnapshotRefused("another snapshot is being received")
        self._taken = meta
        receiver: SnapshotReceiver | None = None
        try:
            receiver = await self._thread.run(lambda: self._folder.receive(meta))
            async for piece in pieces:
                await self._thread.run(partial(receiver.write, piece))
            await self._thread.run(receiver.finish)
        except BaseException as error:
            self._taken = None
            if receiver is not None:
                self._thread.submit(receiver.abandon, _ignore)
            if isinstance(error, OSError):
                raise SnapshotRefused(f"it cannot be written: {error}") from error
            raise

    def settled(self) -> None:
        """The one that arrived was installed."""
        self._taken = None

    def discard(self) -> None:
        """The one that arrived is not wanted."""
        meta, self._taken = self._taken, None
        if meta is None:
            return

        def remove() -> None:
            with suppress(OSError):  # what is left goes at the next start
                self._folder.discard_received(meta.index, meta.term)

        self._thread.submit(remove, _ignore)

    async def close(self) -> None:
        """End once what is under way is done."""
        self._thread.close()


def _ignore(_result: object, _error: BaseException | None) -> None:
    """Nobody waits."""
