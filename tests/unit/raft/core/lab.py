"""A few cores on one bench: messages and syncs move only when the test says so."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orch_raft.core.config import CoreConfig
from orch_raft.core.messages import Message, MessageKind
from orch_raft.core.node import RaftNode
from orch_raft.core.ready import NO_SNAPSHOT, Proposed, Ready, Recovered
from orch_raft.engine import Member, Role, Suffrage
from orch_raft.log.records import Entry, EntryKind, HardState
from orch_raft.membership import Membership, SnapshotMeta

#: Where every cluster of the lab begins.
FOUNDING_INDEX = 1
FOUNDING_TERM = 1


def member(raft_id: int, suffrage: Suffrage = Suffrage.VOTER) -> Member:
    """A member of an id."""
    return Member(raft_id, f"node-{raft_id}", f"10.0.0.{raft_id}:2377", suffrage)


def members(voters: Iterable[int], learners: Iterable[int] = (), removed: Iterable[int] = ()) -> Membership:
    """Members of these ids."""
    return Membership(
        (*(member(raft_id) for raft_id in voters), *(member(raft_id, Suffrage.LEARNER) for raft_id in learners)),
        frozenset(removed),
    )


def founding(voters: Iterable[int], learners: Iterable[int] = ()) -> SnapshotMeta:
    """The snapshot that a cluster of these begins with."""
    return SnapshotMeta(FOUNDING_INDEX, FOUNDING_TERM, members(voters, learners))


def command(index: int, term: int, data: bytes = b"") -> Entry:
    """An entry as a proposal makes it."""
    return Entry(index, term, EntryKind.COMMAND, data)


@dataclass(slots=True)
class Disk:
    """What a member has on disk, exactly what was synced."""

    hard_state: HardState = field(default_factory=lambda: HardState(FOUNDING_TERM, 0, FOUNDING_INDEX))
    snapshot: SnapshotMeta = NO_SNAPSHOT
    entries: list[Entry] = field(default_factory=list)

    def write(self, ready: Ready) -> None:
        """Write and sync what a Ready asks for."""
        if ready.snapshot is not None:
            self.snapshot, self.entries = ready.snapshot, []
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        for entry in ready.entries:
            self.entries = [each for each in self.entries if each.index < entry.index]
            self.entries.append(entry)

    def recovered(self) -> Recovered:
        """What a start finds."""
        return Recovered(self.hard_state, self.snapshot, list(self.entries))


class Bench:
    """One core and its driver, in which every step is the test's."""

    def __init__(self, disk: Disk, raft_id: int, seed: int = 0, **bounds: Any) -> None:
        bounds.setdefault("lazy_commit", False)
        self.disk = disk
        self.raft_id = raft_id
        self.node = RaftNode(CoreConfig(raft_id, **bounds), disk.recovered(), random.Random(raft_id + seed))
        self.unsynced: list[Ready] = []
        self.applied: list[Entry] = []
        self.reads: dict[bytes, int] = {}
        self.refused_reads: list[bytes] = []
        self.hold_sync = False
        self.hold_apply = False
        self._unapplied = 0

    def turn(self, trace: Callable[[Ready], None] | None = None) -> list[Message]:
        """Do what the core has ready; return what leaves."""
        leaving: list[Message] = []
        while self.node.has_ready():
            ready = self.node.ready()
            if trace:
                trace(ready)
            leaving += ready.messages
            self.unsynced.append(ready)
            if ready.committed:
                self.applied += ready.committed
                self._unapplied = ready.committed[-1].index
            for read in ready.reads:
                self.reads[read.context] = read.index
            self.refused_reads += ready.refused_reads
            if not self.hold_sync:
                leaving += self.sync()
            if not self.hold_apply:
                self.apply()
        return leaving

    def sync(self) -> list[Message]:
        """Sync what was written; return what had waited for it."""
        leaving: list[Message] = []
        for ready in self.unsynced:
            self.disk.write(ready)
            if ready.snapshot is not None:
                self.applied.clear()
                self.node.snapshot_persisted(ready.snapshot)
            self.node.persisted(ready)
            leaving += ready.messages_after_sync
        self.unsynced.clear()
        return leaving

    def apply(self) -> None:
        """Tell the core that all it handed out is applied."""
        if self._unapplied > self.node.applied_index:
            self.node.applied(self._unapplied)

    def step(self, kind: MessageKind, sender: int, term: int, **rest: Any) -> list[Message]:
        """Hand in a message made by hand; return what leaves."""
        self.node.step(Message(kind, sender, self.raft_id, term, **rest))
        return self.turn()


def lone(
    voters: Sequence[int],
    *,
    learners: Sequence[int] = (),
    entries: Sequence[Entry] = (),
    hard_state: HardState | None = None,
    raft_id: int = 1,
    **bounds: Any,
) -> Bench:
    """Member 1 of a cluster whose other members are the test."""
    term = entries[-1].term if entries else FOUNDING_TERM
    return Bench(
        Disk(hard_state or HardState(term, 0, FOUNDING_INDEX), founding(voters, learners), list(entries)),
        raft_id,
        **bounds,
    )


def elect(bench: Bench, voters: Sequence[int]) -> list[Message]:
    """Make a lone member leader by the votes of the others; return what leaves when it leads."""
    bench.node.campaign()
    bench.turn()
    for voter in voters:
        if bench.node.role is Role.PRE_CANDIDATE and voter != bench.raft_id:
            bench.step(MessageKind.PRE_VOTE_ANSWER, voter, bench.node.term + 1)
    left: list[Message] = []
    for voter in voters:
        if bench.node.role is Role.CANDIDATE and voter != bench.raft_id:
            left += bench.step(MessageKind.VOTE_ANSWER, voter, bench.node.term)
    assert bench.node.role is Role.LEADER
    return left


def acknowledge(bench: Bench, *followers: int, index: int | None = None) -> list[Message]:
    """Let followers answer that they have everything up to an index."""
    left: list[Message] = []
    for follower in followers:
        left += bench.step(
            MessageKind.APPEND_ANSWER,
            follower,
            bench.node.term,
            index=bench.node.last_index if index is None else index,
        )
    return left


class Lab:
    """Several benches and the links between them."""

    def __init__(self, voters: Sequence[int], learners: Sequence[int] = (), **bounds: Any) -> None:
        self.bounds = bounds
        self.benches: dict[int, Bench] = {}
        self.queue: list[Message] = []
        self.cut: set[tuple[int, int]] = set()
        self.on_message: Callable[[Message], None] | None = None
        self.on_ready: Callable[[int, Ready], None] | None = None
        for raft_id in (*voters, *learners):
            self.start(raft_id, Disk(snapshot=founding(voters, learners)))

    def __getitem__(self, raft_id: int) -> Bench:
        return self.benches[raft_id]

    def start(self, raft_id: int, disk: Disk | None = None) -> None:
        """Start a member, by default one that joins."""
        joiner = Disk(hard_state=HardState())
        self.benches[raft_id] = Bench(disk or joiner, raft_id, **self.bounds)

    def restart(self, raft_id: int) -> None:
        """Kill a member and start it with what was synced."""
        self.start(raft_id, self.benches[raft_id].disk)

    def turn(self, raft_id: int) -> None:
        """Let a member do what is ready."""
        bench = self.benches[raft_id]
        trace = self.on_ready
        self.queue += bench.turn((lambda ready: trace(raft_id, ready)) if trace else None)

    def sync(self, raft_id: int) -> None:
        """Let a held sync return."""
        self.queue += self.benches[raft_id].sync()
        self.turn(raft_id)

    def deliver(self, *, at_most: int | None = None) -> None:
        """Deliver until nothing is under way, or so many messages."""
        arrived = 0
        for raft_id in sorted(self.benches):
            self.turn(raft_id)
        while self.queue and arrived != at_most:
            message = self.queue.pop(0)
            if (message.sender, message.to) in self.cut or message.to not in self.benches:
                continue
            arrived += 1
            assert arrived < 10_000, "the members never come to rest"
            if self.on_message:
                self.on_message(message)
            self._hand_over(message)

    def deliver_until(self, reached: Callable[[], bool]) -> None:
        """Deliver one message after the other until something holds."""
        while not reached():
            assert self.queue or any(bench.node.has_ready() for bench in self.benches.values()), (
                "it never comes to that"
            )
            self.deliver(at_most=1)

    def _hand_over(self, message: Message) -> None:
        if message.kind is MessageKind.SNAPSHOT:
            sender = self.benches[message.sender]
            message = replace(message, snapshot=sender.node._state.log.snapshot)
            sender.node.report_snapshot(message.to, ok=True)
        self.benches[message.to].node.step(message)
        self.turn(message.to)

    def isolate(self, raft_id: int) -> None:
        """Cut all links of a member."""
        for other in self.benches:
            self.cut |= {(raft_id, other), (other, raft_id)}

    def heal(self) -> None:
        """Mend all links."""
        self.cut.clear()

    def tick(self, ticks: int, *raft_ids: int) -> None:
        """Let time pass, delivering after each tick."""
        for _ in range(ticks):
            for raft_id in raft_ids or sorted(self.benches):
                self.benches[raft_id].node.tick()
                self.turn(raft_id)
            self.deliver()

    def elect(self, raft_id: int) -> None:
        """Make a member leader."""
        self.benches[raft_id].node.campaign()
        self.deliver()
        assert self.benches[raft_id].node.role is Role.LEADER

    def propose(self, raft_id: int, *data: bytes) -> Proposed:
        """Propose, and deliver."""
        proposed = self.benches[raft_id].node.propose(data)
        assert isinstance(proposed, Proposed), str(proposed)
        self.deliver()
        return proposed

    def snapshot(self, raft_id: int, keep: int = 0) -> None:
        """Let a member take a snapshot of what it applied, and drop the log before it."""
        bench = self.benches[raft_id]
        node = bench.node
        term = node._state.log.term(node.applied_index)
        assert term is not None
        meta = SnapshotMeta(node.applied_index, term, node.membership)
        bench.disk.snapshot = meta
        bench.disk.entries = [entry for entry in bench.disk.entries if entry.index > meta.index - keep]
        node.snapshot_taken(meta)
        node.compacted(meta.index - keep + 1)

    def leader(self) -> int:
        """The one that leads in the latest term."""
        leaders = [bench for bench in self.benches.values() if bench.node.role is Role.LEADER]
        return max(leaders, key=lambda bench: bench.node.term).raft_id
