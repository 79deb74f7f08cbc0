"""A store over a real engine and a real log in a temporary folder."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orch_manager.store.store import Store
from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import Member
from orch_raft.limits import EngineOptions
from orch_raft.storage import found_cluster


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_unix_ms = 1_000_000

    def __call__(self) -> int:
        """The time."""
        return self.now_unix_ms


class StoreBench:
    """Makes stores over one folder, one after the other, and runs coroutines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()

    def store(self, options: EngineOptions | None = None) -> Store:
        """A store that was not started."""
        return Store(
            lambda machine: ReplicatedEngine(self.folder, machine, options=options),
            clock_unix_ms=self.clock,
            verify=True,
        )

    def run(self, body: Callable[[Store], Awaitable[None]], options: EngineOptions | None = None) -> None:
        """Run a coroutine with a started store; stop it, and check that nobody edited its objects."""

        async def started() -> None:
            store = self.store(options)
            await store.start()
            try:
                async with asyncio.timeout(50):
                    await body(store)
                store.check_unedited()
            finally:
                await store.stop()

        asyncio.run(started())


@pytest.fixture
def bench(tmp_path: Path) -> StoreBench:
    found_cluster(tmp_path / "raft", Member(1, "node-1"))
    return StoreBench(tmp_path / "raft")
