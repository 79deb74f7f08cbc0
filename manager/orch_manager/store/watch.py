"""Watching the store: every event in a bounded queue, or just a wake-up.

Nothing here waits for a watcher. One that falls behind by more than its queue holds loses the queue, is given a
`Resync`, and must read the state anew.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from orch_manager.store.changes import Event
from orch_manager.store.schema import KINDS, Kind
from orch_proto.defaults import WATCH_QUEUE_EVENTS


@dataclass(frozen=True, slots=True)
class Resync:
    """Events were lost, up to this index: read the state again; the events that follow go on from there.

    Attributes:
        index: the state now, which the next read sees, is at least this new.
    """

    index: int


class Watch(AsyncIterator[Event | Resync]):
    """The events of some kinds, in order, from the moment it was made. Ends when closed, or with the store.

    Close it (`with`, or `close`) when done. What was read after a `Resync` may include the events that follow it: an
    object's version tells.
    """

    def __init__(
        self,
        feed: "ChangeFeed",
        kinds: frozenset[Kind],
        predicate: Callable[[Event], bool] | None,
        queue_events: int,
    ) -> None:
        self._feed = feed
        self._kinds = kinds
        self._predicate = predicate
        self._queue_events = queue_events
        self._queue: deque[Event | Resync] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop receiving. What is queued can still be read."""
        self._closed = True
        self._wake.set()
        self._feed.watches.discard(self)

    async def __anext__(self) -> Event | Resync:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()

    def drain(self) -> list[Event | Resync]:
        """Everything queued, at once, without waiting."""
        events = list(self._queue)
        self._queue.clear()
        return events

    def offer(self, event: Event) -> None:
        """Queue an event that concerns this watch. Called by the feed."""
        if event.kind not in self._kinds or (self._predicate is not None and not self._predicate(event)):
            return
        if len(self._queue) >= self._queue_events:
            self.resync(event.index)
        elif self._queue and isinstance(first := self._queue[0], Resync) and len(self._queue) == 1:
            # Nothing was read since: what it will read includes this event.
            self._queue[0] = Resync(max(first.index, event.index))
        else:
            self._queue.append(event)
        self._wake.set()

    def resync(self, index: int) -> None:
        """Drop the queue for a `Resync`. Called by the feed."""
        self._queue.clear()
        self._queue.append(Resync(index))
        self._wake.set()


class ChangeSignal:
    """A coalesced wake-up: something of some kinds changed since the last wait. Costs next to nothing per change."""

    def __init__(self, feed: "ChangeFeed", kinds: frozenset[Kind]) -> None:
        self._feed = feed
        self._kinds = kinds
        self._changed: set[Kind] = set()
        self._wake = asyncio.Event()
        self.closed = False

    def take(self) -> frozenset[Kind]:
        """The kinds that changed since the last call."""
        changed = frozenset(self._changed)
        self._changed.clear()
        self._wake.clear()
        return changed

    async def wait(self, timeout_s: float | None = None) -> frozenset[Kind]:
        """Wait until something changed, or `timeout_s` has passed; then as `take`. Empty: nothing did, or closed."""
        if self.closed:
            return self.take()
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return frozenset()
        return self.take()

    def close(self) -> None:
        """Stop receiving, and wake the waiter."""
        self.closed = True
        self._feed.signals.discard(self)
        self._wake.set()

    def notify(self, kinds: Iterable[Kind]) -> None:
        """Note what changed. Called by the feed."""
        if relevant := self._kinds.intersection(kinds):
            self._changed.update(relevant)
            self._wake.set()


class ChangeFeed:
    """Hands committed events to watches and signals."""

    def __init__(self) -> None:
        self.watches: set[Watch] = set()
        self.signals: set[ChangeSignal] = set()

    def watch(
        self,
        kinds: Iterable[Kind] = (),
        predicate: Callable[[Event], bool] | None = None,
        queue_events: int = WATCH_QUEUE_EVENTS,
    ) -> Watch:
        """A new watch; no kinds means all."""
        watch = Watch(self, frozenset(kinds) or frozenset(KINDS), predicate, queue_events)
        self.watches.add(watch)
        return watch

    def signal(self, kinds: Iterable[Kind] = ()) -> ChangeSignal:
        """A new signal; no kinds means all."""
        signal = ChangeSignal(self, frozenset(kinds) or frozenset(KINDS))
        self.signals.add(signal)
        return signal

    def publish(self, events: Iterable[Event]) -> None:
        """Hand out the events of one log entry."""
        events = tuple(events)
        for watch in self.watches:
            for event in events:
                watch.offer(event)
        if self.signals:
            kinds = {event.kind for event in events}
            for signal in self.signals:
                signal.notify(kinds)

    def resync(self, index: int) -> None:
        """Tell everybody that the whole state was replaced."""
        for watch in self.watches:
            watch.resync(index)
        for signal in self.signals:
            signal.notify(KINDS)

    def close(self) -> None:
        """End every watch and wake every signal."""
        for watch in tuple(self.watches):
            watch.close()
        for signal in tuple(self.signals):
            signal.close()
