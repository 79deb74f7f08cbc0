"""The engine of a replicated cluster, of one member or several: what the rest of a manager sees of consensus.

It opens the state folder, runs the member's turns (`turns`), and ends them; between the two it lets callers propose,
read, and change who is a member.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from orch_raft.core.config import CoreConfig
from orch_raft.core.messages import NOBODY, Message
from orch_raft.core.node import RaftNode
from orch_raft.core.ready import Recovered, RefusalReason, Refused
from orch_raft.engine import (
    Applied,
    EngineStatus,
    LeadershipChange,
    Member,
    MembershipChange,
    Observer,
    PeerProgress,
    Role,
    StateMachine,
)
from orch_raft.errors import (
    EngineStopped,
    FatalError,
    MembershipError,
    NotLeader,
    ProposalError,
    ProposalQueueFull,
    ProposalTooLarge,
    ReadUnconfirmed,
)
from orch_raft.leadership import LeadershipFeed
from orch_raft.limits import TICKS_PER_HEARTBEAT, EngineOptions
from orch_raft.log.files import Files
from orch_raft.log_worker import Worker
from orch_raft.proposals import Proposal
from orch_raft.storage import RecoveredState, Storage, open_storage
from orch_raft.transport.seam import Transport
from orch_raft.turns import Turns

_logger = logging.getLogger(__name__)
#: A leader that is stopped hands over first, if that takes no longer.
_FAREWELL_S = 1.0
_READ_TIMEOUT_S = 10.0


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
        self._storage: Storage | None = None
        self._disk: Worker | None = None
        self._turns: Turns | None = None
        self._member_id = 0
        self._stopping = False
        self._failure: FatalError | None = None
        self._stopped = asyncio.Event()
        self._leadership = LeadershipFeed()

    # ---- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """See `Engine.start`. Returns as follower, or as leader where this member is the only voter."""
        if self._disk is not None or self._stopping:
            raise EngineStopped("an engine is started once; make a new one")
        self._disk = Worker("raft-log")
        try:
            self._storage, recovered = await self._disk.run(self._open)
            turns = self._turns = await self._recover(recovered)
            await self._catch_up(turns)
        except BaseException as error:
            if isinstance(error, FatalError):
                self._fail(error)
            await self._release()
            raise
        _logger.info(
            "consensus runs member=%x role=%s term=%d applied_index=%d members=%d folder=%s",
            *(self._member_id, turns.standing.role.value, turns.standing.term, turns.applier.index),
            *(len(turns.membership.members), self._folder),
        )

    async def stop(self) -> None:
        """See `Engine.stop`. A leader hands over first, where somebody can take over at once."""
        if self._stopping:
            await self._stopped.wait()
            return
        await self._hand_over()
        self._stopping = True
        if self._turns is not None:
            await self._turns.finish(EngineStopped("the engine was stopped"))
        await self._release()
        if self._turns is not None and self._failure is None:
            self._turns.standing.end(Role.STOPPED)
        self._leadership.close()
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
            turns = self._check_may_propose(data)
            proposal = Proposal(data, asyncio.get_running_loop().create_future(), timeout_s)
            turns.book.add(proposal)
            turns.expect_expiry(timeout_s)
            turns.wake()
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
        turns = self._check_runs()
        reader: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        turns.barriers.add(reader)
        turns.wake()
        try:
            async with asyncio.timeout(timeout_s):
                return await reader
        except TimeoutError:
            raise ReadUnconfirmed(turns.standing.leader_id or None) from None

    def status(self) -> EngineStatus:
        """See `Engine.status`."""
        turns = self._turns
        if turns is None:
            return EngineStatus(
                member_id=self._member_id,
                role=Role.STOPPED if self._failure is None else Role.FAILED,
                term=0,
                leader_id=None,
                commit_index=0,
                applied_index=0,
                last_index=0,
                last_snapshot_index=0,
                waiting_proposals=0,
                members=(),
            )
        core, standing = turns.core, turns.standing
        peers = core.peers() if standing.role is Role.LEADER else ()
        return EngineStatus(
            member_id=self._member_id,
            role=standing.role,
            term=standing.term,
            leader_id=standing.leader_id or None,
            commit_index=core.commit_index,
            applied_index=turns.applier.index,
            last_index=core.last_index,
            last_snapshot_index=turns.snapshotter.last_index,
            waiting_proposals=len(turns.book),
            members=turns.membership.members,
            peers=tuple(
                PeerProgress(peer.raft_id, peer.match, peer.pace.value, peer.reachable, core.is_caught_up(peer.raft_id))
                for peer in peers
            ),
            removed_ids=turns.membership.removed_ids,
        )

    def leadership(self) -> AsyncIterator[LeadershipChange]:
        """See `Engine.leadership`."""
        return self._leadership.watch()

    async def change_membership(self, change: MembershipChange, *, timeout_s: float) -> Applied:
        """See `Engine.change_membership`."""
        turns = self._check_leads()
        proposed = turns.core.propose_membership(change)
        if isinstance(proposed, Refused):
            raise self._refusal(f"{change.action.value} member {change.member.raft_id:x}", proposed)
        proposal = Proposal(b"", asyncio.get_running_loop().create_future(), timeout_s)
        turns.book.put_in_flight(proposal, proposed.first_index, proposed.term)
        turns.expect_expiry(timeout_s)
        turns.wake()
        return await proposal.outcome

    async def transfer_leadership(self, to_raft_id: int, *, timeout_s: float) -> None:
        """See `Engine.transfer_leadership`.

        Raises:
            MembershipError: it cannot take over, or has not in time.
            NotLeader, EngineStopped: this member does not lead.
        """
        turns = self._check_leads()
        if (refused := turns.core.transfer(to_raft_id)) is not None:
            raise self._refusal(f"hand leadership to member {to_raft_id:x}", refused)
        turns.wake()
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
        turns = self._check_runs()
        storage, disk = self._opened()
        last_index = await disk.run(storage.change_data_key)
        turns.snapshotter.retire_keys_after(last_index)
        turns.wake()
        await turns.snapshotter.wait_keys_retired()
        self._check_runs()

    # ---- the transport's receiver ----------------------------------------------------------------

    def messages_arrived(self, messages: Sequence[Message]) -> None:
        """See `Receiver.messages_arrived`."""
        if (turns := self._turns) is not None and turns.running:
            turns.inbox.put(messages)
            turns.wake()

    async def wait_for_room(self) -> None:
        """See `Receiver.wait_for_room`."""
        if self._turns is not None:
            await self._turns.inbox.wait_for_room()

    def unreachable(self, raft_id: int) -> None:
        """See `Receiver.unreachable`."""
        if (turns := self._turns) is not None and turns.running:
            turns.core.report_unreachable(raft_id)
            turns.wake()

    def snapshot_sent(self, raft_id: int, *, ok: bool) -> None:
        """See `Receiver.snapshot_sent`."""
        self._observer.snapshot_sent(ok=ok)
        if (turns := self._turns) is not None and turns.running:
            turns.core.report_snapshot(raft_id, ok=ok)
            turns.wake()

    def member(self, raft_id: int) -> Member | None:
        """See `Receiver.member`."""
        return self._turns.membership.find(raft_id) if self._turns is not None else None

    def was_removed(self, raft_id: int) -> bool:
        """See `Receiver.was_removed`."""
        return self._turns is not None and raft_id in self._turns.membership.removed_ids

    async def receive_snapshot(self, message: Message, pieces: AsyncIterator[bytes]) -> None:
        """See `Receiver.receive_snapshot`."""
        await self._check_runs().incoming.receive(message, pieces)
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

    async def _recover(self, recovered: RecoveredState) -> Turns:
        """Restore the snapshot and hand what was on disk to the core."""
        storage, disk = self._opened()
        self._member_id = storage.member.raft_id
        if recovered.state is not None:
            (await disk.run(partial(self._state_machine.restore, recovered.state)))()
        config = CoreConfig(
            self._member_id,
            election_ticks=self._options.election_ticks,
            heartbeat_ticks=TICKS_PER_HEARTBEAT,
        )
        log = recovered.log
        core = RaftNode(config, Recovered(log.hard_state, recovered.snapshot, log.entries), self._rng)
        if self._transport is not None:
            self._transport.start(self._member_id, self)
        return Turns(
            core,
            storage,
            disk,
            self._state_machine,
            self._transport,
            snapshot=recovered.snapshot,
            options=self._options,
            observer=self._observer,
            feed=self._leadership,
            failed=self._fail,
        )

    async def _catch_up(self, turns: Turns) -> None:
        """Apply what is known to be committed. The only voter need not wait for an election."""
        turns.begin()
        while turns.applier.index < turns.core.commit_index and self._failure is None:  # noqa: ASYNC110
            await asyncio.sleep(0)  # turns do the work
        if [voter.raft_id for voter in turns.membership.voters] == [self._member_id]:
            turns.core.campaign()
            turns.wake()
            async for change in self._leadership.watch():
                if change.is_leader:
                    break
        else:
            turns.standing.announce_start()
        if self._failure is not None:
            raise self._failure

    async def _hand_over(self) -> None:
        turns = self._turns
        if turns is None or not turns.leads or self._failure is not None or len(turns.membership.voters) < 2:
            return
        try:
            await self.transfer_leadership(turns.best_successor(), timeout_s=_FAREWELL_S)
        except (MembershipError, ProposalError) as error:
            _logger.warning("stops as leader: %s", error)

    async def _release(self) -> None:
        """Close the folder and end the threads."""
        if self._turns is not None:
            self._turns.halt()
        if self._transport is not None:
            await self._transport.close()
        if self._turns is not None:
            await self._turns.close()
        if self._disk is not None:
            if self._storage is not None:
                storage, self._storage = self._storage, None
                if self._turns is not None:
                    await self._turns.writing.write_last()
                await self._disk.run(storage.close)
            self._disk.close()

    def _fail(self, error: FatalError) -> None:
        """It is over: nothing can be promised any more."""
        if self._failure is not None:
            return
        _logger.critical("consensus failed and must stop: %s", error)
        self._failure = error
        if self._turns is not None:
            self._turns.fail(error)
            self._turns.standing.end(Role.FAILED)
        self._leadership.close()
        self._stopped.set()

    # ---- checks ----------------------------------------------------------------------------------

    def _check_runs(self) -> Turns:
        if self._failure is not None:
            raise EngineStopped(f"it failed ({self._failure})")
        if self._stopping or self._turns is None or not self._turns.running:
            raise EngineStopped("it was stopped" if self._stopping else "it was not started")
        return self._turns

    def _check_leads(self) -> Turns:
        turns = self._check_runs()
        if not turns.standing.is_leader:
            leader_id = turns.standing.leader_id
            raise NotLeader(leader_id if leader_id not in {NOBODY, self._member_id} else None, self._member_id)
        return turns

    def _check_may_propose(self, data: bytes) -> Turns:
        turns = self._check_leads()
        if len(data) > self._options.max_proposal_bytes:
            raise ProposalTooLarge(len(data), self._options.max_proposal_bytes)
        if len(turns.book.waiting) >= self._options.max_waiting_proposals:
            raise ProposalQueueFull(len(turns.book.waiting))
        return turns

    def _refusal(self, what: str, refused: Refused) -> ProposalError | MembershipError:
        if refused.reason is RefusalReason.NOT_LEADER:
            leader_id = self._turns.standing.leader_id if self._turns is not None else NOBODY
            return NotLeader(leader_id or None, self._member_id)
        return MembershipError(f"cannot {what}: {refused}; nothing was changed")
