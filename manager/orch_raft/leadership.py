"""Tells any number of watchers who leads."""

import asyncio
from collections.abc import AsyncIterator

from orch_raft.engine import LeadershipChange


class LeadershipFeed:
    """The latest change, and a wake-up for those who wait for the next. Holds nothing per watcher."""

    def __init__(self) -> None:
        self._latest: LeadershipChange | None = None
        self._closed = False
        self._changed = asyncio.Event()

    def publish(self, change: LeadershipChange) -> None:
        """Make a change known."""
        self._latest = change
        self._wake()

    def close(self) -> None:
        """End every watch, once it has seen the latest change."""
        self._closed = True
        self._wake()

    async def watch(self) -> AsyncIterator[LeadershipChange]:
        """The latest change, then each later one; a busy watcher misses all but the latest."""
        seen: LeadershipChange | None = None
        while True:
            changed = self._changed
            if self._latest is not None and self._latest is not seen:
                seen = self._latest
                yield seen
            elif self._closed:
                return
            else:
                await changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
