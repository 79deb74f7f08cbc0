"""The engine with several members: what its callers may rely on. Real disks, a network in memory."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import Member, MembershipAction, MembershipChange, Role, Suffrage
from orch_raft.errors import MembershipError, NotLeader, OutcomeUnknown, ProposalError, ReadUnconfirmed, Removed
from orch_raft.limits import EngineOptions
from orch_raft.storage import found_cluster, prepare_joiner
from unit.raft.counting_machine import CountingMachine
from unit.raft.memory_network import MemoryNetwork, MemoryTransport

TIMEOUT_S = 20.0
OPTIONS = EngineOptions(
    max_proposal_bytes=4096,
    max_batch_bytes=8192,
    max_batch_entries=64,
    segment_bytes=32 * 1024,
    snapshot_every_entries=200,
    keep_entries=20,
    heartbeat_ms=20,
    election_ms=150,
)


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(50):
            await body()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait, with a deadline, until something is true."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110  # a test looks from outside
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"in {TIMEOUT_S:g} s it did not come true that {what}")


class Cluster:
    """Engines by raft id, each in a folder of its own."""

    def __init__(self, folder: Path, options: EngineOptions = OPTIONS) -> None:
        self.folder = folder
        self.options = options
        self.network = MemoryNetwork()
        self.engines: dict[int, ReplicatedEngine] = {}
        self.machines: dict[int, CountingMachine] = {}

    def path(self, raft_id: int) -> Path:
        """A member's state folder."""
        return self.folder / f"member-{raft_id}"

    def make(self, raft_id: int) -> ReplicatedEngine:
        """A new engine over a member's folder."""
        self.machines[raft_id] = CountingMachine()
        self.engines[raft_id] = ReplicatedEngine(
            self.path(raft_id),
            self.machines[raft_id],
            transport=MemoryTransport(self.network),
            options=self.options,
            rng=random.Random(raft_id),
        )
        return self.engines[raft_id]

    async def grow(self, count: int) -> None:
        """Found a cluster and let others join, as learners first."""
        found_cluster(self.path(1), Member(1, "node-1", "memory:1"))
        await self.make(1).start()
        for raft_id in range(2, count + 1):
            await self.join(raft_id)

    async def join(self, raft_id: int) -> None:
        """Let a member join and become a voter."""
        member = Member(raft_id, f"node-{raft_id}", f"memory:{raft_id}")
        prepare_joiner(self.path(raft_id), raft_id)
        await self.make(raft_id).start()
        leader = await self.leader()
        await leader.change_membership(MembershipChange(MembershipAction.ADD_LEARNER, member), timeout_s=TIMEOUT_S)
        await until(
            lambda: any(peer.raft_id == raft_id and peer.caught_up for peer in leader.status().peers), "it caught up"
        )
        await leader.change_membership(MembershipChange(MembershipAction.PROMOTE, member), timeout_s=TIMEOUT_S)

    async def leader(self) -> ReplicatedEngine:
        """The engine that leads, and can act, waited for."""
        found: list[ReplicatedEngine] = []

        def look() -> bool:
            found[:] = [
                engine
                for raft_id, engine in self.engines.items()
                if raft_id not in self.network.cut and engine._turns.standing.is_leader
            ]
            return len(found) == 1

        await until(look, "one member leads")
        return found[0]

    async def agree(self, *raft_ids: int) -> None:
        """Wait until members have applied the same commands."""
        machines = [self.machines[raft_id] for raft_id in raft_ids or self.engines]
        await until(lambda: all(each.commands == machines[0].commands for each in machines), "all have the same")

    async def stop(self) -> None:
        """Stop all."""
        for engine in self.engines.values():
            await engine.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_members_join_and_apply_the_same(cluster: Cluster) -> None:
    """Members that join hold the founder's state, then every command, in one order; a restart brings all back."""

    async def body() -> None:
        await cluster.grow(1)
        for number in range(30):
            await cluster.engines[1].propose(b"before %d" % number, timeout_s=TIMEOUT_S)
        for raft_id in (2, 3):
            await cluster.join(raft_id)
        leader = await cluster.leader()
        await asyncio.gather(*(leader.propose(b"%d" % number, timeout_s=TIMEOUT_S) for number in range(100)))
        await cluster.agree()
        assert len(cluster.machines[3].commands) == 130
        assert {member.suffrage for member in cluster.engines[3].status().members} == {Suffrage.VOTER}
        await cluster.stop()
        await asyncio.gather(*(cluster.make(raft_id).start() for raft_id in (1, 2, 3)))
        await cluster.leader()
        await cluster.agree()
        assert len(cluster.machines[2].commands) == 130
        await cluster.stop()

    run(body)


def test_a_new_leader_has_everything_acknowledged(cluster: Cluster) -> None:
    """When the leader is cut off another takes over with all that was acknowledged; the old one follows once back."""

    async def body() -> None:
        await cluster.grow(3)
        old = await cluster.leader()
        for number in range(50):
            await old.propose(b"%d" % number, timeout_s=TIMEOUT_S)
        cluster.network.cut.add(old.status().member_id)
        lost = asyncio.create_task(old.propose(b"lost?", timeout_s=TIMEOUT_S))
        new = await cluster.leader()
        assert new is not old
        await new.propose(b"after", timeout_s=TIMEOUT_S)
        await new.read_barrier()
        commands = cluster.machines[new.status().member_id].commands
        assert commands == [*(b"%d" % number for number in range(50)), b"after"]
        with pytest.raises(OutcomeUnknown):
            await lost
        with pytest.raises(NotLeader):
            await old.propose(b"x", timeout_s=TIMEOUT_S)
        cluster.network.cut.clear()
        await cluster.agree()
        await cluster.stop()

    run(body)


def test_a_member_that_was_away_for_long_gets_a_snapshot(cluster: Cluster) -> None:
    """Who missed what the log has no more is sent a snapshot, also when a first try breaks, and goes on from there."""

    async def body() -> None:
        await cluster.grow(3)
        leader = await cluster.leader()
        away = next(raft_id for raft_id in (1, 2, 3) if raft_id != leader.status().member_id)
        await leader.propose(b"first", timeout_s=TIMEOUT_S)
        await cluster.agree()
        await cluster.engines[away].stop()
        for start in range(0, 1000, 50):
            batch = (b"%d" % number + b"x" * 300 for number in range(start, start + 50))
            await asyncio.gather(*(leader.propose(data, timeout_s=TIMEOUT_S) for data in batch))
        cluster.network.fail_snapshots = 1
        await cluster.make(away).start()
        await cluster.agree()
        assert cluster.machines[away].restored >= 1
        assert cluster.network.snapshots_sent >= 1
        await leader.propose(b"last", timeout_s=TIMEOUT_S)
        await cluster.agree()
        await cluster.engines[away].stop()
        await cluster.make(away).start()
        await cluster.agree()
        assert cluster.machines[away].commands[-1] == b"last"
        await cluster.stop()

    run(body)


def test_reads_are_linearizable_on_every_member(cluster: Cluster) -> None:
    """After a read barrier any member has applied all that was acknowledged before; one that is cut off refuses."""

    async def body() -> None:
        await cluster.grow(3)
        leader = await cluster.leader()
        for number in range(20):
            applied = await leader.propose(b"%d" % number, timeout_s=TIMEOUT_S)
            for raft_id, engine in cluster.engines.items():
                assert await engine.read_barrier() >= applied.index
                assert len(cluster.machines[raft_id].commands) == number + 1
        alone = leader.status().member_id
        cluster.network.cut.add(alone)
        with pytest.raises(ReadUnconfirmed, match="cannot vouch"):
            await leader.read_barrier(timeout_s=0.5)
        assert await (await cluster.leader()).read_barrier() >= applied.index
        await cluster.stop()

    run(body)


def test_leadership_is_handed_over(cluster: Cluster) -> None:
    """A transfer makes the named voter lead at once, loses no write, and is refused for who cannot take over."""

    async def body() -> None:
        await cluster.grow(3)
        leader = await cluster.leader()
        writes = [asyncio.create_task(leader.propose(b"%d" % number, timeout_s=TIMEOUT_S)) for number in range(200)]
        await asyncio.sleep(0)
        target = next(raft_id for raft_id in (1, 2, 3) if raft_id != leader.status().member_id)
        with pytest.raises(MembershipError, match="it does not vote"):
            await leader.transfer_leadership(99, timeout_s=TIMEOUT_S)
        await leader.transfer_leadership(target, timeout_s=TIMEOUT_S)
        await until(lambda: cluster.engines[target].status().role is Role.LEADER, "the target leads")
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        await cluster.agree()
        acknowledged = sum(not isinstance(outcome, BaseException) for outcome in outcomes)
        assert all(isinstance(outcome, ProposalError) for outcome in outcomes if isinstance(outcome, BaseException))
        assert len(cluster.machines[target].commands) >= acknowledged
        await cluster.stop()

    run(body)


def test_a_leader_that_stops_hands_over_first(cluster: Cluster) -> None:
    """A leader that is stopped in an orderly way is followed by another without waiting for an election timeout."""

    async def body() -> None:
        await cluster.grow(3)
        leader = await cluster.leader()
        await leader.stop()
        terms = [engine.status().term for engine in cluster.engines.values()]
        assert max(terms) > leader.status().term or any(e._turns.standing.is_leader for e in cluster.engines.values())
        del cluster.engines[leader.status().member_id]
        await (await cluster.leader()).propose(b"next", timeout_s=TIMEOUT_S)
        await cluster.stop()

    run(body)


def test_a_removed_member_ends(cluster: Cluster) -> None:
    """A member that was removed stops for good and says why; the others go on without it, and its id stays unusable."""

    async def body() -> None:
        await cluster.grow(3)
        leader = await cluster.leader()
        gone = next(raft_id for raft_id in (1, 2, 3) if raft_id != leader.status().member_id)
        member = Member(gone, f"node-{gone}")
        await leader.change_membership(MembershipChange(MembershipAction.REMOVE, member), timeout_s=TIMEOUT_S)
        with pytest.raises(Removed, match="was removed from the cluster"):
            await asyncio.wait_for(cluster.engines[gone].wait_stopped(), TIMEOUT_S)
        await leader.propose(b"x", timeout_s=TIMEOUT_S)
        assert leader.status().removed_ids == {gone}
        with pytest.raises(MembershipError, match="ids are never used again"):
            await leader.change_membership(MembershipChange(MembershipAction.ADD_LEARNER, member), timeout_s=TIMEOUT_S)
        await cluster.stop()

    run(body)


def test_a_leader_can_remove_itself(cluster: Cluster) -> None:
    """A leader that is removed commits that, steps down and ends; another leads the rest."""

    async def body() -> None:
        await cluster.grow(3)
        leader = await cluster.leader()
        raft_id = leader.status().member_id
        change = MembershipChange(MembershipAction.REMOVE, Member(raft_id, f"node-{raft_id}"))
        await leader.change_membership(change, timeout_s=TIMEOUT_S)
        with pytest.raises(Removed):
            await asyncio.wait_for(leader.wait_stopped(), TIMEOUT_S)
        await leader.stop()
        del cluster.engines[raft_id]
        new = await cluster.leader()
        assert len(new.status().members) == 2
        await new.propose(b"x", timeout_s=TIMEOUT_S)
        await cluster.stop()

    run(body)


def test_a_joiner_does_not_lead_by_itself(cluster: Cluster) -> None:
    """A member that waits for its first snapshot never campaigns, refuses writes, and is the same after a restart."""

    async def body() -> None:
        prepare_joiner(cluster.path(7), 7)
        for _ in range(2):
            engine = cluster.make(7)
            await engine.start()
            await asyncio.sleep(0.5)
            assert engine.status().role is Role.FOLLOWER
            assert engine.status().term == 0
            assert engine.status().members == ()
            with pytest.raises(NotLeader):
                await engine.propose(b"x", timeout_s=TIMEOUT_S)
            await engine.stop()

    run(body)
