"""One manager of the simulation: the core, driven as `RaftNode` asks, over a disk that outlives it."""

import random
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from orch_raft.core.messages import Message
from orch_raft.core.node import RaftNode
from orch_raft.core.ready import ConfirmedRead, Ready
from orch_raft.engine import Role
from orch_raft.log.records import Entry
from orch_raft.membership import SnapshotMeta
from simulation.raft.disk import Disk, records_of
from simulation.raft.faults import FaultMix
from simulation.raft.invariants import History


class CrashError(Exception):
    """The process ends here."""


class World(Protocol):
    """What a member needs of the world around it."""

    def send(self, message: Message) -> None:
        """Put a message on the network."""
        ...

    def sync_later(self, member: "Member") -> None:
        """Call `sync_done` after a while."""
        ...

    def apply_later(self, member: "Member") -> None:
        """Call `apply_some` after a while."""
        ...


class _OwnLog:
    """A member's view of its older entries, which are on its disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def entries(self, first_index: int, last_index: int, max_bytes: int) -> Sequence[Entry]:
        """See `LogView`."""
        found: list[Entry] = []
        size_bytes = 0
        for entry in self._disk.recover().entries:
            if first_index <= entry.index <= last_index:
                size_bytes += len(entry.data)
                if found and size_bytes > max_bytes:
                    break
                found.append(entry)
        return found if found and found[0].index == first_index else ()

    def term(self, index: int) -> int | None:
        """See `LogView`."""
        return next((entry.term for entry in self._disk.recover().entries if entry.index == index), None)


class Member:
    """One life of one manager."""

    def __init__(
        self, raft_id: int, disk: Disk, *, world: World, history: History, mix: FaultMix, rng: random.Random
    ) -> None:
        recovered = disk.recover()
        self.raft_id = raft_id
        self.disk = disk
        self.dead = False
        self._world = world
        self._history = history
        self._mix = mix
        self._rng = rng
        self.node = RaftNode(mix.core_config(raft_id), recovered, random.Random(rng.random()), _OwnLog(disk))
        self.applied = recovered.snapshot.index
        self._last_snapshot = recovered.snapshot.index
        self._applied_term = recovered.snapshot.term
        self._unsynced: deque[Ready] = deque()
        self._syncing = 0
        self._to_apply: deque[Entry] = deque()
        self._applying_later = False
        #: Proposals of this life, by index and term.
        self.proposed: dict[tuple[int, int], bytes] = {}
        #: Reads by context: what each must see.
        self.read_floors: dict[bytes, int] = {}
        self._confirmed: list[ConfirmedRead] = []
        self._seen_commit = recovered.snapshot.index
        self._role = Role.FOLLOWER
        self._led_term = 0

    # ---- the driver's turn -----------------------------------------------------------------------

    def turn(self) -> None:
        """Take what the core has ready, until there is nothing."""
        self._observe()
        while not self.dead and self.node.has_ready():
            ready = self.node.ready()
            self._observe()
            self._send(ready.messages)
            self._persist(ready)
            self._to_apply.extend(ready.committed)
            self._confirmed.extend(ready.reads)
            self.apply_or_wait()

    def _observe(self) -> None:
        node = self.node
        if node.role is Role.LEADER and node.term != self._led_term:
            self._led_term = node.term
            self._history.saw_leader(node)
        if node.commit_index > self._seen_commit:
            for index in range(self._seen_commit + 1, node.commit_index + 1):
                self._history.saw_committed(node, index)
            self._seen_commit = node.commit_index

    def _send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._maybe_crash(self._mix.crash_at_send)
            self._world.send(message)

    def _persist(self, ready: Ready) -> None:
        records = records_of(ready)
        if ready.entries:
            self._history.saw_written(ready.entries, self.node._state.log.term(ready.entries[0].index - 1))
        self._maybe_crash(self._mix.crash_at_sync)
        self.disk.write(records)
        self._unsynced.append(ready)
        if not self._syncing:
            self._sync()

    def _sync(self) -> None:
        if any(ready.must_sync for ready in self._unsynced):
            self._syncing = len(self._unsynced)
            self._world.sync_later(self)
        else:
            self._synced(len(self._unsynced))

    def sync_done(self) -> None:
        """The sync under way has returned."""
        self._maybe_crash(self._mix.failed_sync)
        count, self._syncing = self._syncing, 0
        self._synced(count)
        if self._unsynced:
            self._sync()
        self.turn()

    def _synced(self, count: int) -> None:
        self.disk.sync(count)
        self._maybe_crash(self._mix.crash_at_sync)
        done = [self._unsynced.popleft() for _ in range(count)]
        for ready in done:
            if ready.snapshot is not None:
                self._install(ready.snapshot)
        for ready in done if self._rng.random() < 0.5 else done[-1:]:
            self.node.persisted(ready)
        for ready in done:
            self._send(ready.messages_after_sync)

    def _install(self, meta: SnapshotMeta) -> None:
        if meta.index > self.applied:
            self.applied = self._last_snapshot = meta.index
            self._applied_term = meta.term
            self._to_apply.clear()
            self._seen_commit = max(self._seen_commit, meta.index)
        self.node.snapshot_persisted(meta)

    # ---- the state machine -----------------------------------------------------------------------

    def apply_or_wait(self) -> None:
        """Apply now, or let the world come back to it."""
        if not self._to_apply:
            self._serve_reads()
        elif self._applying_later:
            return
        elif self._rng.random() < self._mix.slow_apply:
            self._applying_later = True
            self._world.apply_later(self)
        else:
            self.apply_some()

    def apply_some(self) -> None:
        """Apply what was handed out."""
        self._applying_later = False
        while self._to_apply:
            entry = self._to_apply.popleft()
            self._history.saw_applied(self.raft_id, entry, self.applied + 1)
            self.applied, self._applied_term = entry.index, entry.term
            data = self.proposed.pop((entry.index, entry.term), None)
            if data is not None:
                self._history.saw_acknowledged(entry)
        self.node.applied(self.applied)
        self._serve_reads()
        self._consider_snapshot()

    def _serve_reads(self) -> None:
        waiting = []
        for read in self._confirmed:
            if read.index > self.applied:
                waiting.append(read)
            elif (floor := self.read_floors.pop(read.context, None)) is not None:
                self._history.saw_read(read.index, floor)
        self._confirmed = waiting

    def _consider_snapshot(self) -> None:
        if self.applied - self._last_snapshot < self._mix.snapshot_every or self.node._state.installing:
            return
        if self.applied > self.node.persisted_index:
            return
        meta = SnapshotMeta(self.applied, self._applied_term, self.node.membership)
        keep_from = max(0, self.applied - self._mix.keep) + 1
        self.disk.save_snapshot(meta, keep_from)
        self._last_snapshot = self.applied
        self.node.snapshot_taken(meta)
        self.node.compacted(keep_from)

    def _maybe_crash(self, chance: float) -> None:
        if chance and self._rng.random() < chance:
            raise CrashError
