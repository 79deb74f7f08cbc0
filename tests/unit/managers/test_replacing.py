"""Managers replaced under load, and a cluster that goes on with the one that is left."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from pathlib import Path

import pytest

from orch_proto.specs_pb2 import NodeRole
from orch_rpc.errors import OrchError, OutcomeUnknown
from unit.managers.manager_cluster import ManagerCluster, ManagerNode, managers, until

pytestmark = pytest.mark.timeout(120)


class Writer:
    """Writes until it is done, through managers that stay, and remembers what became of it."""

    def __init__(self, cluster: ManagerCluster) -> None:
        self._cluster = cluster
        self.leaving: set[str] = set()
        self.is_done = False
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []
        self.failed: list[str] = []

    async def run(self) -> None:
        number = 0
        while not self.is_done:
            number += 1
            through = [node for node in self._cluster.alive() if node.name not in self.leaving and node.socket.exists()]
            name = f"w{number}"
            try:
                await through[number % len(through)].write(name)
            except OutcomeUnknown:
                self.unknown.append(name)
            except OrchError as error:
                self.failed.append(f"{name}: {error}")
            else:
                self.acknowledged.append(name)


def test_every_manager_is_replaced_under_load_and_no_write_fails(tmp_path: Path) -> None:
    """Each of three managers, the leader too, is replaced by a new one while writes go on: none fails, none is lost."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            writer = Writer(cluster)
            writing = asyncio.create_task(writer.run())
            for old in list(cluster.nodes):
                stays = next(node for node in cluster.nodes if node is not old and node.name not in writer.leaving)
                new = await cluster.join(stays)
                await until(partial(_votes, stays, new), f"{new.name} votes")
                writer.leaving.add(old.name)
                await stays.set_role(old.node_id, NodeRole.NODE_ROLE_WORKER)
                assert await old.ended() == 5
            writer.is_done = True
            await writing
            assert not writer.failed, writer.failed[:3]
            assert len(writer.acknowledged) > 20
            for node in cluster.alive():
                found = await node.names()
                assert set(writer.acknowledged) <= found
                assert found <= {*writer.acknowledged, *writer.unknown}
            info = await cluster.alive()[0].info()
            assert {member.node_id for member in info.members} == {node.node_id for node in cluster.alive()}

    asyncio.run(story())


async def _votes(asked: ManagerNode, node: ManagerNode) -> bool:
    members = (await asked.info()).members
    return any(member.node_id == node.node_id and not member.learner for member in members)


def test_the_one_that_is_left_goes_on_alone_when_told_to(tmp_path: Path) -> None:
    """After the loss of two of three managers the third, told to, leads alone with all it has; the lost stay out."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            await cluster.nodes[0].write("kept")
            left, *lost = reversed(cluster.nodes)
            await until(lambda: _has(left, {"kept"}), "it has everything")
            for node in cluster.nodes:
                await node.stop(signal.SIGKILL)
            await left.start("--force-new-cluster")
            await left.write("after")
            assert await left.names() == {"kept", "after"}
            assert [member.node_id for member in (await left.info()).members] == [left.node_id]
            # Two that come back together are a quorum of what was: they must not go on as a second cluster unnoticed.
            await lost[0].start()
            assert await lost[0].ended() == 5
            await cluster.join(left)
            await cluster.voters(2)

    asyncio.run(story())


async def _has(node: ManagerNode, names: set[str]) -> bool:
    return names <= await node.names()
