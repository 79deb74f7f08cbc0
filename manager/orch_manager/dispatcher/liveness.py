"""Who is still there: a node whose heartbeats stay away is DOWN. Nothing of a heartbeat touches the store."""

from __future__ import annotations

from orch_manager.clock import IdSource
from orch_proto import defaults


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

    def next_period_ms(self) -> int:
        """The time until an agent's next heartbeat."""
        jitter_ms = min(defaults.HEARTBEAT_JITTER_MS, self._period_ms // 10)
        return int(self._period_ms + self._ids.uniform(-jitter_ms, jitter_ms))

    def heard(self, node_id: str, now_s: float) -> None:
        """A node gave a sign of life."""
        self._due_s[node_id] = now_s + self._period_ms * defaults.HEARTBEAT_GRACE_PERIODS / 1000

    def expect_after_election(self, node_id: str, now_s: float) -> None:
        """A new leader does not know whether a node lives: it has longer to find us."""
        self._due_s.setdefault(node_id, now_s + self._period_ms * defaults.HEARTBEAT_GRACE_PERIODS_UNKNOWN / 1000)

    def forget(self, node_id: str) -> None:
        """A node was removed."""
        self._due_s.pop(node_id, None)

    def overdue(self, now_s: float) -> list[str]:
        """The nodes whose time is over; each is named once."""
        late = sorted(node_id for node_id, due_s in self._due_s.items() if due_s <= now_s)
        for node_id in late:
            del self._due_s[node_id]
        return late

    def next_due_s(self) -> float | None:
        """When the next node will be overdue."""
        return min(self._due_s.values(), default=None)
