"""Merges log lines of several nodes by their time, within a window: nothing waits for a node that is silent."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from typing import Final

from orch_proto.node_pb2 import LogLine

#: How long a line may wait for an older one of another node.
WINDOW_S: Final = 1.0
#: Lines held at most; then the oldest go at once.
_HELD_LINES: Final = 10_000


class LineMerger:
    """Takes lines of nodes, gives them in order of their time.

    Args:
        node_ids: the nodes that lines come from.
        now_s: the clock.
    """

    def __init__(self, node_ids: Iterable[str], now_s: Callable[[], float] = time.monotonic) -> None:
        self._open = set(node_ids)
        self._now_s = now_s
        self._sequence = 0
        self._held: list[tuple[int, int, float, LogLine]] = []

    @property
    def finished(self) -> bool:
        """True when every node has said its last line and all were taken."""
        return not self._open and not self._held

    def add(self, node_id: str, lines: Iterable[LogLine]) -> None:
        """Lines of one node."""
        del node_id
        arrived_s = self._now_s()
        for line in lines:
            self._sequence += 1
            heapq.heappush(self._held, (line.timestamp_unix_ns, self._sequence, arrived_s, line))

    def finish(self, node_id: str) -> None:
        """A node has no further line."""
        self._open.discard(node_id)

    def wait_s(self) -> float | None:
        """How long to wait for further lines before `take` gives more; None: until some come."""
        if not self._held:
            return None
        return max(0.0, min(arrived_s for _, _, arrived_s, _ in self._held[:1]) + WINDOW_S - self._now_s())

    def take(self) -> list[LogLine]:
        """The lines that need wait no longer. With one node they are in order already."""
        lines = []
        now_s = self._now_s()
        while self._held and (
            len(self._open) <= 1 or len(self._held) > _HELD_LINES or self._held[0][2] + WINDOW_S <= now_s
        ):
            lines.append(heapq.heappop(self._held)[3])
        return lines
