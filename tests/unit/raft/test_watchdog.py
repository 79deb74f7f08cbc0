"""A leader whose event loop stands still again and again hands over, and not too often."""

from __future__ import annotations

from orch_raft.limits import EngineOptions
from orch_raft.watchdog import LoopWatchdog

_OPTIONS = EngineOptions()
_TICK_S = _OPTIONS.tick_s
_STALL_S = _OPTIONS.election_ms / 2000


class Clock:
    """Ticks, late or in time."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.watchdog = LoopWatchdog(_OPTIONS)
        self.watchdog.tick(self.now_s)

    def tick(self, late_s: float = 0.0) -> float:
        self.now_s += _TICK_S + late_s
        return self.watchdog.tick(self.now_s)

    def wait(self, duration_s: float) -> None:
        until_s = self.now_s + duration_s
        while self.now_s < until_s:
            self.tick()

    @property
    def hands_over(self) -> bool:
        return self.watchdog.should_hand_over(self.now_s)


def test_only_a_delay_that_endangers_leadership_is_a_stall() -> None:
    """A tick in time or a little late is none; half an election timeout is, and its length is told."""
    clock = Clock()
    assert clock.tick() == 0
    assert clock.tick(_STALL_S * 0.9) == 0
    assert abs(clock.tick(_STALL_S * 1.1) - _STALL_S * 1.1) < 1e-6


def test_three_stalls_within_a_minute_make_a_leader_hand_over_once() -> None:
    """Two stalls are chance; with the third leadership goes, and stays where it goes for a minute."""
    clock = Clock()
    for _ in range(2):
        clock.tick(_STALL_S * 2)
        assert not clock.hands_over
    clock.tick(_STALL_S * 2)
    assert clock.hands_over
    for _ in range(3):
        clock.tick(_STALL_S * 2)
        assert not clock.hands_over, "it has just done so"
    clock.wait(61)
    for _ in range(3):
        clock.tick(_STALL_S * 2)
    assert clock.hands_over


def test_stalls_that_lie_far_apart_do_not_count_together() -> None:
    """A stall now and then, less than three in a minute, is no reason to move."""
    clock = Clock()
    for _ in range(6):
        clock.tick(_STALL_S * 2)
        assert not clock.hands_over
        clock.wait(31)
