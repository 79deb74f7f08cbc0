"""What a leader knows about one follower (etcd's name for it is progress), and how much it may send it."""

from collections import deque
from enum import Enum


class Pace(Enum):
    """How a leader sends to a follower."""

    #: One APPEND at a time, until it is known where the logs agree.
    PROBE = "probe"
    #: One APPEND after the other without waiting for answers.
    REPLICATE = "replicate"
    #: None, as a snapshot is on its way.
    SNAPSHOT = "snapshot"


class Progress:
    """One follower, learner or the leader itself.

    Attributes:
        match: last index known to be on its disk and the same as the leader's.
        next_index: first index to send.
        pace: how it is sent to.
        pending_snapshot: index of the snapshot on its way.
        probe_sent: an APPEND went out in PROBE and was not answered.
        inflight: last index of each unanswered APPEND, in REPLICATE.
        contact_tick: when it was last heard of.
        commit_sent: the commit index that it was told of.
        read_round: the last round of reads that it confirmed.
    """

    __slots__ = (
        "commit_sent",
        "contact_tick",
        "inflight",
        "match",
        "next_index",
        "pace",
        "pending_snapshot",
        "probe_sent",
        "raft_id",
        "read_round",
    )

    def __init__(self, raft_id: int, next_index: int, contact_tick: int) -> None:
        self.raft_id = raft_id
        self.match = 0
        self.next_index = next_index
        self.pace = Pace.PROBE
        self.pending_snapshot = 0
        self.probe_sent = False
        self.inflight: deque[int] = deque()
        self.contact_tick = contact_tick
        self.commit_sent = 0
        self.read_round = 0

    def _enter(self, pace: Pace) -> None:
        self.pace = pace
        self.probe_sent = False
        self.pending_snapshot = 0
        self.inflight.clear()

    def become_probe(self, next_index: int | None = None) -> None:
        """Find out where the logs agree."""
        self._enter(Pace.PROBE)
        self.next_index = max(self.match + 1, next_index or 0)

    def become_replicate(self) -> None:
        """Send without waiting."""
        self._enter(Pace.REPLICATE)
        self.next_index = self.match + 1

    def become_snapshot(self, index: int) -> None:
        """Wait for a snapshot to arrive."""
        self._enter(Pace.SNAPSHOT)
        self.pending_snapshot = index

    def sent(self, last_index: int) -> None:
        """An APPEND whose last entry has this index went out."""
        if self.pace is Pace.REPLICATE:
            if last_index >= self.next_index:
                self.next_index = last_index + 1
                self.inflight.append(last_index)
        else:
            self.probe_sent = True

    def accepted(self, index: int) -> bool:
        """An APPEND up to this index is on its disk; whether that is news. A late answer is none."""
        inflight = self.inflight
        while inflight and inflight[0] <= index:
            inflight.popleft()
        self.next_index = max(self.next_index, index + 1)
        if index <= self.match:
            return False
        self.match = index
        return True

    def refused(self, index: int, hint_index: int) -> bool:
        """An APPEND after `index` did not match; whether that is news. Sending goes on after the hint.

        A refusal of anything but the last probe, or of what has matched since, is a late one.
        """
        if self.pace is Pace.REPLICATE:
            if index <= self.match:
                return False
            self.become_probe()
            return True
        if self.pace is Pace.SNAPSHOT or index != self.next_index - 1:
            return False
        self.next_index = max(self.match + 1, min(index, hint_index + 1))
        self.probe_sent = False
        return True
