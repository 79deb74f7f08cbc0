"""A manager goes on after the others were lost, as engine; a cluster begins with the state of another."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import Member
from orch_raft.errors import FolderInUse, Removed
from orch_raft.recovery import force_new_cluster
from orch_raft.storage import found_cluster
from unit.raft.counting_machine import CountingMachine
from unit.raft.test_replicated_engine import OPTIONS, TIMEOUT_S, Cluster

MEMBER = Member(5, "node-5", "192.0.2.5:2377")


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(50):
            await body()

    asyncio.run(bounded())


def test_one_member_goes_on_after_the_others_were_lost(tmp_path: Path) -> None:
    """A survivor that is forced to go on has everything it had, leads alone, and tells the others that they are out."""

    async def body() -> None:
        cluster = Cluster(tmp_path)
        await cluster.grow(3)
        leader = await cluster.leader()
        for number in range(300):
            await leader.propose(b"%d" % number, timeout_s=TIMEOUT_S)
        await cluster.agree()
        with pytest.raises(FolderInUse):
            force_new_cluster(cluster.path(2))
        await cluster.stop()
        removed = await asyncio.to_thread(force_new_cluster, cluster.path(2), options=OPTIONS)
        assert {member.raft_id for member in removed} == {1, 3}
        cluster.engines.clear()
        survivor = cluster.make(2)
        await survivor.start()
        assert cluster.machines[2].commands == [b"%d" % number for number in range(300)]
        assert [member.raft_id for member in survivor.status().members] == [2]
        assert survivor.status().removed_ids == {1, 3}
        await survivor.propose(b"alone", timeout_s=TIMEOUT_S)
        back = cluster.make(3)
        await back.start()
        with pytest.raises(Removed):
            await asyncio.wait_for(back.wait_stopped(), TIMEOUT_S)
        await cluster.join(4)
        await cluster.agree(2, 4)
        await cluster.stop()

    run(body)


def test_a_cluster_can_begin_with_the_state_of_another(tmp_path: Path) -> None:
    """A cluster founded with a state holds it, and counts indexes and terms on from there."""

    async def body() -> None:
        folder = tmp_path / "raft"
        found_cluster(folder, MEMBER, write_state=lambda stream: stream.write(b"one\ntwo\n"), index=700, term=12)
        for number in range(2):
            machine = CountingMachine()
            engine = ReplicatedEngine(folder, machine)
            await engine.start()
            assert machine.commands[:2] == [b"one", b"two"]
            applied = await engine.propose(b"%d" % number, timeout_s=TIMEOUT_S)
            assert applied.index > 700
            assert applied.term > 12
            await engine.stop()

    run(body)
