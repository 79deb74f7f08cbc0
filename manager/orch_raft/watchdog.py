"""Notices an event loop that stalls: a leader whose loop stands still holds up the whole cluster."""

from collections import deque

from orch_raft.limits import EngineOptions

#: Stalls within the window that make a leader hand over.
_STALLS = 3
_WINDOW_S = 60.0
#: Between two times that leadership is handed over for this reason.
_PAUSE_S = 60.0


class LoopWatchdog:
    """Measures how late the engine's clock is.

    A delay of half an election timeout is a stall: a little more, and followers would elect another leader.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._tick_s = options.tick_s
        self._stall_s = options.election_ms / 2000
        self._last_s = 0.0
        self._stalls: deque[float] = deque(maxlen=_STALLS)
        self._handed_over_s = float("-inf")

    def tick(self, now_s: float) -> float:
        """The clock has fired; for how long the loop stood still before, 0 when it did not."""
        late_s = now_s - self._last_s - self._tick_s if self._last_s else 0.0
        self._last_s = now_s
        if late_s < self._stall_s:
            return 0.0
        self._stalls.append(now_s)
        return late_s

    def should_hand_over(self, now_s: float) -> bool:
        """Whether there were too many stalls lately; True once a minute at most."""
        often = len(self._stalls) == _STALLS and now_s - self._stalls[0] < _WINDOW_S
        if not often or now_s - self._handed_over_s < _PAUSE_S:
            return False
        self._handed_over_s = now_s
        self._stalls.clear()
        return True
