"""The member: the face of the core towards its driver."""

import random
from collections.abc import Sequence

from orch_raft.core.config import CoreConfig
from orch_raft.core.log_view import LogView, NoOlderEntries
from orch_raft.core.messages import Message
from orch_raft.core.ready import Proposed, Ready, Recovered, Refused
from orch_raft.engine import MembershipChange, Role
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
        self._config = config
        self._recovered = recovered
        self._rng = rng
        self._log_view = log_view or NoOlderEntries()

    # ---- what happens ----------------------------------------------------------------------------

    def tick(self) -> None:
        """A period of time has passed."""
        raise NotImplementedError

    def step(self, message: Message) -> None:
        """A message has arrived, from the member it names as its sender."""
        raise NotImplementedError

    def persisted(self, ready: Ready) -> None:
        """This Ready, and all before it, are on stable storage. May be called for the last of several alone."""
        raise NotImplementedError

    def applied(self, index: int) -> None:
        """Every committed entry up to `index` was applied to the state machine."""
        raise NotImplementedError

    def snapshot_persisted(self, meta: SnapshotMeta) -> None:
        """The snapshot that a Ready told to install is durable, and the state machine was restored from it."""
        raise NotImplementedError

    def snapshot_taken(self, meta: SnapshotMeta) -> None:
        """This member's own snapshot is durable. Followers that need one are sent it from now on."""
        raise NotImplementedError

    def compacted(self, first_index: int) -> None:
        """The log on disk begins with this entry now; what came before it is covered by a durable snapshot."""
        raise NotImplementedError

    def report_unreachable(self, raft_id: int) -> None:
        """Messages to a member were dropped."""
        raise NotImplementedError

    def report_snapshot(self, raft_id: int, *, ok: bool) -> None:
        """A snapshot was handed to a member whole, or could not be. To be called once for each SNAPSHOT message."""
        raise NotImplementedError

    # ---- what is asked for -----------------------------------------------------------------------

    def propose(self, data: Sequence[bytes]) -> Proposed | Refused:
        """Take commands into the log, all or none. Batch them: the cost is per call, hardly per command."""
        raise NotImplementedError

    def propose_membership(self, change: MembershipChange) -> Proposed | Refused:
        """Take a change of the members into the log. It takes effect on each member when that member has applied it."""
        raise NotImplementedError

    def read_index(self, context: bytes) -> Refused | None:
        """Ask for an index at which a read is linearizable, on the leader or, through it, on any other member.

        The answer comes as `Ready.reads` or `Ready.refused_reads`; on a member that does not lead it may be lost, so
        ask again with the same context after a while. `context` must be new in every life of every member, or an old
        answer could count.
        """
        raise NotImplementedError

    def transfer(self, raft_id: int) -> Refused | None:
        """Hand leadership to a voter. Given up after `election_ticks`; proposals are refused until then."""
        raise NotImplementedError

    def campaign(self) -> None:
        """Stand for election now, as if the timer had run out; for tests."""
        raise NotImplementedError

    def announce_commit(self) -> None:
        """Tell followers of the commit index now, those that do not know it.

        To be called some 2 ms after `commit_unannounced` turns true.
        """
        raise NotImplementedError

    # ---- what comes out --------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether a Ready would hold anything."""
        raise NotImplementedError

    def ready(self) -> Ready:
        """The work since the last one."""
        raise NotImplementedError

    # ---- what can be seen ------------------------------------------------------------------------

    @property
    def raft_id(self) -> int:
        """This member."""
        return self._config.raft_id

    @property
    def role(self) -> Role:
        """What it is now."""
        raise NotImplementedError

    @property
    def term(self) -> int:
        """Its term."""
        raise NotImplementedError

    @property
    def leader_id(self) -> int:
        """Who leads in that term, 0 while unknown."""
        raise NotImplementedError

    @property
    def commit_index(self) -> int:
        """The last entry it knows to be committed."""
        raise NotImplementedError

    @property
    def applied_index(self) -> int:
        """The last entry that was applied."""
        raise NotImplementedError

    @property
    def last_index(self) -> int:
        """The last entry of its log."""
        raise NotImplementedError

    @property
    def uncommitted_bytes(self) -> int:
        """Data of the entries after the commit index; what a batching driver looks at."""
        raise NotImplementedError

    @property
    def commit_unannounced(self) -> bool:
        """Whether it leads and some follower has not been told of the commit index (`CoreConfig.lazy_commit`)."""
        raise NotImplementedError

    @property
    def membership(self) -> Membership:
        """The members as of `applied_index`, which is what a snapshot of the state there must hold."""
        raise NotImplementedError
