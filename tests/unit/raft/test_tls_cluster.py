"""Three members over gRPC with mutual TLS on loopback."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest

from orch_proto import raft_pb2
from orch_proto.raft_pb2_grpc import RaftStub
from orch_raft.engine import Member, MembershipAction, MembershipChange
from orch_raft.limits import EngineOptions
from orch_raft.storage import found_cluster, prepare_joiner
from orch_raft.transport.client import mutual_channels
from orch_rpc.identity import Identity, IdentitySource
from unit.raft.counting_machine import CountingMachine
from unit.raft.tls_member import TlsMember
from unit.trust.servers import TestCluster, store_with

TIMEOUT_S = 20.0
OPTIONS = EngineOptions(heartbeat_ms=50, election_ms=400, snapshot_every_entries=300, keep_entries=20)


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(50):
            await body()

    asyncio.run(bounded())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], bool], what: str) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110  # a test looks from outside
                await asyncio.sleep(0.01)
            return
    pytest.fail(f"in {TIMEOUT_S:g} s it did not come true that {what}")


class Cluster:
    """Members by raft id; node ids are `node-<raft id>`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = TestCluster()
        self.members: dict[int, TlsMember] = {}
        self.machines: dict[int, CountingMachine] = {}
        self.ports: dict[int, int] = {}

    def source(self, identity: Identity) -> IdentitySource:
        folder = self.folder / f"identity-{identity.name}-{identity.role.value}"
        return IdentitySource(store_with(folder, identity))

    async def start(self, raft_id: int) -> TlsMember:
        source = self.source(self.authority.manager(f"node-{raft_id}"))
        port = self.ports.setdefault(raft_id, free_port())
        self.machines[raft_id] = CountingMachine()
        member = TlsMember(self.folder / f"raft-{raft_id}", source, port, self.machines[raft_id], OPTIONS)
        self.members[raft_id] = member
        await member.start()
        return member

    async def grow(self, count: int) -> None:
        self.ports[1] = free_port()
        found_cluster(self.folder / "raft-1", Member(1, "node-1", f"127.0.0.1:{self.ports[1]}"))
        leader = (await self.start(1)).engine
        for raft_id in range(2, count + 1):
            prepare_joiner(self.folder / f"raft-{raft_id}", raft_id)
            joiner = await self.start(raft_id)
            member = Member(raft_id, f"node-{raft_id}", joiner.address)
            await leader.change_membership(MembershipChange(MembershipAction.ADD_LEARNER, member), timeout_s=TIMEOUT_S)
            await until(lambda: all(peer.caught_up for peer in leader.status().peers), "it caught up")
            await leader.change_membership(MembershipChange(MembershipAction.PROMOTE, member), timeout_s=TIMEOUT_S)

    async def leader(self) -> TlsMember:
        await until(lambda: any(m.engine._turns.standing.is_leader for m in self.members.values()), "one leads")
        return next(member for member in self.members.values() if member.engine._turns.standing.is_leader)

    async def agree(self) -> None:
        machines = list(self.machines.values())
        await until(lambda: all(each.commands == machines[0].commands for each in machines), "all have the same")

    async def stop(self) -> None:
        for member in list(self.members.values()):
            await member.stop()


def test_three_members_commit_over_tls(tmp_path: Path) -> None:
    """Members that join over TLS commit together, one that was away catches up by a snapshot, reads are current."""

    async def body() -> None:
        cluster = Cluster(tmp_path)
        await cluster.grow(3)
        leader = await cluster.leader()
        await asyncio.gather(*(leader.engine.propose(b"%d" % n, timeout_s=TIMEOUT_S) for n in range(500)))
        await cluster.agree()
        away = next(raft_id for raft_id, member in cluster.members.items() if member is not leader)
        await cluster.members[away].stop()
        for start in range(500, 3000, 250):
            numbers = range(start, start + 250)
            data = [b"%d" % number + bytes(b"x" * 1000) for number in numbers]
            await asyncio.gather(*(leader.engine.propose(each, timeout_s=TIMEOUT_S) for each in data))
        await cluster.start(away)
        await cluster.agree()
        assert cluster.machines[away].restored == 2, "its own at the start, then the leader's"
        for member in cluster.members.values():
            applied = await leader.engine.propose(b"x", timeout_s=TIMEOUT_S)
            assert await member.engine.read_barrier() >= applied.index
        await cluster.stop()

    run(body)


def test_a_stopped_leader_is_replaced(tmp_path: Path) -> None:
    """When the leader's process goes another leads with all that was acknowledged; the old one returns as follower."""

    async def body() -> None:
        cluster = Cluster(tmp_path)
        await cluster.grow(3)
        old = await cluster.leader()
        raft_id = old.engine.status().member_id
        for number in range(20):
            await old.engine.propose(b"%d" % number, timeout_s=TIMEOUT_S)
        await old.stop()
        del cluster.members[raft_id]
        new = await cluster.leader()
        await new.engine.propose(b"after", timeout_s=TIMEOUT_S)
        await cluster.start(raft_id)
        await cluster.agree()
        assert cluster.machines[raft_id].commands == [*(b"%d" % number for number in range(20)), b"after"]
        await cluster.stop()

    run(body)


def test_a_manager_speaks_for_itself_alone(tmp_path: Path) -> None:
    """Messages and snapshots that bear another member's id than the certificate's, or a worker's, are refused."""

    async def body() -> None:
        cluster = Cluster(tmp_path)
        await cluster.grow(2)
        address = cluster.members[1].address
        batch = raft_pb2.RaftMessageBatch(messages=[raft_pb2.RaftMessage(type=8, to=1, term=99, **{"from": 2})])
        chunk = raft_pb2.RaftSnapshotChunk(term=99, meta=raft_pb2.RaftSnapshotMeta(index=9, term=9), **{"from": 2})
        for identity in (cluster.authority.manager("node-9"), cluster.authority.worker("node-2")):
            async with mutual_channels(cluster.source(identity))(address) as channel:
                for call in (
                    RaftStub(channel).Stream(iter([batch])),  # type: ignore[call-overload]
                    RaftStub(channel).Snapshot(iter([chunk])),  # type: ignore[call-overload]
                ):
                    assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
        assert cluster.members[1].engine.status().term < 99
        await cluster.stop()

    run(body)
