"""Three real manager processes over mutual TLS: who answers what, who leads, who joins and leaves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest

from orch_proto.specs_pb2 import NodeRole
from orch_rpc.errors import AlreadyExists, FailedPrecondition, Unavailable
from unit.managers.manager_cluster import ManagerNode, managers, remove, told, until, write

pytestmark = pytest.mark.timeout(90)


def test_any_manager_takes_writes_and_serves_reads(tmp_path: Path) -> None:
    """A write through a manager that does not lead is done by the leader, and every manager reads it at once."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            leader = await cluster.leader()
            for number, node in enumerate(cluster.nodes):
                await node.write(f"by-{number}")
                for reader in cluster.nodes:
                    assert f"by-{number}" in await reader.names()
            info = await cluster.nodes[1].info()
            assert info.node_id == cluster.nodes[1].node_id
            assert info.leader_node_id == leader.node_id
            assert info.tolerates == 1

    asyncio.run(story())


def test_a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """After kill -9 of the leader the next write, made through any manager, succeeds without being repeated."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            leader = await cluster.leader()
            await leader.write("before")
            await leader.stop(signal.SIGKILL)
            other = cluster.alive()[0]
            await other.write("after")
            assert {"before", "after"} <= await other.names()
            await leader.start()
            await until(lambda: _has(leader, {"before", "after"}), "the old leader follows")

    asyncio.run(story())


def test_a_leader_that_is_stopped_hands_over_first(tmp_path: Path) -> None:
    """A leader that is told to stop hands leadership over: no write fails meanwhile."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            leader = await cluster.leader()
            other = next(node for node in cluster.nodes if node is not leader)
            stopping = asyncio.create_task(leader.stop())
            for number in range(20):
                await other.write(f"w{number}")
            assert await stopping == 0
            assert "leadership handed over" in leader.log
            assert len(await other.names()) == 20

    asyncio.run(story())


def test_without_a_quorum_only_stale_reads_are_served(tmp_path: Path) -> None:
    """With two of three managers gone, writes and reads say that there is no leader; stale reads are answered."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            await cluster.nodes[0].write("kept")
            last = cluster.nodes[2]
            await until(lambda: _has(last, {"kept"}), "all have it")
            for node in cluster.nodes[:2]:
                await node.stop(signal.SIGKILL)
            with told(Unavailable, "there has been no leader", "orch cluster recover"):
                await last.write("lost")
            assert await last.names(stale=True) == {"kept"}
            info = await last.info(stale=True)
            assert info.no_leader_for_ms > 0
            assert info.tolerates == 0
            assert "there is no leader" in info.warnings[0]

    asyncio.run(story())


def test_a_demoted_manager_leaves_and_its_process_ends(tmp_path: Path) -> None:
    """Demoting the leader moves leadership first; the demoted manager ends with the status that says so."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            leader = await cluster.leader()
            other = next(node for node in cluster.nodes if node is not leader)
            answer = await other.set_role(leader.node_id, NodeRole.NODE_ROLE_WORKER)
            assert "an odd number is better" in answer.warnings[0]
            assert await leader.ended() == 5
            await cluster.voters(2)
            node = await other.node(leader.node_id)
            assert node.role == NodeRole.NODE_ROLE_WORKER
            assert not node.HasField("manager")
            await other.write("goes-on")

    asyncio.run(story())


def test_a_demotion_that_would_lose_the_quorum_is_refused(tmp_path: Path) -> None:
    """With one of three managers unreachable, demoting another one is refused with the sentence that says why."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            leader = await cluster.leader()
            away, stays = (node for node in cluster.nodes if node is not leader)
            await away.stop(signal.SIGKILL)

            async def noticed() -> bool:
                return any(not member.reachable for member in (await leader.info()).members)

            await until(noticed, "the leader knows that one is away")
            with told(FailedPrecondition, "the quorum would be lost", "of the 2 managers that would stay, 1 can"):
                await leader.set_role(stays.node_id, NodeRole.NODE_ROLE_WORKER)
            # The one that is away may go: the others are a quorum.
            await leader.set_role(away.node_id, NodeRole.NODE_ROLE_WORKER)
            await cluster.voters(2)

    asyncio.run(story())


async def _has(node: ManagerNode, names: set[str]) -> bool:
    return names <= await node.names()


def test_a_leader_that_was_replaced_while_it_slept_refuses_nothing_from_its_old_state(tmp_path: Path) -> None:
    """What others created and removed while a leader was stopped counts for the first calls that it then answers."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            await cluster.nodes[0].write("gone")
            await cluster.nodes[0].write("kept")
            sleeper = await cluster.leader()
            other = next(node for node in cluster.nodes if node is not sleeper)
            assert sleeper.process is not None
            async with sleeper.control() as stub:
                await write(stub, "connected")
                sleeper.process.send_signal(signal.SIGSTOP)
                try:
                    await until(lambda: _written(other, "new"), "another leads")
                    await other.remove("gone")
                    # They lie in its socket when it wakes, before it hears of the new term.
                    asked = (write(stub, "gone"), remove(stub, "new"), write(stub, "kept"))
                    calls = [asyncio.create_task(each) for each in asked]
                    await asyncio.sleep(0.3)
                finally:
                    sleeper.process.send_signal(signal.SIGCONT)
                created, removed, refused = await asyncio.gather(*calls, return_exceptions=True)
            assert created is None
            assert removed is None
            assert isinstance(refused, AlreadyExists)
            assert await other.names() == {"gone", "kept", "connected"}

    asyncio.run(story())


async def _written(node: ManagerNode, name: str) -> bool:
    with contextlib.suppress(AlreadyExists):
        await node.write(name)
    return True
