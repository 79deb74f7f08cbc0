"""Reads that wait until this member's state is known to be current."""

import asyncio
import secrets
import time
from dataclasses import dataclass, field

from orch_raft.core.node import RaftNode
from orch_raft.core.ready import ConfirmedRead
from orch_raft.errors import EngineStopped, ReadUnconfirmed

#: Between two times that a round is asked for: the first question, or its answer, may be lost.
_ASK_AGAIN_S = 0.25


@dataclass(slots=True, eq=False)
class _Round:
    """Readers that share one question."""

    context: bytes
    readers: list[asyncio.Future[int]] = field(default_factory=list)
    asked_s: float = 0.0


class ReadBarriers:
    """Readers gather while a round is under way; one question to the quorum serves all that came before it."""

    def __init__(self) -> None:
        #: New in every life, so that no answer to an earlier one can count.
        self._life = secrets.token_bytes(8)
        self._count = 0
        self._gathering: list[asyncio.Future[int]] = []
        self._rounds: dict[bytes, _Round] = {}
        self._confirmed: list[tuple[int, list[asyncio.Future[int]]]] = []

    @property
    def has_work(self) -> bool:
        """Whether readers wait for a question to be asked."""
        return bool(self._gathering)

    def add(self, reader: asyncio.Future[int]) -> None:
        """Let a reader wait."""
        self._gathering.append(reader)

    def ask(self, core: RaftNode) -> None:
        """Ask for those that have gathered, and again for those whose answer does not come."""
        now_s = time.monotonic()
        if self._gathering:
            self._count += 1
            context = self._life + self._count.to_bytes(8, "big")
            self._rounds[context] = _Round(context, self._gathering)
            self._gathering = []
        for context, waiting in list(self._rounds.items()):
            if all(reader.done() for reader in waiting.readers):
                del self._rounds[context]
            elif now_s - waiting.asked_s >= _ASK_AGAIN_S and core.read_index(context) is None:
                waiting.asked_s = now_s

    def confirm(self, read: ConfirmedRead) -> None:
        """The leader's quorum has answered."""
        waiting = self._rounds.pop(read.context, None)
        if waiting is not None:
            self._confirmed.append((read.index, waiting.readers))

    def applied(self, applied_index: int) -> None:
        """Let those read whose index was applied."""
        if not self._confirmed:
            return
        for index, readers in self._confirmed:
            if index <= applied_index:
                for reader in readers:
                    if not reader.done():
                        reader.set_result(applied_index)
        self._confirmed = [pair for pair in self._confirmed if pair[0] > applied_index]

    def stop(self, error: EngineStopped | ReadUnconfirmed) -> None:
        """Refuse all."""
        readers = [*self._gathering, *(each for waiting in self._rounds.values() for each in waiting.readers)]
        readers += [each for _, confirmed in self._confirmed for each in confirmed]
        self._gathering, self._rounds, self._confirmed = [], {}, []
        for reader in readers:
            if not reader.done():
                reader.set_exception(error)
