"""What this member is in the cluster, and what was said of it."""

import logging

from orch_raft.core.messages import NOBODY
from orch_raft.core.node import RaftNode
from orch_raft.engine import LeadershipChange, Role
from orch_raft.leadership import LeadershipFeed

_logger = logging.getLogger(__name__)


class Standing:
    """Role, term and leader as the core had them after the last turn.

    Args:
        feed: told of each change.
    """

    def __init__(self, feed: LeadershipFeed, term: int) -> None:
        self._feed = feed
        self.role = Role.FOLLOWER
        self.term = term
        self.leader_id = NOBODY
        self._announced = LeadershipChange(0, is_leader=False, leader_id=None)
        #: Last entry of the log when this member began to lead; once applied, it may act as leader.
        self._leads_from_index = 0

    @property
    def is_leader(self) -> bool:
        """Whether this member leads and has applied all that leaders before it committed."""
        return self._announced.is_leader

    def take(self, core: RaftNode) -> bool:
        """Look at the core; whether role or term are others than before."""
        changed = core.role is not self.role or core.term != self.term
        if changed and core.role is Role.LEADER:
            self._leads_from_index = core.last_index
        self.role, self.term, self.leader_id = core.role, core.term, core.leader_id
        return changed

    def announce(self, applied_index: int) -> None:
        """Tell who leads, once it is true in full."""
        is_leader = self.role is Role.LEADER and applied_index >= self._leads_from_index
        change = LeadershipChange(self.term, is_leader=is_leader, leader_id=self.leader_id or None)
        if change != self._announced and (self.leader_id or self._announced.leader_id):
            self._publish(change)

    def announce_start(self) -> None:
        """Tell it even when nobody is known to lead yet."""
        self._publish(LeadershipChange(self.term, is_leader=False, leader_id=self.leader_id or None))

    def end(self, role: Role) -> None:
        """This member takes no part any more."""
        self.role, self.leader_id = role, NOBODY
        self._publish(LeadershipChange(self.term, is_leader=False, leader_id=None))
        self._feed.close()

    def _publish(self, change: LeadershipChange) -> None:
        if change.is_leader != self._announced.is_leader or change.leader_id != self._announced.leader_id:
            _logger.info("leadership term=%d leader=%x self=%s", change.term, change.leader_id or 0, change.is_leader)
        self._announced = change
        self._feed.publish(change)
