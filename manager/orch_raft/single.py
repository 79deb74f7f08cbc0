"""The engine of a cluster with one member: the durable log without replication.

The member is its own quorum, so an entry is committed when its own sync has returned. While one batch is being
synced in a worker thread the next one gathers: many writers share each sync.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from orch_raft.engine import (
    Applied,
    EngineStatus,
    LeadershipChange,
    MembershipChange,
    Observer,
    Role,
    SnapshotWriter,
    StateMachine,
)
from orch_raft.errors import (
    ApplyFailed,
    EngineStopped,
    FatalError,
    MembershipError,
    NotLeader,
    OutcomeUnknown,
    ProposalError,
    ProposalQueueFull,
    ProposalTooLarge,
)
from orch_raft.leadership import LeadershipFeed
from orch_raft.limits import EngineOptions
from orch_raft.log.files import Files
from orch_raft.log.records import Entry, EntryKind, HardState
from orch_raft.membership import Membership, SnapshotMeta
from orch_raft.storage import RecoveredState, Storage, open_storage

_logger = logging.getLogger(__name__)
#: Entries applied at start before the event loop gets a turn.
_REPLAY_SLICE = 500


@dataclass(slots=True, eq=False)
class _Proposal:
    data: bytes
    outcome: asyncio.Future[Applied]
    started_s: float


class SingleMemberEngine:
    """An `Engine` of one member. Used from one event loop."""

    def __init__(
        self,
        folder: Path,
        state_machine: StateMachine,
        *,
        options: EngineOptions | None = None,
        observer: Observer | None = None,
        files: Files | None = None,
    ) -> None:
        self._folder = folder
        self._state_machine = state_machine
        self._options = options or EngineOptions()
        self._observer = observer or Observer()
        self._files = files
        self._storage: Storage | None = None
        self._membership = Membership(())
        self._member_id = 0
        self._role = Role.STOPPED
        self._term = 0
        self._applied_index = 0
        self._applied_term = 0
        self._last_index = 0
        self._snapshot_index = 0
        self._bytes_since_snapshot = 0
        self._waiting: deque[_Proposal] = deque()
        self._work = asyncio.Event()
        self._stopping = False
        self._failure: FatalError | None = None
        self._stopped = asyncio.Event()
        self._leadership = LeadershipFeed()
        self._log_thread = ThreadPoolExecutor(1, "raft-log")
        self._snapshot_thread = ThreadPoolExecutor(1, "raft-snapshot")
        self._writer: asyncio.Task[None] | None = None
        self._snapshotter: asyncio.Task[None] | None = None

    # ---- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """See `Engine.start`."""
        if self._writer is not None or self._stopping:
            raise EngineStopped("an engine is started once; make a new one")
        loop = asyncio.get_running_loop()
        try:
            self._storage, recovered = await loop.run_in_executor(self._log_thread, self._open)
            await self._recover(recovered)
        except BaseException as error:
            self._release()
            if isinstance(error, FatalError):
                self._fail(error)
            raise
        self._role = Role.LEADER
        self._leadership.publish(LeadershipChange(self._term, is_leader=True, leader_id=self._member_id))
        self._writer = asyncio.create_task(self._write_batches(), name="raft-writer")
        _logger.info("leads term=%d applied_index=%d folder=%s", self._term, self._applied_index, self._folder)

    async def stop(self) -> None:
        """See `Engine.stop`."""
        if self._stopping:
            await self._stopped.wait()
            return
        self._stopping = True
        self._work.set()
        if self._writer is not None:
            await self._writer
        if self._snapshotter is not None:
            await asyncio.wait([self._snapshotter])
        self._refuse_waiting(EngineStopped("the engine was stopped"))
        self._release()
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
            loop = asyncio.get_running_loop()
            proposal = _Proposal(data, loop.create_future(), time.monotonic())
            self._waiting.append(proposal)
            self._work.set()
            timer = loop.call_later(timeout_s, _expire, proposal, timeout_s)
            try:
                applied = await proposal.outcome
            finally:
                timer.cancel()
        except ProposalError as error:
            self._observer.proposal_failed(type(error).__name__)
            raise
        self._observer.committed(time.monotonic() - proposal.started_s)
        return applied

    async def read_barrier(self) -> int:
        """See `Engine.read_barrier`. One member needs no round: what is committed here is all there is."""
        self._check_leads()
        return self._applied_index

    def status(self) -> EngineStatus:
        """See `Engine.status`."""
        return EngineStatus(
            member_id=self._member_id,
            role=self._role,
            term=self._term,
            leader_id=self._member_id if self._role is Role.LEADER else None,
            commit_index=self._applied_index,
            applied_index=self._applied_index,
            last_index=self._last_index,
            last_snapshot_index=self._snapshot_index,
            waiting_proposals=len(self._waiting),
            members=self._membership.members,
        )

    def leadership(self) -> AsyncIterator[LeadershipChange]:
        """See `Engine.leadership`."""
        return self._leadership.watch()

    async def change_membership(self, change: MembershipChange, *, timeout_s: float) -> Applied:
        """Always refused: this engine serves a cluster of one member.

        Raises:
            MembershipError: always.
        """
        del timeout_s
        raise MembershipError(
            f"cannot {change.action.value} member {change.member.raft_id:x}: this engine serves a single manager; "
            f"run the cluster with one manager, or start the replicated engine"
        )

    async def transfer_leadership(self, to_raft_id: int, *, timeout_s: float) -> None:
        """Always refused: there is nobody else.

        Raises:
            MembershipError: always.
        """
        del timeout_s
        raise MembershipError(
            f"cannot hand leadership to member {to_raft_id:x}: this manager is the only one; add another one first"
        )

    # ---- inside ----------------------------------------------------------------------------------

    def _release(self) -> None:
        """Close the folder and end the threads, which are idle now."""
        if self._storage is not None:
            self._storage.close()
            self._storage = None
        self._log_thread.shutdown(wait=False)
        self._snapshot_thread.shutdown(wait=False)

    def _open(self) -> tuple[Storage, RecoveredState]:
        return open_storage(self._folder, files=self._files, options=self._options, observer=self._observer)

    async def _recover(self, recovered: RecoveredState) -> None:
        """Restore the snapshot, begin a term, apply every entry."""
        assert self._storage is not None
        loop = asyncio.get_running_loop()
        self._membership = recovered.snapshot.membership
        if len(self._membership.members) != 1 or any(e.kind is EntryKind.MEMBERSHIP for e in recovered.log.entries):
            raise MembershipError(
                f"cannot serve the cluster in {self._folder} alone: it has several managers; "
                f"start the replicated engine"
            )
        self._member_id = self._membership.members[0].raft_id
        self._snapshot_index = self._applied_index = self._last_index = recovered.snapshot.index
        self._applied_term = recovered.snapshot.term
        if recovered.state is not None:
            install = await loop.run_in_executor(self._log_thread, self._state_machine.restore, recovered.state)
            install()
        entries = [entry for entry in recovered.log.entries if entry.index > recovered.snapshot.index]
        if entries:
            self._last_index = entries[-1].index
        self._term = max(recovered.log.hard_state.term, recovered.snapshot.term) + 1
        self._last_index += 1
        beginning = Entry(self._last_index, self._term, EntryKind.NEW_TERM, b"")
        hard_state = HardState(self._term, vote=self._member_id, commit=self._last_index - 1)
        await loop.run_in_executor(self._log_thread, self._storage.log.append, (beginning,), hard_state)
        for position, entry in enumerate((*entries, beginning), start=1):
            self._apply(entry)
            if position % _REPLAY_SLICE == 0:
                await asyncio.sleep(0)

    def _check_leads(self) -> None:
        if self._failure is not None:
            raise EngineStopped(f"it failed ({self._failure})")
        if self._stopping or self._writer is None:
            raise EngineStopped("it was stopped" if self._stopping else "it was not started")
        if self._role is not Role.LEADER:
            raise NotLeader(None, self._member_id)

    def _check_may_propose(self, data: bytes) -> None:
        self._check_leads()
        if len(data) > self._options.max_proposal_bytes:
            raise ProposalTooLarge(len(data), self._options.max_proposal_bytes)
        if len(self._waiting) >= self._options.max_waiting_proposals:
            raise ProposalQueueFull(len(self._waiting))

    async def _write_batches(self) -> None:
        """Write what waits, batch by batch, until stopped or failed."""
        assert self._storage is not None
        loop = asyncio.get_running_loop()
        while not self._stopping:
            await self._work.wait()
            self._work.clear()
            while proposals := self._take_batch():
                entries = [
                    Entry(self._last_index + position, self._term, EntryKind.COMMAND, proposal.data)
                    for position, proposal in enumerate(proposals, start=1)
                ]
                self._last_index += len(entries)
                try:
                    await loop.run_in_executor(self._log_thread, self._storage.log.append, entries)
                    for proposal, entry in zip(proposals, entries, strict=True):
                        self._settle(proposal, entry)
                except FatalError as error:
                    self._fail(error, proposals)
                    return
                self._consider_snapshot()

    def _take_batch(self) -> list[_Proposal]:
        batch: list[_Proposal] = []
        size_bytes = 0
        while self._waiting and not self._stopping and len(batch) < self._options.max_batch_entries:
            proposal = self._waiting[0]
            if proposal.outcome.done():  # its caller has gone: it was never written
                self._waiting.popleft()
                continue
            size_bytes += len(proposal.data)
            if batch and size_bytes > self._options.max_batch_bytes:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _settle(self, proposal: _Proposal, entry: Entry) -> None:
        applied = Applied(entry.index, entry.term, self._apply(entry))
        if not proposal.outcome.done():
            proposal.outcome.set_result(applied)

    def _apply(self, entry: Entry) -> object:
        result: object = None
        if entry.kind is EntryKind.COMMAND:
            try:
                result = self._state_machine.apply(entry.index, entry.term, entry.data)
            except Exception as error:
                raise ApplyFailed(entry.index, error) from error
        self._applied_index, self._applied_term = entry.index, entry.term
        self._bytes_since_snapshot += len(entry.data)
        return result

    def _fail(self, error: FatalError, proposals: list[_Proposal] | None = None) -> None:
        """Stop for good: nothing can be promised any more."""
        _logger.critical("consensus failed and must stop: %s", error)
        self._failure = error
        for proposal in proposals or ():
            if not proposal.outcome.done():
                proposal.outcome.set_exception(OutcomeUnknown(str(error)))
        self._refuse_waiting(EngineStopped(f"it failed ({error})"))
        self._step_down(Role.FAILED)
        self._stopped.set()

    def _refuse_waiting(self, error: EngineStopped) -> None:
        while self._waiting:
            proposal = self._waiting.popleft()
            if not proposal.outcome.done():
                proposal.outcome.set_exception(error)

    def _step_down(self, role: Role) -> None:
        self._role = role
        self._leadership.publish(LeadershipChange(self._term, is_leader=False, leader_id=None))
        self._leadership.close()

    # ---- snapshots -------------------------------------------------------------------------------

    def _consider_snapshot(self) -> None:
        due = (
            self._applied_index - self._snapshot_index >= self._options.snapshot_every_entries
            or self._bytes_since_snapshot >= self._options.snapshot_every_bytes
        )
        if due and (self._snapshotter is None or self._snapshotter.done()):
            meta = SnapshotMeta(self._applied_index, self._applied_term, self._membership)
            self._snapshot_index = meta.index
            self._bytes_since_snapshot = 0
            write_state = self._state_machine.snapshot()
            self._snapshotter = asyncio.create_task(self._save_snapshot(meta, write_state), name="raft-snapshot")

    async def _save_snapshot(self, meta: SnapshotMeta, write_state: SnapshotWriter) -> None:
        """Save a snapshot, then drop the log it makes needless.

        A failure costs no promise, as the log is kept: it is logged, and the next snapshot tries again.
        """
        assert self._storage is not None
        loop = asyncio.get_running_loop()
        started_s = time.monotonic()
        try:
            size_bytes = await loop.run_in_executor(
                self._snapshot_thread, self._storage.snapshots.save, meta, write_state
            )
        except Exception:
            _logger.exception("snapshot failed index=%d; the log is kept, and grows until one succeeds", meta.index)
            self._observer.snapshot_failed()
            return
        self._observer.snapshot_written(time.monotonic() - started_s, size_bytes)
        _logger.info("snapshot written index=%d term=%d bytes=%d", meta.index, meta.term, size_bytes)
        through_index = meta.index - self._options.keep_entries
        try:
            await loop.run_in_executor(self._log_thread, self._storage.log.release, through_index)
        except FatalError as error:
            self._fail(error)


def _expire(proposal: _Proposal, timeout_s: float) -> None:
    if not proposal.outcome.done():
        proposal.outcome.set_exception(OutcomeUnknown(f"it was not committed within {timeout_s:g} s"))
