"""The interface between a consensus engine and those who write through it.

Any engine that keeps these promises may stand behind the store:

- `propose` returns only after the entry is on stable storage of a quorum *and* applied here.
- Entries are applied in order, each once per life of the process, the same on every member.
- A member announces that it leads only after every entry of its log is applied.
- `OutcomeUnknown` is the only error after which a proposal may still take effect.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import BinaryIO, Protocol

#: Writes a consistent view of the state to a stream. Called once, in a worker thread.
SnapshotWriter = Callable[[BinaryIO], None]
#: Puts a state that was read from a snapshot in the place of the present one. Called once, on the event loop.
SnapshotInstaller = Callable[[], None]


class Role(Enum):
    """What a member is in its term (Raft paper, figure 4; PRE_CANDIDATE from the thesis, section 9.6)."""

    STOPPED = "stopped"
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"
    FAILED = "failed"


class Suffrage(Enum):
    """Whether a member counts towards the quorum."""

    VOTER = "voter"
    LEARNER = "learner"


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the cluster.

    Attributes:
        raft_id: random number of 63 bits, never used again once removed.
        node_id: id of the node in the store and in its certificate.
        address: `host:port` where other members reach it; empty while it needs none.
        suffrage: voter, or learner that only follows.
    """

    raft_id: int
    node_id: str
    address: str = ""
    suffrage: Suffrage = Suffrage.VOTER


class MembershipAction(Enum):
    """What a change of membership does. One change is in flight at a time."""

    ADD_LEARNER = "add learner"
    PROMOTE = "promote learner to voter"
    DEMOTE = "demote voter to learner"
    REMOVE = "remove"
    UPDATE_ADDRESS = "update address"


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """One change of one member."""

    action: MembershipAction
    member: Member


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a proposal.

    Attributes:
        index: its place in the log.
        term: term of the leader that wrote it.
        result: what the state machine's `apply` returned for it.
    """

    index: int
    term: int
    result: object


@dataclass(frozen=True, slots=True)
class LeadershipChange:
    """Who leads now, as this member knows it.

    Attributes:
        term: the present term.
        is_leader: True when this member leads and has applied every entry of its log.
        leader_id: raft id of the leader, None when none is known.
    """

    term: int
    is_leader: bool
    leader_id: int | None


@dataclass(frozen=True, slots=True)
class PeerProgress:
    """How the leader sees another member.

    Attributes:
        raft_id: which one.
        match_index: last entry known to be on its disk.
        pace: how it is sent to: "probe", "replicate" or "snapshot".
        reachable: it was heard of within an election timeout.
        caught_up: it follows closely enough to be made a voter.
    """

    raft_id: int
    match_index: int
    pace: str
    reachable: bool
    caught_up: bool


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A view of the engine at one moment, for status pages and metrics."""

    member_id: int
    role: Role
    term: int
    leader_id: int | None
    commit_index: int
    applied_index: int
    last_index: int
    last_snapshot_index: int
    waiting_proposals: int
    members: tuple[Member, ...]
    #: On the leader alone: how far the others have come.
    peers: tuple[PeerProgress, ...] = ()
    #: Raft ids that belonged to members once.
    removed_ids: frozenset[int] = frozenset()


class StateMachine(Protocol):
    """What the log is applied to. Every method must depend on its arguments and the state alone."""

    def apply(self, index: int, term: int, data: bytes) -> object:
        """Apply a committed entry. Called on the event loop, in order.

        A raise is fatal (`ApplyFailed`): a refusal must be a result.
        """
        ...

    def snapshot(self) -> SnapshotWriter:
        """Take a consistent view, cheaply, on the event loop; return what writes it out, in a worker thread."""
        ...

    def restore(self, stream: BinaryIO) -> SnapshotInstaller:
        """Read a snapshot, in a worker thread, without touching the live state; return what installs it."""
        ...


class Observer:
    """Receives measurements; the methods do nothing until overridden. They must be quick and must not raise.

    `synced`, `log_rolled` and `snapshot_written` are called from worker threads, the others on the event loop.
    """

    def committed(self, duration_s: float) -> None:
        """A proposal was committed and applied, this long after it was handed in."""

    def synced(self, duration_s: float, entries: int, size_bytes: int) -> None:
        """A batch was written and synced."""

    def log_rolled(self, segments: int) -> None:
        """A new segment was begun, so that this many exist."""

    def snapshot_written(self, duration_s: float, size_bytes: int) -> None:
        """A snapshot was written, synced and named."""

    def snapshot_failed(self) -> None:
        """A snapshot could not be written; the log is kept."""

    def proposal_failed(self, error_name: str) -> None:
        """A proposal raised an error of this name."""

    def election_begun(self) -> None:
        """This member stands for election."""

    def loop_stalled(self, duration_s: float) -> None:
        """The event loop did nothing for so long."""

    def snapshot_sent(self, *, ok: bool) -> None:
        """A snapshot arrived at another member, or could not be sent."""

    def snapshot_installed(self, duration_s: float) -> None:
        """A snapshot of the leader took the place of this member's state."""


class Engine(Protocol):
    """A replicated log with one writer at a time."""

    async def start(self) -> None:
        """Recover state from disk and take part.

        Raises:
            StorageError: the state folder cannot be used; nothing in it was changed.
            FatalError: it failed while being recovered.
        """
        ...

    async def stop(self) -> None:
        """Finish the write under way, drop the others as `OutcomeUnknown`, release the folder. May be called twice."""
        ...

    async def wait_stopped(self) -> None:
        """Return when the engine was stopped.

        Raises:
            FatalError: it stopped by itself; the process must end.
        """
        ...

    async def propose(self, data: bytes, *, timeout_s: float) -> Applied:
        """Write one entry; return once it is durable and applied.

        Raises:
            NotLeader, ProposalTooLarge, ProposalQueueFull, EngineStopped: nothing was written.
            OutcomeUnknown: leadership, the engine or `timeout_s` ended before the outcome was known.
        """
        ...

    async def read_barrier(self) -> int:
        """Return an index at which a local read is linearizable; everything up to it is applied.

        Raises:
            NotLeader, ReadUnconfirmed, EngineStopped: this member cannot vouch for its state.
        """
        ...

    def status(self) -> EngineStatus:
        """The state of the engine now."""
        ...

    def leadership(self) -> AsyncIterator[LeadershipChange]:
        """Who leads now, then each change, until the engine ends. A slow reader sees the latest change only."""
        ...

    async def change_membership(self, change: MembershipChange, *, timeout_s: float) -> Applied:
        """Change one member through the log.

        Raises:
            MembershipError: the change is refused; nothing was changed.
            ProposalError: as for `propose`.
        """
        ...

    async def transfer_leadership(self, to_raft_id: int, *, timeout_s: float) -> None:
        """Hand leadership to another voter.

        Raises:
            MembershipError: it cannot take over.
        """
        ...
