"""An epoll loop with timers."""

from __future__ import annotations

import heapq
import select
import sys
import time
import traceback
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
EDGE = select.EPOLLET
IDLE_AFTER_S = 0.002


class Loop:
    """Calls back when descriptors are ready and when time has come. A failing callback is logged and counted."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = 0
        self.failures = 0
        self.on_idle: Callable[[], bool] = lambda: False

    def watch(self, fd: int, callback: Callable[[int], None], events: int = READ) -> None:
        """Call `callback(events)` when fd is ready."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Watch fd for other events."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching; must come before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back once after delay_s seconds."""
        self._counter += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._counter, callback))

    def run(self) -> None:
        """Serve for ever. When nothing has happened for 2 ms, `on_idle` is called until it has no more to do."""
        idle_work = True
        while True:
            timeout = IDLE_AFTER_S if idle_work else -1.0
            if self._timers:
                until = max(self._timers[0][0] - time.monotonic(), 0.0)
                timeout = until if timeout < 0 else min(timeout, until)
            ready = self._epoll.poll(timeout)
            for fd, events in ready:
                callback = self._callbacks.get(fd)
                if callback is not None:
                    self._call(lambda callback=callback, events=events: callback(events))  # type: ignore[misc]
            now = time.monotonic()
            fired = False
            while self._timers and self._timers[0][0] <= now:
                fired = True
                self._call(heapq.heappop(self._timers)[2])
            idle_work = bool(ready or fired) or self._idle()

    def _idle(self) -> bool:
        try:
            return self.on_idle()
        except Exception:
            self.failures += 1
            traceback.print_exc()
            return False

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            self.failures += 1
            sys.stderr.write("supervisor: a callback failed\n")
            traceback.print_exc()
            sys.stderr.flush()
