"""The engine of a replicated cluster, of one member or several: the core joined to the disk and to the others.

Everything of the core happens in turns, on the event loop, one after the other: `_turn` steps what has arrived, takes
what is proposed, and does what the core then says. Writing happens in a thread; while one batch is synced the next one
gathers, and the leader's followers write at the same time as it does.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from orch_raft.barriers import ReadBarriers
from orch_raft.core.config import CoreConfig
from orch_raft.core.messages import NOBODY, Message, MessageKind
from orch_raft.core.node import RaftNode
from orch_raft.core.ready import Ready, Recovered, RefusalReason, Refused
from orch_raft.engine import (
    Applied,
    EngineStatus,
    LeadershipChange,
    Member,
    MembershipChange,
    Observer,
    PeerProgress,
    Role,
    SnapshotInstaller,
    StateMachine,
)
from orch_raft.errors import (
    ApplyFailed,
    EngineDefect,
    EngineStopped,
    FatalError,
    MembershipError,
    NotLeader,
    ProposalError,
    ProposalQueueFull,
    ProposalTooLarge,
    ReadUnconfirmed,
    Removed,
)
from orch_raft.leadership import LeadershipFeed
from orch_raft.limits import TICKS_PER_HEARTBEAT, EngineOptions
from orch_raft.log.files import Files
from orch_raft.log.records import Entry, EntryKind, HardState
from orch_raft.log_worker import Worker
from orch_raft.membership import Membership, SnapshotMeta
from orch_raft.proposals import Proposal, ProposalBook
from orch_raft.snapshotting import IncomingSnapshots, Snapshotter
from orch_raft.storage import RecoveredState, Storage, open_storage
from orch_raft.transport.seam import Transport
from orch_raft.watchdog import LoopWatchdog

_logger = logging.getLogger(__name__)
#: Time that entries are applied before the event loop gets a turn.
_APPLY_SLICE_S = 0.01
#: Entries applied between two looks at the clock.
_APPLY_STEP = 64
#: A leader that is stopped hands over first, if that takes no longer.
_FAREWELL_S = 1.0
_READ_TIMEOUT_S = 10.0
_BRIEF_BYTES = 16 * 1024


class ReplicatedEngine:
    """An `Engine` over the consensus core. Used from one event loop.

    Args:
        folder: the state folder, founded (`storage.found_cluster`) or prepared (`storage.prepare_joiner`).
        state_machine: what the log is applied to.
        transport: reaches the other members; without it the engine serves a cluster of one.
        options: bounds and cadences.
        observer: told measurements.
        files: the disk, for tests.
        unlock_key: opens a sealed data key.
        rng: draws the election timer.
    """

    def __init__(
        self,
        folder: Path,
        state_machine: StateMachine,
        *,
        transport: Transport | None = None,
        options: EngineOptions | None = None,
        observer: Observer | None = None,
        files: Files | None = None,
        unlock_key: bytes | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._folder = folder
        self._state_machine = state_machine
        self._transport = transport
        self._options = options or EngineOptions()
        self._observer = observer or Observer()
        self._files = files
        self._unlock_key = unlock_key
        self._rng = rng or random.SystemRandom()
        self._core: RaftNode | None = None
        self._storage: Storage | None = None
        self._disk: Worker | None = None
        self._snapshotter: Snapshotter | None = None
        self._incoming: IncomingSnapshots | None = None
        self._membership = Membership(())
        self._member_id = 0
        self._role = Role.STOPPED
        self._term = 0
        self._leader_id = NOBODY
        self._announced = LeadershipChange(0, is_leader=False, leader_id=None)
        #: Last entry of the log when this member began to lead; once applied, it may act as leader.
        self._leads_from_index = 0
        self._inbox: deque[Message] = deque()
        self._inbox_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._book = ProposalBook()
        self._batch_ends: deque[int] = deque()
        self._barriers = ReadBarriers()
        self._to_write: deque[Ready] = deque()
        self._writing: tuple[Ready, ...] = ()
        self._unsynced_hard_state: HardState | None = None
        self._idle = asyncio.Event()
        self._to_apply: deque[Entry] = deque()
        self._applied_index = 0
        self._applied_term = 0
        #: The last entry that is on this member's disk. What is applied may be ahead of it, a snapshot never.
        self._synced_index = 0
        self._bytes_since_snapshot = 0
        self._turn_scheduled = False
        self._ticks_due = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._running = False
        self._stopping = False
        self._failure: FatalError | None = None
        self._stopped = asyncio.Event()
        self._leadership = LeadershipFeed()
        self._watchdog = LoopWatchdog(self._options)

    # ---- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """See `Engine.start`. Returns as follower, or as leader where this member is the only voter."""
        if self._disk is not None or self._stopping:
            raise EngineStopped("an engine is started once; make a new one")
        self._disk = Worker("raft-log")
        try:
            self._storage, recovered = await self._disk.run(self._open)
            await self._recover(recovered)
            await self._catch_up()
        except BaseException as error:
            if isinstance(error, FatalError):
                self._fail(error)
            await self._release()
            raise
        _logger.info(
            "consensus runs member=%x role=%s term=%d applied_index=%d members=%d folder=%s",
            *(self._member_id, self._role.value, self._term, self._applied_index),
            *(len(self._membership.members), self._folder),
        )

    async def stop(self) -> None:
        """See `Engine.stop`. A leader hands over first, where somebody can take over at once."""
        if self._stopping:
            await self._stopped.wait()
            return
        await self._hand_over()
        self._stopping = True
        if self._core is not None and self._failure is None:
            await self._idle_disk()
            self._turn_now()
        self._running = False
        self._book.drop_in_flight("the engine was stopped before it was committed")
        self._refuse_all(EngineStopped("the engine was stopped"))
        await self._release()
        if self._failure is None:
            self._step_down(Role.STOPPED)
        self._stopped.set()

    async def wait_stopped(self) -> None:
        """See `Engine.wait_stopped`."""
        await self._stopped.wait()
        if self._failure is not None:
            raise self._failure

    # ---- writing and reading ---------------------------------------------------------------------

    async def propose(self, data: bytes, *, timeout_s: float) -> Applied:
        """See `Engine.propose`."""
        try:
            self._check_may_propose(data)
            proposal = Proposal(data, asyncio.get_running_loop().create_future(), timeout_s)
            self._book.add(proposal)
            self._expect_expiry(timeout_s)
            self._wake()
            applied = await proposal.outcome
        except ProposalError as error:
            self._observer.proposal_failed(type(error).__name__)
            raise
        self._observer.committed(time.monotonic() - proposal.started_s)
        return applied

    async def read_barrier(self, *, timeout_s: float = _READ_TIMEOUT_S) -> int:
        """See `Engine.read_barrier`. On a follower the leader is asked.

        Args:
            timeout_s: how long to look for a leader that confirms.
        """
        self._check_runs()
        reader: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._barriers.add(reader)
        self._wake()
        try:
            async with asyncio.timeout(timeout_s):
                return await reader
        except TimeoutError:
            raise ReadUnconfirmed(self._leader_id or None) from None

    def status(self) -> EngineStatus:
        """See `Engine.status`."""
        core = self._core
        peers = () if core is None or self._role is not Role.LEADER else core.peers()
        return EngineStatus(
            member_id=self._member_id,
            role=self._role,
            term=self._term,
            leader_id=self._leader_id or None,
            commit_index=core.commit_index if core else 0,
            applied_index=self._applied_index,
            last_index=core.last_index if core else 0,
            last_snapshot_index=self._snapshotter.last_index if self._snapshotter else 0,
            waiting_proposals=len(self._book),
            members=self._membership.members,
            peers=tuple(
                PeerProgress(peer.raft_id, peer.match, peer.pace.value, peer.reachable, self._caught_up(peer.raft_id))
                for peer in peers
            ),
            removed_ids=self._membership.removed_ids,
        )

    def leadership(self) -> AsyncIterator[LeadershipChange]:
        """See `Engine.leadership`."""
        return self._leadership.watch()

    async def change_membership(self, change: MembershipChange, *, timeout_s: float) -> Applied:
        """See `Engine.change_membership`."""
        core = self._check_leads()
        proposed = core.propose_membership(change)
        if isinstance(proposed, Refused):
            raise self._refusal(f"{change.action.value} member {change.member.raft_id:x}", proposed)
        proposal = Proposal(b"", asyncio.get_running_loop().create_future(), timeout_s)
        self._book.put_in_flight(proposal, proposed.first_index, proposed.term)
        self._expect_expiry(timeout_s)
        self._wake()
        return await proposal.outcome

    async def transfer_leadership(self, to_raft_id: int, *, timeout_s: float) -> None:
        """See `Engine.transfer_leadership`.

        Raises:
            MembershipError: it cannot take over, or has not in time.
            NotLeader, EngineStopped: this member does not lead.
        """
        core = self._check_leads()
        if (refused := core.transfer(to_raft_id)) is not None:
            raise self._refusal(f"hand leadership to member {to_raft_id:x}", refused)
        self._wake()
        try:
            async with asyncio.timeout(timeout_s):
                async for change in self._leadership.watch():
                    if change.leader_id == to_raft_id:
                        return
        except TimeoutError:
            pass
        raise MembershipError(
            f"cannot hand leadership to member {to_raft_id:x}: it has not taken over within {timeout_s:g} s; "
            f"look at its log and at the network between the two"
        )

    # ---- keys ------------------------------------------------------------------------------------

    async def set_unlock_key(self, unlock_key: bytes | None) -> None:
        """Seal the data keys with a key that no manager keeps (autolock), or with none.

        Raises:
            EngineStopped: the engine does not run.
            DurabilityLost: the disk refused.
        """
        self._check_runs()
        storage, disk = self._opened()
        await disk.run(partial(storage.seal_keys, unlock_key))

    async def change_data_key(self) -> None:
        """Encrypt with a new data key; return once nothing on disk needs an older one.

        Raises:
            EngineStopped: the engine does not run, or ended meanwhile. The change goes on at the next start.
            DurabilityLost: the disk refused.
        """
        self._check_runs()
        storage, disk = self._opened()
        assert self._snapshotter is not None
        last_index = await disk.run(storage.change_data_key)
        self._snapshotter.retire_keys_after(last_index)
        self._wake()
        await self._snapshotter.wait_keys_retired()
        self._check_runs()

    # ---- the transport's receiver ----------------------------------------------------------------

    def messages_arrived(self, messages: Sequence[Message]) -> None:
        """See `Receiver.messages_arrived`."""
        if not self._running:
            return
        self._inbox.extend(messages)
        for message in messages:
            if message.entries:
                self._inbox_bytes += sum(len(entry.data) for entry in message.entries)
        if len(self._inbox) > self._options.max_inbox_messages or self._inbox_bytes > self._options.max_inbox_bytes:
            self._room.clear()
        self._wake()

    async def wait_for_room(self) -> None:
        """See `Receiver.wait_for_room`."""
        await self._room.wait()

    def unreachable(self, raft_id: int) -> None:
        """See `Receiver.unreachable`."""
        if self._running and self._core is not None:
            self._core.report_unreachable(raft_id)
            self._wake()

    def snapshot_sent(self, raft_id: int, *, ok: bool) -> None:
        """See `Receiver.snapshot_sent`."""
        self._observer.snapshot_sent(ok=ok)
        if self._running and self._core is not None:
            self._core.report_snapshot(raft_id, ok=ok)
            self._wake()

    def member(self, raft_id: int) -> Member | None:
        """See `Receiver.member`."""
        return self._membership.find(raft_id)

    def was_removed(self, raft_id: int) -> bool:
        """See `Receiver.was_removed`."""
        return raft_id in self._membership.removed_ids

    async def receive_snapshot(self, message: Message, pieces: AsyncIterator[bytes]) -> None:
        """See `Receiver.receive_snapshot`."""
        self._check_runs()
        assert self._incoming is not None
        await self._incoming.receive(message, pieces)
        self.messages_arrived([replace(message, to=self._member_id)])

    # ---- starting and stopping -------------------------------------------------------------------

    def _open(self) -> tuple[Storage, RecoveredState]:
        return open_storage(
            self._folder,
            files=self._files,
            options=self._options,
            observer=self._observer,
            unlock_key=self._unlock_key,
        )

    def _opened(self) -> tuple[Storage, Worker]:
        assert self._storage is not None
        assert self._disk is not None
        return self._storage, self._disk

    async def _recover(self, recovered: RecoveredState) -> None:
        """Restore the snapshot and hand what was on disk to the core."""
        storage, disk = self._opened()
        self._member_id = storage.member.raft_id
        if recovered.state is not None:
            (await disk.run(partial(self._state_machine.restore, recovered.state)))()
        self._applied_index, self._applied_term = recovered.snapshot.index, recovered.snapshot.term
        config = CoreConfig(
            self._member_id,
            election_ticks=self._options.election_ticks,
            heartbeat_ticks=TICKS_PER_HEARTBEAT,
        )
        log = recovered.log
        self._core = RaftNode(config, Recovered(log.hard_state, recovered.snapshot, log.entries), self._rng)
        self._term = self._core.term
        self._synced_index = self._core.last_index
        self._snapshotter = Snapshotter(
            storage,
            disk,
            self._state_machine,
            options=self._options,
            observer=self._observer,
            last_index=recovered.snapshot.index,
        )
        self._incoming = IncomingSnapshots(storage.snapshots)
        if self._transport is not None:
            self._transport.start(self._member_id, self)
        self._take_membership()

    async def _catch_up(self) -> None:
        """Apply what is known to be committed. The only voter need not wait for an election."""
        assert self._core is not None
        self._role = Role.FOLLOWER
        self._running = True
        self._arm("tick", self._options.tick_s, self._tick)
        self._wake()
        while self._applied_index < self._core.commit_index and self._failure is None:  # noqa: ASYNC110
            await asyncio.sleep(0)  # turns do the work
        if [voter.raft_id for voter in self._membership.voters] == [self._member_id]:
            self._core.campaign()
            self._wake()
            async for change in self._leadership.watch():
                if change.is_leader:
                    break
        else:
            self._announce(LeadershipChange(self._term, is_leader=False, leader_id=self._leader_id or None))
        if self._failure is not None:
            raise self._failure

    async def _hand_over(self) -> None:
        if self._role is not Role.LEADER or self._failure is not None or len(self._membership.voters) < 2:
            return
        try:
            await self.transfer_leadership(self._best_successor(), timeout_s=_FAREWELL_S)
        except (MembershipError, ProposalError) as error:
            _logger.warning("stops as leader: %s", error)

    def _best_successor(self) -> int:
        """The voter that can take over soonest; this member itself when there is none."""
        assert self._core is not None
        voters = {voter.raft_id for voter in self._membership.voters}
        able = [peer for peer in self._core.peers() if peer.reachable and peer.raft_id in voters]
        return max(able, key=lambda peer: peer.match).raft_id if able else self._member_id

    async def _idle_disk(self) -> None:
        """Return when nothing is being written."""
        while (self._writing or self._to_write) and self._failure is None:
            self._idle.clear()
            await self._idle.wait()

    async def _release(self) -> None:
        """Close the folder and end the threads."""
        self._running = False
        for timer in self._timers.values():
            timer.cancel()
        if self._transport is not None:
            await self._transport.close()
        if self._snapshotter is not None:
            await self._snapshotter.close()
        if self._incoming is not None:
            await self._incoming.close()
        self._room.set()
        if self._disk is not None:
            if self._storage is not None:
                storage, self._storage = self._storage, None
                commit, self._unsynced_hard_state = self._unsynced_hard_state, None
                if commit is not None and self._failure is None:
                    await self._disk.run(partial(storage.log.append, (), commit))
                await self._disk.run(storage.close)
            self._disk.close()

    # ---- checks ----------------------------------------------------------------------------------

    def _check_runs(self) -> RaftNode:
        if self._failure is not None:
            raise EngineStopped(f"it failed ({self._failure})")
        if self._stopping or not self._running or self._core is None:
            raise EngineStopped("it was stopped" if self._stopping else "it was not started")
        return self._core

    def _check_leads(self) -> RaftNode:
        core = self._check_runs()
        if not self._announced.is_leader:
            raise NotLeader(self._leader_id if self._leader_id not in {NOBODY, self._member_id} else None, core.raft_id)
        return core

    def _check_may_propose(self, data: bytes) -> None:
        self._check_leads()
        if len(data) > self._options.max_proposal_bytes:
            raise ProposalTooLarge(len(data), self._options.max_proposal_bytes)
        if len(self._book.waiting) >= self._options.max_waiting_proposals:
            raise ProposalQueueFull(len(self._book.waiting))

    def _refusal(self, what: str, refused: Refused) -> ProposalError | MembershipError:
        if refused.reason is RefusalReason.NOT_LEADER:
            return NotLeader(self._leader_id or None, self._member_id)
        return MembershipError(f"cannot {what}: {refused}; nothing was changed")

    def _caught_up(self, raft_id: int) -> bool:
        return self._core is not None and self._core.is_caught_up(raft_id)

    # ---- turns -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._turn_scheduled and self._running:
            self._turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self._running and self._failure is None:
            self._turn_now()

    def _turn_now(self) -> None:
        try:
            self._work()
        except FatalError as error:
            self._fail(error)
        except Exception as error:
            _logger.exception("consensus met a defect")
            self._fail(EngineDefect(error))

    def _work(self) -> None:
        core = self._core
        assert core is not None
        self._step_inbox(core)
        while self._ticks_due:
            self._ticks_due -= 1
            core.tick()
        if self._book.waiting and not self._stopping:
            self._propose_waiting(core)
        self._barriers.ask(core)
        while core.has_ready():
            self._handle(core.ready())
        self._write_next()
        self._apply_some(core)
        while core.has_ready():
            self._handle(core.ready())
        self._write_next()
        self._follow_standing(core)
        if core.commit_unannounced and "commit" not in self._timers:
            self._arm("commit", self._options.commit_notice_ms / 1000, self._announce_commit)
        if self._to_apply or (self._book.waiting and self._may_propose_more(core)):
            self._wake()
        if self._snapshotter is not None and not self._stopping:
            self._consider_snapshot(self._snapshotter, core)

    def _step_inbox(self, core: RaftNode) -> None:
        inbox = self._inbox
        if not inbox:
            return
        arrived = [message.snapshot for message in inbox if message.kind is MessageKind.SNAPSHOT]
        for message in inbox:
            core.step(message)
        inbox.clear()
        self._inbox_bytes = 0
        self._room.set()
        if arrived and self._incoming is not None:
            ready = core.ready()
            self._handle(ready)
            if ready.snapshot is None:
                self._incoming.discard()

    def _may_propose_more(self, core: RaftNode) -> bool:
        ends = self._batch_ends
        while ends and ends[0] <= core.commit_index:
            ends.popleft()
        return len(ends) < self._options.max_uncommitted_batches

    def _propose_waiting(self, core: RaftNode) -> None:
        while self._book.waiting and self._may_propose_more(core):
            batch = self._book.take_batch(self._options.max_batch_entries, self._options.max_batch_bytes)
            if not batch:
                return
            proposed = core.propose([proposal.data for proposal in batch])
            if isinstance(proposed, Refused):
                # They wait until there is room, leadership ends, or their time is over.
                self._book.put_back(batch)
                return
            self._book.written(batch, proposed.first_index, proposed.term)
            self._batch_ends.append(proposed.last_index)

    def _handle(self, ready: Ready) -> None:
        """Do what the core says; see `RaftNode` for the order."""
        if ready.messages:
            self._send(ready.messages)
        self._to_apply.extend(ready.committed)
        for read in ready.reads:
            self._barriers.confirm(read)
        if ready.removed:
            raise Removed(self._member_id)
        if ready.must_sync or self._writing or self._to_write:
            self._to_write.append(ready)
        else:
            self._settle_unsynced(ready)

    def _settle_unsynced(self, ready: Ready) -> None:
        """Nothing is to be synced, and nothing earlier is outstanding."""
        assert self._core is not None
        self._unsynced_hard_state = ready.hard_state or self._unsynced_hard_state
        self._core.persisted(ready)
        self._send(ready.messages_after_sync)

    def _send(self, messages: Sequence[Message]) -> None:
        if not messages or self._transport is None:
            return
        snapshots = [message for message in messages if message.kind is MessageKind.SNAPSHOT]
        if not snapshots:
            self._transport.send(messages)
            return
        self._transport.send([message for message in messages if message.kind is not MessageKind.SNAPSHOT])
        for message in snapshots:
            self._transport.send_snapshot(message, self._open_snapshot)

    def _open_snapshot(self) -> AbstractContextManager[tuple[SnapshotMeta, BinaryIO]]:
        storage, _ = self._opened()
        return storage.snapshots.pinned()

    # ---- the disk --------------------------------------------------------------------------------

    def _write_next(self) -> None:
        """Write what has gathered, if nothing is being written: one batch, one sync."""
        if self._writing:
            return
        while self._to_write and not self._to_write[0].must_sync:
            self._settle_unsynced(self._to_write.popleft())
        if not self._to_write:
            self._idle.set()
            return
        storage, disk = self._opened()
        if self._to_write[0].snapshot is not None:
            ready = self._to_write.popleft()
            self._writing = (ready,)
            self._to_apply.clear()
            disk.submit(partial(self._install, storage, ready), self._installed)
            return
        readies: list[Ready] = []
        while self._to_write and self._to_write[0].snapshot is None:
            readies.append(self._to_write.popleft())
        hard_state = self._unsynced_hard_state
        self._unsynced_hard_state = None
        entries: Sequence[Entry] = readies[0].entries if len(readies) == 1 else []
        for ready in readies:
            hard_state = ready.hard_state or hard_state
            if len(readies) > 1:
                entries = [*entries, *ready.entries]
        self._writing = tuple(readies)
        append = partial(storage.log.append, entries, hard_state)
        if self._role is Role.LEADER:
            asyncio.get_running_loop().call_soon(disk.submit, append, self._written)
            return
        brief = sum(len(entry.data) for entry in entries) <= _BRIEF_BYTES
        disk.submit(append, self._written, brief=brief)

    def _written(self, _result: object, error: BaseException | None) -> None:
        """A batch is on stable storage: what depended on it may leave."""
        if not self._disk_succeeded(error):
            return
        assert self._core is not None
        readies, self._writing = self._writing, ()
        self._core.persisted(readies[-1])
        self._synced_index = readies[-1].last_index
        for ready in readies:
            self._send(ready.messages_after_sync)
        if self._running:
            # At once, not in a turn to come: somebody waits for what this commits.
            self._turn_now()

    def _install(self, storage: Storage, ready: Ready) -> SnapshotInstaller | None:
        """In the thread: make a received snapshot durable, and read it."""
        meta = ready.snapshot
        assert meta is not None
        storage.install_received(meta, ready.hard_state or self._unsynced_hard_state, ready.entries)
        read, stream = storage.snapshots.open_latest()
        assert (read.index, read.term) == (meta.index, meta.term)
        return self._state_machine.restore(stream) if storage.snapshots.has_state(meta) else None

    def _installed(self, install: Any, error: BaseException | None) -> None:
        """A received snapshot is the member's own: put its state in place."""
        if not self._disk_succeeded(error):
            return
        assert self._core is not None
        assert self._snapshotter is not None
        assert self._incoming is not None
        (ready,), self._writing = self._writing, ()
        meta = ready.snapshot
        assert meta is not None
        self._unsynced_hard_state = None
        if install is not None:
            install()
        self._applied_index, self._applied_term = meta.index, meta.term
        self._bytes_since_snapshot = 0
        self._synced_index = ready.last_index
        self._snapshotter.installed(meta)
        self._incoming.settled()
        self._core.persisted(ready)
        self._core.snapshot_persisted(meta)
        _logger.info("installed the leader's snapshot index=%d term=%d", meta.index, meta.term)
        self._send(ready.messages_after_sync)
        self._take_membership()
        if self._running:
            self._turn_now()

    def _disk_succeeded(self, error: BaseException | None) -> bool:
        if self._failure is not None:
            return False
        if error is None:
            return True
        self._fail(error if isinstance(error, FatalError) else EngineDefect(error))
        return False

    # ---- applying --------------------------------------------------------------------------------

    def _apply_some(self, core: RaftNode) -> None:
        """Apply committed entries for a moment, and tell who waits for them."""
        to_apply = self._to_apply
        if to_apply:
            until_s = time.monotonic() + _APPLY_SLICE_S
            while to_apply:
                for _ in range(min(_APPLY_STEP, len(to_apply))):
                    self._apply(to_apply.popleft())
                if time.monotonic() > until_s:
                    break
            core.applied(self._applied_index)
            if core.membership is not self._membership:
                self._take_membership()
        self._barriers.applied(self._applied_index)

    def _apply(self, entry: Entry) -> None:
        result: object = None
        if entry.kind is EntryKind.COMMAND:
            try:
                result = self._state_machine.apply(entry.index, entry.term, entry.data)
            except Exception as error:
                raise ApplyFailed(entry.index, error) from error
        self._applied_index, self._applied_term = entry.index, entry.term
        self._bytes_since_snapshot += len(entry.data)
        self._book.settle(entry, result)

    def _take_membership(self) -> None:
        assert self._core is not None
        self._membership = self._core.membership
        if self._transport is not None:
            self._transport.set_members({member.raft_id: member for member in self._membership.members})

    def _consider_snapshot(self, snapshotter: Snapshotter, core: RaftNode) -> None:
        if self._applied_index <= self._synced_index and snapshotter.is_due(
            self._applied_index, self._bytes_since_snapshot
        ):
            self._bytes_since_snapshot = 0
            meta = SnapshotMeta(self._applied_index, self._applied_term, core.membership)
            snapshotter.take(meta, self._snapshot_taken, self._fail)

    def _snapshot_taken(self, meta: SnapshotMeta, first_kept_index: int) -> None:
        if self._core is not None:
            self._core.snapshot_taken(meta)
            self._core.compacted(first_kept_index)
            self._wake()

    # ---- leadership ------------------------------------------------------------------------------

    def _follow_standing(self, core: RaftNode) -> None:
        """Tell who leads, once it is true in full."""
        role, term, leader_id = core.role, core.term, core.leader_id
        if role is not self._role or term != self._term:
            if role is Role.LEADER:
                self._leads_from_index = core.last_index
                self._batch_ends.clear()
            elif self._role is Role.LEADER:
                self._book.drop_in_flight("this manager lost its leadership before it was committed")
                self._book.refuse_waiting(NotLeader(leader_id or None, self._member_id))
            if role is Role.PRE_CANDIDATE and self._role is Role.FOLLOWER:
                self._observer.election_begun()
            self._role = role
        self._term, self._leader_id = term, leader_id
        is_leader = role is Role.LEADER and self._applied_index >= self._leads_from_index
        change = LeadershipChange(term, is_leader=is_leader, leader_id=leader_id or None)
        if change != self._announced and (leader_id or self._announced.leader_id):
            self._announce(change)

    def _announce(self, change: LeadershipChange) -> None:
        if change.is_leader != self._announced.is_leader or change.leader_id != self._announced.leader_id:
            _logger.info("leadership term=%d leader=%x self=%s", change.term, change.leader_id or 0, change.is_leader)
        self._announced = change
        self._leadership.publish(change)

    def _announce_commit(self) -> None:
        self._timers.pop("commit", None)
        if self._running and self._core is not None:
            self._core.announce_commit()
            self._wake()

    # ---- time ------------------------------------------------------------------------------------

    def _arm(self, name: str, delay_s: float, callback: Any) -> None:
        self._timers[name] = asyncio.get_running_loop().call_later(delay_s, callback)

    def _tick(self) -> None:
        if not self._running:
            return
        self._arm("tick", self._options.tick_s, self._tick)
        now_s = time.monotonic()
        stalled_s = self._watchdog.tick(now_s)
        if stalled_s:
            self._observer.loop_stalled(stalled_s)
            _logger.warning("the event loop stalled for %.2f s", stalled_s)
        # One, however late: who was not heard because nobody listened is not silent.
        self._ticks_due = 1
        self._book.expire(now_s)
        if self._watchdog.should_hand_over(now_s) and self._announced.is_leader and self._core is not None:
            _logger.error("the event loop stalls again and again: hands leadership over")
            self._core.transfer(self._best_successor())
        self._wake()

    def _expect_expiry(self, timeout_s: float) -> None:
        """A time-out shorter than a tick is kept as well."""
        if timeout_s < self._options.tick_s:
            asyncio.get_running_loop().call_later(timeout_s + 0.001, lambda: self._book.expire(time.monotonic()))

    # ---- the end ---------------------------------------------------------------------------------

    def _fail(self, error: FatalError) -> None:
        """Stop for good: nothing can be promised any more."""
        if self._failure is not None:
            return
        _logger.critical("consensus failed and must stop: %s", error)
        self._failure = error
        self._running = False
        self._book.drop_in_flight(str(error))
        self._refuse_all(EngineStopped(f"it failed ({error})"))
        self._step_down(Role.FAILED)
        self._idle.set()
        self._stopped.set()

    def _refuse_all(self, error: EngineStopped) -> None:
        self._book.refuse_waiting(error)
        self._barriers.stop(error)

    def _step_down(self, role: Role) -> None:
        self._role, self._leader_id = role, NOBODY
        self._announce(LeadershipChange(self._term, is_leader=False, leader_id=None))
        self._leadership.close()
