"""An event loop whose clock jumps: waiting costs nothing, and the order of things depends on the seed alone."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]  # chosen by the platform
    """Never sleeps: what would be waited for is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Polls; when nothing is ready, the time that would have been slept has passed."""
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing is left to wait for: the simulation is stuck")
            self.now_s += max(0.0, timeout)
        return list(ready)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds."""
        return self._jumping.now_s


class LoopClock:
    """The manager's clock over a loop's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def unix_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self._loop.time() * 1000)

    def monotonic_s(self) -> float:
        """Seconds."""
        return self._loop.time()


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine in a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)
