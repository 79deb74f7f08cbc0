"""Time and chance, handed in from the edge so that a simulation can own both."""

from __future__ import annotations

import random
import time
from typing import Final, Protocol


class Clock(Protocol):
    """What time it is."""

    def unix_ms(self) -> int:
        """Milliseconds since the epoch: what stands in objects."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back: what time-outs are measured with."""
        ...


class SystemClock:
    """The host's clock."""

    def unix_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds since some moment in the past."""
        return time.monotonic()


_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
#: Length of an id: 25 digits of base 36 are 129 bits, as Swarm's.
ID_LENGTH: Final = 25


class IdSource:
    """Makes ids of objects: 25 digits of base 36."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.SystemRandom()

    def new(self) -> str:
        """A fresh id."""
        return "".join(self._chance.choices(_DIGITS, k=ID_LENGTH))

    def uniform(self, low: float, high: float) -> float:
        """A number between the two: for jitter."""
        return self._chance.uniform(low, high)
