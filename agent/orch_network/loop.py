"""A single-threaded epoll loop: readiness handlers, timers, and work for idle moments."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
_MAX_EVENTS = 256
_IDLE_WAIT_S = 3600.0


class Timer:
    """A call in the future; ``cancel`` makes it not happen."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Do not call."""
        self.action = None


class Loop:
    """Runs handlers one at a time. An exception that escapes one goes to ``on_error`` and is never lost."""

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: deque[Callable[[], None]] = deque()
        self._idle: deque[Callable[[], bool]] = deque()
        self._on_error = on_error
        self._running = False

    def watch(self, fd: int, handler: Callable[[int], None], events: int = READ) -> None:
        """Call ``handler(events)`` whenever ``fd`` is ready."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events on a watched fd."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching; before the fd is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, delay_s: float, action: Callable[[], None]) -> Timer:
        """Call ``action`` once, ``delay_s`` seconds from now."""
        timer = Timer(action)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), timer))
        return timer

    def soon(self, action: Callable[[], None]) -> None:
        """Call ``action`` after the present handlers, so that an answer need not wait for it."""
        self._soon.append(action)

    def when_idle(self, step: Callable[[], bool]) -> None:
        """Call ``step`` in turns without any event, until it returns False."""
        if step not in self._idle:
            self._idle.append(step)

    def stop(self) -> None:
        """Leave ``run`` after the present turn."""
        self._running = False

    def run(self) -> None:
        """Handle events until ``stop``."""
        self._running = True
        while self._running:
            self._turn()

    def _turn(self) -> None:
        events = self._epoll.poll(self._wait_s(), _MAX_EVENTS)
        for fd, flags in events:
            handler = self._handlers.get(fd)
            if handler is not None:
                self._guarded(lambda handler=handler, flags=flags: handler(flags))  # type: ignore[misc]
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.action is not None:
                self._guarded(timer.action)
        for _ in range(len(self._soon)):
            self._guarded(self._soon.popleft())
        if not events and self._idle:
            step = self._idle.popleft()
            self._guarded(lambda: self._idle.append(step) if step() else None)

    def _wait_s(self) -> float:
        if self._soon or self._idle:
            return 0.0
        while self._timers and self._timers[0][2].action is None:
            heapq.heappop(self._timers)
        if self._timers:
            return max(0.0, min(_IDLE_WAIT_S, self._timers[0][0] - time.monotonic()))
        return _IDLE_WAIT_S

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as failure:
            self._on_error(failure)

    def close(self) -> None:
        """Release the epoll fd."""
        self._epoll.close()
