"""Who is still there: a node whose heartbeats stay away is DOWN. Nothing of a heartbeat touches the store."""

from __future__ import annotations

from typing import Final

from orch_manager.clock import IdSource
from orch_proto import defaults

#: A leader that looks so much later than it meant to has been asleep; shorter delays are a busy host's.
_STALL_S: Final = 1.0


class Liveness:
    """The time by which each node must be heard of again. Pure: told the time, told of heartbeats.

    Args:
        ids: for the jitter that keeps a thousand agents from speaking at once.
        period_ms: of heartbeats.
    """

    def __init__(self, ids: IdSource, period_ms: int = defaults.HEARTBEAT_PERIOD_MS) -> None:
        self._ids = ids
        self._period_ms = period_ms
        self._due_s: dict[str, float] = {}

    def set_period(self, period_ms: int) -> None:
        """Another heartbeat period; what is due already stays due."""
        self._period_ms = period_ms

    @property
    def grace_ms(self) -> int:
        """How long a node may be silent."""
        return self._period_ms * defaults.HEARTBEAT_GRACE_PERIODS

    def next_period_ms(self) -> int:
        """The time until an agent's next heartbeat."""
        jitter_ms = min(defaults.HEARTBEAT_JITTER_MS, self._period_ms // 10)
        return int(self._period_ms + self._ids.uniform(-jitter_ms, jitter_ms))

    def heard(self, node_id: str, now_s: float) -> bool:
        """A node gave a sign of life; True when it is due earlier than before, so that somebody must look earlier."""
        before_s, due_s = self._due_s.get(node_id), now_s + self.grace_ms / 1000
        self._due_s[node_id] = due_s
        return before_s is None or due_s < before_s

    def expect_first_word(self, node_id: str, now_s: float) -> None:
        """Nothing is known of a node, as after a change of leader or when it has just joined: it has longer to come."""
        self._due_s.setdefault(node_id, now_s + self._period_ms * defaults.HEARTBEAT_GRACE_PERIODS_UNKNOWN / 1000)

    def try_again(self, node_id: str, now_s: float) -> None:
        """That a node is overdue could not be written down: it is named again in a moment, unless it is heard of."""
        self._due_s.setdefault(node_id, now_s + self._period_ms / 1000)

    def expects(self, node_id: str) -> bool:
        """Whether a node is to be heard of by some time: it is not overdue."""
        return node_id in self._due_s

    def clear(self) -> None:
        """Expect nobody: what is known is from an earlier leadership."""
        self._due_s.clear()

    def forget(self, node_id: str) -> None:
        """A node was removed."""
        self._due_s.pop(node_id, None)

    def overdue(self, now_s: float) -> list[str]:
        """The nodes whose time is over; each is named once.

        When the first of them has been due for long, nobody was awake to look: this process had been stopped, and what
        the nodes said meanwhile is still to be read. All get a whole grace then, and none is named.
        """
        first_s = self.next_due_s()
        if first_s is not None and now_s - first_s > max(self._period_ms / 1000, _STALL_S):
            self._due_s = {node_id: max(due_s, now_s + self.grace_ms / 1000) for node_id, due_s in self._due_s.items()}
            return []
        late = sorted(node_id for node_id, due_s in self._due_s.items() if due_s <= now_s)
        for node_id in late:
            del self._due_s[node_id]
        return late

    def next_due_s(self) -> float | None:
        """When the next node will be overdue."""
        return min(self._due_s.values(), default=None)
