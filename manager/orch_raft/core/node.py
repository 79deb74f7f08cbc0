"""The member: the face of the core towards its driver."""

import random
from collections.abc import Sequence

from orch_raft.core import election, reads, reconfiguration, replication, transfer
from orch_raft.core.config import CoreConfig
from orch_raft.core.log import RaftLog
from orch_raft.core.log_view import LogView
from orch_raft.core.messages import NOBODY, Message
from orch_raft.core.ready import PeerStatus, Proposed, Ready, Recovered, Refused
from orch_raft.core.receiving import receive
from orch_raft.core.state import MemberState
from orch_raft.engine import MembershipChange, Role
from orch_raft.log.records import HardState
from orch_raft.membership import Membership, SnapshotMeta


class RaftNode:
    """One member of a Raft cluster, without input or output of its own.

    The driver hands in ticks (`tick`), messages (`step`), proposals and reads, and after each burst of those takes a
    `Ready` and does what it says:

    1. Send `messages`. Replication need not wait for the leader's own disk (thesis, section 10.2.1).
    2. Install `snapshot` if there is one, then write `hard_state` and `entries` as one batch, hard state first, and
       sync. Several Readys may share a batch and a sync, in their order. After a failed sync the process must end.
    3. When that Ready and every earlier one are on stable storage: call `persisted(ready)`, then send
       `messages_after_sync`. Where nothing is to be written and nothing earlier is outstanding this is at once.
    4. Apply `committed` in order and call `applied(index)`. This need not wait for 2 or 3, but for the restored
       snapshot. The core itself applies changes of membership, within `applied`.
    5. Take own snapshots at or before `persisted_index`, so that the log on disk never ends before its snapshot.

    The next Ready may be taken before the last one is persisted or applied. Messages may be lost, doubled, delayed
    and reordered; who sent them must be true. A `SNAPSHOT` message comes out for a follower that needs one: the
    driver sends the newest snapshot it has, then calls `report_snapshot`; at the receiver it is stepped once it has
    arrived whole and lies aside.

    All methods return at once and may be called in any state. None raises for what other members send.
    """

    def __init__(
        self, config: CoreConfig, recovered: Recovered, rng: random.Random, log_view: LogView | None = None
    ) -> None:
        """Take up a member's state; it starts as a follower.

        Args:
            config: bounds and timers.
            recovered: what was on disk; the state machine stands at the snapshot.
            rng: for the election timer, the only use of chance.
            log_view: older entries; without it a follower that needs them gets a snapshot.

        Raises:
            ValueError: what was recovered contradicts itself.
        """
        self._state = MemberState(
            config=config,
            log=RaftLog(recovered, log_view, config.memory_bytes),
            membership=recovered.snapshot.membership,
            applied_membership=recovered.snapshot.membership,
            rng=rng,
            term=max(recovered.hard_state.term, recovered.snapshot.term),
            vote=recovered.hard_state.vote,
        )
        state = self._state
        if state.log.last_term > state.term:
            # The hard state stands before the entries in each batch, so this is no torn write.
            raise ValueError(f"the log has entries of term {state.log.last_term}, after the last term {state.term}")
        if recovered.hard_state.term < state.term:
            state.vote = NOBODY
        reconfiguration.refresh(state)
        state.reset_election_timer()
        self._told_hard_state = recovered.hard_state
        self._told_standing = self._standing()

    # ---- what happens ----------------------------------------------------------------------------

    def tick(self) -> None:
        """A period of time has passed."""
        state = self._state
        state.now += 1
        if state.leads:
            transfer.tick(state)
            replication.tick(state)
        else:
            election.tick(state)

    def step(self, message: Message) -> None:
        """A message has arrived, from the member it names as its sender."""
        receive(self._state, message)

    def persisted(self, ready: Ready) -> None:
        """This Ready, and all before it, are on stable storage. May be called for the last of several alone."""
        state = self._state
        state.log.persisted_to(ready.last_index, ready.last_term)
        if state.leads:
            replication.own_entries_persisted(state)
        elif ready.term == state.term:
            election.own_vote_persisted(state)

    def applied(self, index: int) -> None:
        """Every committed entry up to `index` was applied to the state machine.

        Raises:
            ApplyFailed: one of them changes the members in a way that a newer version knows.
        """
        state = self._state
        reconfiguration.apply_up_to(state, index)

    def snapshot_persisted(self, meta: SnapshotMeta) -> None:
        """The snapshot that a Ready told to install is durable, and the state machine was restored from it."""
        state = self._state
        state.log.applied_to(meta.index)
        if meta.index == state.installing:
            state.installing = 0

    def snapshot_taken(self, meta: SnapshotMeta) -> None:
        """This member's own snapshot is durable. Followers that need one are sent it from now on."""
        if meta.index > self._state.log.snapshot.index:
            self._state.log.snapshot = meta

    def compacted(self, first_index: int) -> None:
        """The log on disk begins with this entry now; what came before it is covered by a durable snapshot."""
        self._state.log.compacted(first_index)

    def report_unreachable(self, raft_id: int) -> None:
        """Messages to a member were dropped."""
        replication.report_unreachable(self._state, raft_id)

    def report_snapshot(self, raft_id: int, *, ok: bool) -> None:
        """A snapshot was handed to a member whole, or could not be. To be called once for each SNAPSHOT message."""
        replication.report_snapshot(self._state, raft_id, ok=ok)

    # ---- what is asked for -----------------------------------------------------------------------

    def propose(self, data: Sequence[bytes]) -> Proposed | Refused:
        """Take commands into the log, all or none. Batch them: the cost is per call, hardly per command."""
        return replication.propose(self._state, data)

    def propose_membership(self, change: MembershipChange) -> Proposed | Refused:
        """Take a change of the members into the log; it is final once it is applied."""
        return reconfiguration.propose(self._state, change)

    def read_index(self, context: bytes) -> Refused | None:
        """Ask for an index at which a read is linearizable, on the leader or, through it, on any other member.

        The answer comes as `Ready.reads` or `Ready.refused_reads`; on a member that does not lead it may be lost, so
        ask again with the same context after a while. `context` must be new in every life of every member, or an old
        answer could count.
        """
        return reads.ask(self._state, context)

    def transfer(self, raft_id: int) -> Refused | None:
        """Hand leadership to a voter. Given up after `election_ticks`; proposals are refused until then."""
        return transfer.begin(self._state, raft_id)

    def campaign(self) -> None:
        """Stand for election now, as if the timer had run out; for tests."""
        if election.may_campaign(self._state):
            election.campaign(self._state)

    def announce_commit(self) -> None:
        """Tell followers of the commit index now, those that do not know it.

        To be called some 2 ms after `commit_unannounced` turns true.
        """
        replication.announce_commit(self._state)

    # ---- what comes out --------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether a Ready would hold anything."""
        self._flush()
        state, outbox, log = self._state, self._state.outbox, self._state.log
        return bool(
            outbox.messages
            or log.has_unwritten
            or outbox.after_sync
            or (log.has_committed and not state.installing)
            or outbox.reads
            or outbox.refused_reads
            or outbox.snapshot
            or self._hard_state_changed()
            or self._told_standing != self._standing()
        )

    def ready(self) -> Ready:
        """The work since the last one."""
        self._flush()
        state, outbox, log = self._state, self._state.outbox, self._state.log
        told = self._told_hard_state
        hard_state: HardState | None = None
        if self._hard_state_changed():
            hard_state = self._told_hard_state = HardState(state.term, state.vote, log.commit)
        entries = log.take_unwritten()
        ready = Ready(
            hard_state=hard_state,
            snapshot=outbox.snapshot,
            entries=entries,
            must_sync=bool(entries)
            or outbox.snapshot is not None
            or (state.term, state.vote) != (told.term, told.vote),
            messages=outbox.messages,
            messages_after_sync=outbox.after_sync,
            committed=log.take_committed(state.config.max_apply_bytes)
            if log.has_committed and not state.installing
            else (),
            reads=outbox.reads,
            refused_reads=outbox.refused_reads,
            role=state.role,
            term=state.term,
            leader_id=state.leader_id,
            removed=state.removed,
            last_index=log.last_index,
            last_term=log.last_term,
        )
        self._told_standing = self._standing()
        outbox.clear()
        return ready

    def _flush(self) -> None:
        """Send what several steps may have made due, once."""
        state = self._state
        if not state.leads:
            return
        if reads.may_begin_round(state):
            reads.begin_round(state)
            replication.send_heartbeats(state)
            reads.confirm(state)
        if state.replication_due:
            replication.replicate(state)
            if not state.config.lazy_commit:
                replication.announce_commit(state)

    def _hard_state_changed(self) -> bool:
        told, state = self._told_hard_state, self._state
        return told.commit != state.log.commit or told.term != state.term or told.vote != state.vote

    def _standing(self) -> tuple[Role, int, int, bool]:
        state = self._state
        return (state.role, state.term, state.leader_id, state.removed)

    # ---- what can be seen ------------------------------------------------------------------------

    @property
    def raft_id(self) -> int:
        """This member."""
        return self._state.raft_id

    @property
    def role(self) -> Role:
        """What it is now."""
        return self._state.role

    @property
    def term(self) -> int:
        """Its term."""
        return self._state.term

    @property
    def leader_id(self) -> int:
        """Who leads in that term, 0 while unknown."""
        return self._state.leader_id

    @property
    def commit_index(self) -> int:
        """The last entry it knows to be committed."""
        return self._state.log.commit

    @property
    def applied_index(self) -> int:
        """The last entry that was applied."""
        return self._state.log.applied

    @property
    def persisted_index(self) -> int:
        """The last entry known to be on this member's disk; it may lie before the applied one."""
        return self._state.log.persisted

    @property
    def last_index(self) -> int:
        """The last entry of its log."""
        return self._state.log.last_index

    @property
    def uncommitted_bytes(self) -> int:
        """Data of the entries after the commit index; what a batching driver looks at."""
        return self._state.log.uncommitted_bytes

    @property
    def commit_unannounced(self) -> bool:
        """Whether it leads and some follower has not been told of the commit index (`CoreConfig.lazy_commit`)."""
        return self._state.leads and replication.commit_unannounced(self._state)

    @property
    def membership(self) -> Membership:
        """The members as of `applied_index`, which is what a snapshot of the state there must hold."""
        return self._state.applied_membership

    @property
    def membership_in_force(self) -> Membership:
        """The members that count now, by all changes in the log, of which the last may still be taken back."""
        return self._state.membership

    @property
    def removed(self) -> bool:
        """Whether this member was removed, for good."""
        return self._state.removed

    @property
    def transfer_target(self) -> int:
        """Who leadership is being handed to, 0 for nobody."""
        return self._state.transfer_target

    def is_caught_up(self, raft_id: int) -> bool:
        """Whether a member follows closely enough to be made a voter. False on a member that does not lead."""
        return reconfiguration.is_caught_up(self._state, raft_id)

    def peers(self) -> Sequence[PeerStatus]:
        """How the leader sees each other member; empty on a member that does not lead."""
        state = self._state
        return [
            PeerStatus(
                raft_id=peer.raft_id,
                match=peer.match,
                pace=peer.pace,
                reachable=state.is_reachable(peer),
                silent_ticks=state.now - peer.contact_tick,
            )
            for peer in state.peers.values()
            if peer.raft_id != state.raft_id
        ]
