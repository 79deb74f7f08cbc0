"""What a member holds in memory, shared by the files that each carry out one idea of Raft on it."""

import random
from dataclasses import dataclass, field

from orch_raft.core.config import CoreConfig
from orch_raft.core.log import RaftLog
from orch_raft.core.messages import NOBODY, Message, MessageKind
from orch_raft.core.progress import Progress
from orch_raft.core.quorum import quorum
from orch_raft.core.ready import ConfirmedRead
from orch_raft.engine import Role
from orch_raft.membership import Membership, SnapshotMeta


@dataclass(slots=True)
class Outbox:
    """What the next Ready will hold, beside what the log says.

    Attributes:
        messages: may leave at once.
        after_sync: may leave once what they depend on is on disk.
        reads: confirmed reads of this member.
        refused_reads: reads of this member that found no leader.
        snapshot: one to install.
    """

    messages: list[Message] = field(default_factory=list)
    after_sync: list[Message] = field(default_factory=list)
    reads: list[ConfirmedRead] = field(default_factory=list)
    refused_reads: list[bytes] = field(default_factory=list)
    snapshot: SnapshotMeta | None = None

    def clear(self) -> None:
        """Begin the next turn."""
        self.messages = []
        self.after_sync = []
        self.reads = []
        self.refused_reads = []
        self.snapshot = None


@dataclass(slots=True)
class ReadRequest:
    """A read that waits on the leader.

    Attributes:
        context: the reader's name for it.
        reader_id: the member that asked.
    """

    context: bytes
    reader_id: int


@dataclass(slots=True)
class ReadQueue:
    """Reads on the leader (`reads`).

    Attributes:
        waiting: those that joined no round yet.
        confirming: those of the round under way.
        round: number of the latest round of this leadership.
        index: the commit index when it began.
    """

    waiting: list[ReadRequest] = field(default_factory=list)
    confirming: list[ReadRequest] = field(default_factory=list)
    round: int = 0
    index: int = 0


@dataclass(slots=True, eq=False)
class MemberState:
    """One member's state.

    Attributes:
        membership: the members that count, by all changes in the log.
        applied_membership: those as of the applied index, which are final.
        voter_ids: the voters of `membership`.
        known_changes: where the changes stand in the log that `membership` has and `applied_membership` has not.
        term, vote: as in the Raft paper, figure 2; on disk before anything that follows from them leaves.
        now: ticks since the start.
        election_elapsed: ticks since the timer of elections was reset; by word from a leader, a vote, a campaign.
        election_timeout: where it runs out; drawn anew each time.
        heartbeat_elapsed: ticks since the leader's last heartbeat.
        votes: answers in the present campaign.
        transferred: this campaign was asked for by the present leader.
        peers: the leader's view of each member, itself included.
        transfer_target: who is to take over.
        transfer_elapsed: ticks since that was asked for.
        installing: index of a snapshot that was handed out and is not installed yet.
        removed: this member was removed, for good.
        replication_due: the leader has something new to send.
    """

    config: CoreConfig
    log: RaftLog
    membership: Membership
    applied_membership: Membership
    rng: random.Random
    term: int
    vote: int
    role: Role = Role.FOLLOWER
    leader_id: int = NOBODY
    now: int = 0
    election_elapsed: int = 0
    election_timeout: int = 0
    heartbeat_elapsed: int = 0
    votes: dict[int, bool] = field(default_factory=dict)
    transferred: bool = False
    peers: dict[int, Progress] = field(default_factory=dict)
    transfer_target: int = NOBODY
    transfer_elapsed: int = 0
    installing: int = 0
    removed: bool = False
    replication_due: bool = False
    reads: ReadQueue = field(default_factory=ReadQueue)
    outbox: Outbox = field(default_factory=Outbox)
    voter_ids: frozenset[int] = frozenset()
    known_changes: list[int] = field(default_factory=list)

    @property
    def raft_id(self) -> int:
        """This member."""
        return self.config.raft_id

    @property
    def leads(self) -> bool:
        """Whether it leads in its term."""
        return self.role is Role.LEADER

    @property
    def quorum(self) -> int:
        """How many voters are a majority."""
        return quorum(len(self.voter_ids))

    @property
    def may_be_needed(self) -> bool:
        """Whether it votes, or will until its removal or demotion is committed.

        Until then nobody else may have the entry that says so, and then nobody else can be elected (thesis,
        section 4.2.2).
        """
        return self.raft_id in self.voter_ids or any(
            member.raft_id == self.raft_id for member in self.applied_membership.voters
        )

    def is_reachable(self, peer: Progress) -> bool:
        """Whether the leader has heard of a member within an election timeout."""
        return peer.raft_id == self.raft_id or self.now - peer.contact_tick <= self.config.election_ticks

    @property
    def has_committed_in_term(self) -> bool:
        """Whether the newest committed entry is of this term, so that nothing committed is unknown here."""
        return self.log.term(self.log.commit) == self.term

    def send(self, message: Message) -> None:
        """Send at once."""
        self.outbox.messages.append(message)

    def send_after_sync(self, message: Message) -> None:
        """Send once all that was handed to the disk until then is there."""
        self.outbox.after_sync.append(message)

    def reset_election_timer(self) -> None:
        """Wait for a whole timeout again, of another length, so that members seldom campaign at once (section 5.2)."""
        self.election_elapsed = 0
        self.election_timeout = self.rng.randrange(self.config.election_ticks, 2 * self.config.election_ticks)

    def refuse_read(self, request: ReadRequest) -> None:
        """Tell a reader to ask again."""
        if request.reader_id == self.raft_id:
            self.outbox.refused_reads.append(request.context)
        else:
            self.send(
                Message(
                    MessageKind.READ_INDEX_ANSWER,
                    self.raft_id,
                    request.reader_id,
                    self.term,
                    reject=True,
                    context=request.context,
                )
            )
