"""What goes in at the start and comes out at each turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from orch_raft.core.messages import Message
from orch_raft.core.progress import Pace
from orch_raft.engine import Role
from orch_raft.log.records import Entry, HardState
from orch_raft.membership import Membership, SnapshotMeta


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a member had on disk.

    Attributes:
        hard_state: the latest one; `HardState()` for a member that joins.
        snapshot: the newest one, from which the state machine was restored. A joiner has none: `NO_SNAPSHOT`.
        entries: those of the log in order, without gaps. They may begin at or before the snapshot's index, or be none.
    """

    hard_state: HardState
    snapshot: SnapshotMeta
    entries: Sequence[Entry] = ()


#: Stands for the snapshot of a member that has none yet: it belongs to no cluster and never campaigns.
NO_SNAPSHOT = SnapshotMeta(0, 0, Membership(()))


@dataclass(frozen=True, slots=True)
class ConfirmedRead:
    """A read that may be served once everything up to `index` is applied here."""

    context: bytes
    index: int


@dataclass(frozen=True, slots=True)
class Proposed:
    """Entries that a leader took into its log.

    They may still be lost: only a committed entry of this term and index counts.
    """

    term: int
    first_index: int
    last_index: int


class RefusalReason(Enum):
    """Why nothing was done."""

    NOT_LEADER = "this member does not lead"
    TRANSFERRING = "leadership is being handed to another member"
    TOO_MUCH_UNCOMMITTED = "too much is uncommitted already"
    TOO_MANY_READS = "too many reads wait already"
    NO_LEADER = "no leader is known"
    #: A new leader first commits an entry of its own term.
    TERM_NOT_COMMITTED = "the leader is new and has committed nothing yet"
    CHANGE_IN_FLIGHT = "another change of the members is under way"
    CHANGE_INVALID = "the change does not fit the members"
    LEARNER_BEHIND = "the learner has not caught up"
    QUORUM_AT_RISK = "the voters that can be reached would be no quorum afterwards"
    CANNOT_TAKE_OVER = "the member cannot take over"


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was done, and nothing of it will take effect.

    Attributes:
        reason: the class of reason.
        detail: a clause for people, such as "it is no member".
    """

    reason: RefusalReason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}" if self.detail else self.reason.value


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """How the leader sees another member.

    Attributes:
        raft_id: which one.
        match: last index known to be on its disk.
        pace: how it is sent to.
        reachable: it was heard of within an election timeout.
        silent_ticks: since it was heard of, or since the leader began to lead.
    """

    raft_id: int
    match: int
    pace: Pace
    reachable: bool
    silent_ticks: int


@dataclass(frozen=True, slots=True)
class Ready:
    """One turn's work for the driver, in the order of the attributes. See `RaftNode` for the rules.

    Attributes:
        hard_state: changed term, vote or commit, to be written before `entries` in the same batch. None: unchanged.
        snapshot: one that arrived and counts: make it the member's snapshot, reset the log to go on after it, restore
            the state machine from it, then call `RaftNode.snapshot_persisted`.
        entries: to append. One at or before an index written earlier replaces that one and all after it.
        must_sync: term, vote, entries or snapshot changed. When False a changed commit index may be written without a
            sync, or with the next batch.
        messages: may leave at once.
        messages_after_sync: may leave only when this and every earlier Ready are on stable storage.
        committed: entries to apply, in order, each once.
        reads: confirmed reads of this member.
        refused_reads: contexts of reads of this member that found no leader to confirm them; ask again.
        role: what this member is now.
        term: its term.
        leader_id: who leads in that term, 0 while unknown.
        removed: this member was removed from the cluster, for good.
        last_index: last entry of the log, with this Ready's entries.
        last_term: its term.
    """

    hard_state: HardState | None
    snapshot: SnapshotMeta | None
    entries: Sequence[Entry]
    must_sync: bool
    messages: Sequence[Message]
    messages_after_sync: Sequence[Message]
    committed: Sequence[Entry]
    reads: Sequence[ConfirmedRead]
    refused_reads: Sequence[bytes]
    role: Role
    term: int
    leader_id: int
    removed: bool
    last_index: int
    last_term: int
