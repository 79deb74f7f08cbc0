"""Messages of other members that wait to be stepped."""

import asyncio
from collections import deque
from collections.abc import Sequence

from orch_raft.core.messages import Message
from orch_raft.limits import EngineOptions


class Inbox:
    """Bounded by those who read from the network: they wait for room."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._messages: deque[Message] = deque()
        self._data_bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    def put(self, messages: Sequence[Message]) -> None:
        """Let some wait."""
        self._messages.extend(messages)
        for message in messages:
            if message.entries:
                self._data_bytes += sum(len(entry.data) for entry in message.entries)
        if len(self._messages) > self._options.max_inbox_messages or self._data_bytes > self._options.max_inbox_bytes:
            self._room.clear()

    def take(self) -> list[Message]:
        """All of them, in the order in which they came."""
        taken = list(self._messages)
        if taken:
            self._messages.clear()
            self._data_bytes = 0
            self._room.set()
        return taken

    async def wait_for_room(self) -> None:
        """Return when more may come, or nothing is taken any more."""
        await self._room.wait()

    def close(self) -> None:
        """Nobody need wait."""
        self._room.set()
