"""The turns of a member: everything of the core happens in them, on the event loop, one after the other.

A turn steps what has arrived, takes what is proposed, and does what the core then says: sends, hands to the disk, and
applies. What is slow is elsewhere: the disk in a thread (`log_writing`), snapshots in another (`snapshotting`).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

from orch_raft.applying import Applier
from orch_raft.barriers import ReadBarriers
from orch_raft.core.messages import Message, MessageKind
from orch_raft.core.node import RaftNode
from orch_raft.core.ready import Ready, Refused
from orch_raft.engine import Observer, Role, SnapshotInstaller, StateMachine
from orch_raft.errors import EngineDefect, EngineStopped, FatalError, NotLeader, Removed
from orch_raft.inbox import Inbox
from orch_raft.leadership import LeadershipFeed
from orch_raft.limits import EngineOptions
from orch_raft.log_worker import Worker
from orch_raft.log_writing import LogWriting
from orch_raft.membership import SnapshotMeta
from orch_raft.proposals import ProposalBook
from orch_raft.snapshotting import IncomingSnapshots, Snapshotter
from orch_raft.standing import Standing
from orch_raft.storage import Storage
from orch_raft.transport.seam import Transport
from orch_raft.watchdog import LoopWatchdog

_logger = logging.getLogger(__name__)


class Turns:
    """A member that runs, from when its state was read until it is stopped or fails.

    Args:
        core: recovered; belongs to the turns alone from here on.
        snapshot: what the state machine was restored from.
        feed: told who leads.
        failed: called once if the member cannot go on.
    """

    def __init__(
        self,
        core: RaftNode,
        storage: Storage,
        disk: Worker,
        state_machine: StateMachine,
        transport: Transport | None,
        *,
        snapshot: SnapshotMeta,
        options: EngineOptions,
        observer: Observer,
        feed: LeadershipFeed,
        failed: Callable[[FatalError], None],
    ) -> None:
        self.core = core
        self._storage = storage
        self._transport = transport
        self._options = options
        self._observer = observer
        self._failed = failed
        self.failure: FatalError | None = None
        self.running = False
        #: No proposal is taken any more; what was taken is finished.
        self.stopping = False
        self.membership = core.membership
        self.standing = Standing(feed, core.term)
        self.inbox = Inbox(options)
        self.book = ProposalBook()
        self.barriers = ReadBarriers()
        self.applier = Applier(state_machine, self.book, index=snapshot.index, term=snapshot.term)
        self.writing = LogWriting(core, storage, disk, self, state_machine.restore, synced_index=core.last_index)
        self.snapshotter = Snapshotter(
            storage, disk, state_machine, options=options, observer=observer, last_index=snapshot.index
        )
        self.incoming = IncomingSnapshots(storage.snapshots)
        self._batch_ends: deque[int] = deque()
        self._turn_scheduled = False
        self._ticks_due = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._watchdog = LoopWatchdog(options)

    # ---- life ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take turns from now on."""
        self.running = True
        self.take_membership()
        self._arm("tick", self._options.tick_s, self._tick)
        self.wake()

    async def finish(self, error: EngineStopped) -> None:
        """Write what was begun, and refuse what waits."""
        self.stopping = True
        if self.failure is None:
            await self.writing.wait_idle()
            self._turn_now()
        self.running = False
        self.book.drop_in_flight("the engine was stopped before it was committed")
        self._refuse_all(error)

    def halt(self) -> None:
        """Take no more turns: what others say from now on is not heard."""
        self.running = False
        for timer in self._timers.values():
            timer.cancel()

    async def close(self) -> None:
        """Finish a snapshot that is under way; nobody need wait for room."""
        await self.snapshotter.close()
        await self.incoming.close()
        self.inbox.close()

    def fail(self, error: FatalError) -> None:
        """Stop for good: nothing can be promised any more."""
        if self.failure is not None:
            return
        self.failure = error
        self.running = False
        self.writing.stop()
        self.book.drop_in_flight(str(error))
        self._refuse_all(EngineStopped(f"it failed ({error})"))
        self._failed(error)

    def _refuse_all(self, error: EngineStopped) -> None:
        self.book.refuse_waiting(error)
        self.barriers.stop(error)

    # ---- turns -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have a turn soon."""
        if not self._turn_scheduled and self.running:
            self._turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self.running and self.failure is None:
            self._turn_now()

    def _turn_now(self) -> None:
        try:
            self._work()
        except FatalError as error:
            self.fail(error)
        except Exception as error:
            _logger.exception("consensus met a defect")
            self.fail(EngineDefect(error))

    def _work(self) -> None:
        core = self.core
        self._step_inbox(core)
        while self._ticks_due:
            self._ticks_due -= 1
            core.tick()
        if self.book.waiting and not self.stopping:
            self._propose_waiting(core)
        self.barriers.ask(core)
        while core.has_ready():
            self._handle(core.ready())
        self.writing.write_next()
        self._apply_some(core)
        while core.has_ready():
            self._handle(core.ready())
        self.writing.write_next()
        self._follow_standing(core)
        if core.commit_unannounced and "commit" not in self._timers:
            self._arm("commit", self._options.commit_notice_ms / 1000, self._announce_commit)
        if self.applier.has_work or (self.book.waiting and self._may_propose_more(core)):
            self.wake()
        if not self.stopping:
            self._consider_snapshot(core)

    def _step_inbox(self, core: RaftNode) -> None:
        messages = self.inbox.take()
        for message in messages:
            core.step(message)
        if any(message.kind is MessageKind.SNAPSHOT for message in messages):
            ready = core.ready()
            self._handle(ready)
            if ready.snapshot is None:
                self.incoming.discard()

    def _may_propose_more(self, core: RaftNode) -> bool:
        ends = self._batch_ends
        while ends and ends[0] <= core.commit_index:
            ends.popleft()
        return len(ends) < self._options.max_uncommitted_batches

    def _propose_waiting(self, core: RaftNode) -> None:
        while self.book.waiting and self._may_propose_more(core):
            batch = self.book.take_batch(self._options.max_batch_entries, self._options.max_batch_bytes)
            if not batch:
                return
            proposed = core.propose([proposal.data for proposal in batch])
            if isinstance(proposed, Refused):
                # They wait until there is room, leadership ends, or their time is over.
                self.book.put_back(batch)
                return
            self.book.written(batch, proposed.first_index, proposed.term)
            self._batch_ends.append(proposed.last_index)

    def _handle(self, ready: Ready) -> None:
        """Do what the core says; see `RaftNode` for the order."""
        if ready.messages:
            self.send(ready.messages)
        self.applier.add(ready.committed)
        for read in ready.reads:
            self.barriers.confirm(read)
        if ready.removed:
            raise Removed(self.core.raft_id)
        self.writing.add(ready)

    # ---- what the writing tells --------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """See `WritingEvents.leads`."""
        return self.standing.role is Role.LEADER

    def send(self, messages: Sequence[Message]) -> None:
        """See `WritingEvents.send`."""
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
        return self._storage.snapshots.pinned()

    def installing(self) -> None:
        """See `WritingEvents.installing`."""
        self.applier.drop_waiting()

    def install(self, meta: SnapshotMeta, install: SnapshotInstaller | None) -> None:
        """See `WritingEvents.install`."""
        if install is not None:
            install()
        self.applier.restored(meta)
        self.snapshotter.installed(meta)
        self.incoming.settled()
        _logger.info("installed the leader's snapshot index=%d term=%d", meta.index, meta.term)

    def installed(self) -> None:
        """See `WritingEvents.installed`."""
        self.take_membership()

    def durable(self) -> None:
        """See `WritingEvents.durable`."""
        if self.running:
            # At once, not in a turn to come: somebody waits for what this commits.
            self._turn_now()

    # ---- what follows from it ----------------------------------------------------------------------

    def take_membership(self) -> None:
        """The core has another membership: let the transport know."""
        self.membership = self.core.membership
        if self._transport is not None:
            self._transport.set_members({member.raft_id: member for member in self.membership.members})

    def best_successor(self) -> int:
        """The voter that can take over soonest; this member itself when there is none."""
        voters = {voter.raft_id for voter in self.membership.voters}
        able = [peer for peer in self.core.peers() if peer.reachable and peer.raft_id in voters]
        return max(able, key=lambda peer: peer.match).raft_id if able else self.core.raft_id

    def _apply_some(self, core: RaftNode) -> None:
        if self.applier.apply_some():
            core.applied(self.applier.index)
            if core.membership is not self.membership:
                self.take_membership()
        self.barriers.applied(self.applier.index)

    def _follow_standing(self, core: RaftNode) -> None:
        """Do what a new role asks for, then tell who leads."""
        standing, before = self.standing, self.standing.role
        if standing.take(core):
            if standing.role is Role.LEADER:
                self._batch_ends.clear()
            elif before is Role.LEADER:
                self.book.drop_in_flight("this manager lost its leadership before it was committed")
                self.book.refuse_waiting(NotLeader(standing.leader_id or None, core.raft_id))
            if standing.role is Role.PRE_CANDIDATE and before is Role.FOLLOWER:
                self._observer.election_begun()
        standing.announce(self.applier.index)

    def _consider_snapshot(self, core: RaftNode) -> None:
        applier = self.applier
        if applier.index <= self.writing.synced_index and self.snapshotter.is_due(
            applier.index, applier.bytes_since_snapshot
        ):
            applier.bytes_since_snapshot = 0
            meta = SnapshotMeta(applier.index, applier.term, core.membership)
            self.snapshotter.take(meta, self._snapshot_taken, self.fail)

    def _snapshot_taken(self, meta: SnapshotMeta, first_kept_index: int) -> None:
        self.core.snapshot_taken(meta)
        self.core.compacted(first_kept_index)
        self.wake()

    def _announce_commit(self) -> None:
        self._timers.pop("commit", None)
        if self.running:
            self.core.announce_commit()
            self.wake()

    # ---- time ------------------------------------------------------------------------------------

    def _arm(self, name: str, delay_s: float, callback: Callable[[], None]) -> None:
        self._timers[name] = asyncio.get_running_loop().call_later(delay_s, callback)

    def _tick(self) -> None:
        if not self.running:
            return
        self._arm("tick", self._options.tick_s, self._tick)
        now_s = time.monotonic()
        stalled_s = self._watchdog.tick(now_s)
        if stalled_s:
            self._observer.loop_stalled(stalled_s)
            _logger.warning("the event loop stalled for %.2f s", stalled_s)
        # One, however late: who was not heard because nobody listened is not silent.
        self._ticks_due = 1
        self.book.expire(now_s)
        if self._watchdog.should_hand_over(now_s) and self.standing.is_leader:
            _logger.error("the event loop stalls again and again: hands leadership over")
            self.core.transfer(self.best_successor())
        self.wake()

    def expect_expiry(self, timeout_s: float) -> None:
        """A time-out shorter than a tick is kept as well."""
        if timeout_s < self._options.tick_s:
            asyncio.get_running_loop().call_later(timeout_s + 0.001, lambda: self.book.expire(time.monotonic()))
