"""Who waits for what to be committed."""

import asyncio
import time
from collections import deque

from orch_raft.engine import Applied
from orch_raft.errors import OutcomeUnknown, ProposalError
from orch_raft.log.records import Entry


class Proposal:
    """One caller's entry."""

    __slots__ = ("data", "deadline_s", "index", "outcome", "started_s", "term", "timeout_s")

    def __init__(self, data: bytes, outcome: asyncio.Future[Applied], timeout_s: float) -> None:
        self.data = data
        self.outcome = outcome
        self.timeout_s = timeout_s
        self.started_s = time.monotonic()
        self.deadline_s = self.started_s + timeout_s
        self.index = 0
        self.term = 0

    def fail(self, error: Exception) -> None:
        """Tell the caller, if it still waits."""
        if not self.outcome.done():
            self.outcome.set_exception(error)


class ProposalBook:
    """Proposals that wait to be taken into the log, and those in it that wait to be committed, by index."""

    def __init__(self) -> None:
        self.waiting: deque[Proposal] = deque()
        self._in_flight: deque[Proposal] = deque()
        self._next_deadline_s = float("inf")

    def __len__(self) -> int:
        return len(self.waiting) + len(self._in_flight)

    def add(self, proposal: Proposal) -> None:
        """Let one wait to be taken."""
        self.waiting.append(proposal)
        self._next_deadline_s = min(self._next_deadline_s, proposal.deadline_s)

    def take_batch(self, max_entries: int, max_bytes: int) -> list[Proposal]:
        """The next ones, in order. Those whose callers have gone are dropped: they were never written."""
        batch: list[Proposal] = []
        size_bytes = 0
        waiting = self.waiting
        while waiting and len(batch) < max_entries:
            proposal = waiting[0]
            if proposal.outcome.done():
                waiting.popleft()
                continue
            size_bytes += len(proposal.data)
            if batch and size_bytes > max_bytes:
                break
            batch.append(waiting.popleft())
        return batch

    def put_back(self, batch: list[Proposal]) -> None:
        """Let a batch that was not taken wait again."""
        self.waiting.extendleft(reversed(batch))

    def written(self, batch: list[Proposal], first_index: int, term: int) -> None:
        """A batch is in the log, from an index on."""
        for index, proposal in enumerate(batch, first_index):
            proposal.index, proposal.term = index, term
        self._in_flight.extend(batch)

    def put_in_flight(self, proposal: Proposal, index: int, term: int) -> None:
        """One is in the log that never waited."""
        proposal.index, proposal.term = index, term
        self._in_flight.append(proposal)
        self._next_deadline_s = min(self._next_deadline_s, proposal.deadline_s)

    def settle(self, entry: Entry, result: object) -> Proposal | None:
        """An entry was applied: tell the one who proposed it, if it is of this member. By index and term, both."""
        in_flight = self._in_flight
        if not in_flight or in_flight[0].index > entry.index:
            return None
        proposal = in_flight.popleft()
        if proposal.index == entry.index and proposal.term == entry.term:
            if not proposal.outcome.done():
                proposal.outcome.set_result(Applied(entry.index, entry.term, result))
            return proposal
        proposal.fail(OutcomeUnknown("another leader's entry took its place"))
        return self.settle(entry, result)

    def expire(self, now_s: float) -> None:
        """Tell those that have waited too long."""
        if now_s < self._next_deadline_s:
            return
        self._next_deadline_s = float("inf")
        for proposal in (*self.waiting, *self._in_flight):
            if proposal.outcome.done():
                continue
            if proposal.deadline_s <= now_s:
                proposal.fail(OutcomeUnknown(f"it was not committed within {proposal.timeout_s:g} s"))
            else:
                self._next_deadline_s = min(self._next_deadline_s, proposal.deadline_s)

    def drop_in_flight(self, why: str) -> None:
        """Leadership or the engine ended: whether these are committed is not known here."""
        while self._in_flight:
            self._in_flight.popleft().fail(OutcomeUnknown(why))

    def refuse_waiting(self, error: ProposalError) -> None:
        """Nothing of these was written."""
        while self.waiting:
            self.waiting.popleft().fail(error)
