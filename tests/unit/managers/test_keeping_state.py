"""Backup and restore, autolock, rejoining: what becomes of a manager's state."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest

from orch_manager.control.unlocking import parse_key
from orch_proto import control_pb2 as control
from orch_proto.control_pb2 import UnlockKeyAction
from orch_proto.specs_pb2 import NodeRole
from orch_raft.errors import StateLocked
from orch_raft.storage import check_unlock_key, is_locked
from orch_rpc.backups import read_backup, write_part
from orch_rpc.errors import InvalidArgument, rpc_errors
from unit.managers.manager_cluster import CLUSTER_ID, ManagerNode, managers, told, until

pytestmark = pytest.mark.timeout(90)


async def make_backup(node: ManagerNode, file: Path) -> None:
    async with node.control() as stub:
        with rpc_errors("make a backup"), file.open("wb") as stream:
            async for part in stub.Backup(control.BackupRequest(), timeout=20):
                write_part(stream, part)


def restore(node: ManagerNode, backup: Path) -> subprocess.CompletedProcess[str]:
    arguments = ["--backup", backup, "--state-dir", node.folder / "state", "--identity-dir", node.folder]
    arguments += ["--advertise-address", str(node.address)]
    command = [sys.executable, "-m", "orch_manager.restoring", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_backup_becomes_a_cluster_of_one_again(tmp_path: Path) -> None:
    """A fresh node restored from any manager's backup has the state, the authority and the ids; others can join it."""

    async def story() -> None:
        backup = tmp_path / "backup"
        async with managers(tmp_path, 3) as cluster:
            await cluster.nodes[0].write("kept")
            await make_backup(cluster.nodes[2], backup)
            made_by = cluster.nodes[2].node_id
            token = cluster.trust
        fresh = ManagerNode(tmp_path, "fresh")
        done = restore(fresh, backup)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"node_id": made_by, "cluster_id": CLUSTER_ID}
        fresh.node_id = made_by
        await fresh.start()
        cluster.nodes[:] = [fresh]
        cluster.trust = token
        try:
            assert await fresh.names() == {"kept"}
            info = await fresh.info()
            assert [member.node_id for member in info.members] == [made_by]
            await fresh.write("after")
            await cluster.join(fresh)
            await cluster.voters(2)
            assert await cluster.nodes[1].names() == {"kept", "after"}
        finally:
            await cluster.stop()

    asyncio.run(story())


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_backup_is_refused_and_nothing_is_made(tmp_path: Path, damage: str) -> None:
    """A backup that is cut, altered or no backup at all is refused by name, before anything is written."""

    async def story() -> None:
        backup = tmp_path / "backup"
        async with managers(tmp_path, 1) as cluster:
            await make_backup(cluster.nodes[0], backup)
        data = bytearray(backup.read_bytes())
        if damage == "cut":
            del data[-10:]
        elif damage == "flipped":
            data[len(data) // 2] ^= 1
        else:
            data[:] = b"something else"
        backup.write_bytes(data)
        with told(InvalidArgument, "cannot use the backup"):
            read_backup(BytesIO(bytes(data)))
        fresh = ManagerNode(tmp_path, "fresh")
        done = restore(fresh, backup)
        assert done.returncode == 1
        assert "cannot use the backup" in done.stderr
        assert not (fresh.folder / "state").exists()

    asyncio.run(story())


async def unlock_key(node: ManagerNode, action: UnlockKeyAction.ValueType) -> str:
    async with node.control() as stub:
        with rpc_errors("lock"):
            answer = await stub.UnlockKey(control.UnlockKeyRequest(action=action), timeout=15)
    return answer.unlock_key


def test_a_locked_manager_starts_with_its_key_alone(tmp_path: Path) -> None:
    """Once locked, a manager that starts ends with status 4 unless it is given the key; a rotated one is another."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            await cluster.nodes[0].write("kept")
            first = await unlock_key(cluster.nodes[1], UnlockKeyAction.UNLOCK_KEY_ACTION_LOCK)
            await until(lambda: _all_sealed(cluster.nodes, first), "all have sealed their keys")
            second = await unlock_key(cluster.nodes[2], UnlockKeyAction.UNLOCK_KEY_ACTION_ROTATE)
            assert first != second
            assert await unlock_key(cluster.nodes[0], UnlockKeyAction.UNLOCK_KEY_ACTION_SHOW) == second

            await until(lambda: _all_sealed(cluster.nodes, second), "all have sealed their keys with the second key")
            await until(lambda: _data_keys_changed(cluster.nodes), "what a holder of the first key could read is gone")
            node = cluster.nodes[1]
            for key in ("", first):
                await node.stop(signal.SIGKILL)
                if key:
                    (node.folder / "unlock.key").write_text(key)
                with pytest.raises(AssertionError, match="ended at its start"):
                    await node.start()
                assert await node.ended() == 4
                assert not (node.folder / "unlock.key").exists()
            (node.folder / "unlock.key").write_text(second)
            await node.start()
            assert not (node.folder / "unlock.key").exists()
            await until(lambda: _has(node, {"kept"}), "the unlocked manager follows")
            assert not await unlock_key(node, UnlockKeyAction.UNLOCK_KEY_ACTION_DISABLE)
            await until(lambda: _none_sealed(cluster.nodes), "all have unsealed their keys")
            await node.stop(signal.SIGKILL)
            await node.start()
            await until(lambda: _has(node, {"kept"}), "it starts without a key again")

    asyncio.run(story())


async def _all_sealed(nodes: list[ManagerNode], key: str) -> bool:
    try:
        for node in nodes:
            if not is_locked(node.folder / "state"):
                return False
            check_unlock_key(node.folder / "state", parse_key(key))
    except StateLocked:
        return False
    return True


async def _data_keys_changed(nodes: list[ManagerNode]) -> bool:
    return all("data key changed" in node.log for node in nodes)


async def _none_sealed(nodes: list[ManagerNode]) -> bool:
    return not any(is_locked(node.folder / "state") for node in nodes)


async def _has(node: ManagerNode, names: set[str]) -> bool:
    return names <= await node.names()


def test_a_manager_that_lost_its_disk_joins_under_another_id(tmp_path: Path) -> None:
    """A manager whose state is gone comes back with a new member id; the old member is removed, the node stays."""

    async def story() -> None:
        async with managers(tmp_path, 3) as cluster:
            await cluster.nodes[0].write("kept")
            lost = cluster.nodes[2]
            before = {member.node_id: member.raft_id for member in (await lost.info()).members}
            await lost.stop(signal.SIGKILL)
            shutil.rmtree(lost.folder / "state")
            await lost.start()
            await cluster.voters(3)
            await until(lambda: _has(lost, {"kept"}), "it has everything again")
            after = {member.node_id: member.raft_id for member in (await lost.info()).members}
            assert after[lost.node_id] != before[lost.node_id]
            assert {**after, lost.node_id: 0} == {**before, lost.node_id: 0}

    asyncio.run(story())


def test_a_node_that_is_wanted_as_a_worker_is_not_admitted(tmp_path: Path) -> None:
    """A manager's certificate alone does not make a member: the node must be wanted as a manager."""

    async def story() -> None:
        async with managers(tmp_path, 1) as cluster:
            joiner = await cluster.join(start=False)
            await cluster.nodes[0].set_role(joiner.node_id, NodeRole.NODE_ROLE_WORKER)
            await joiner.start()

            async def told_why() -> bool:
                return "it is not to be a manager" in joiner.log

            await until(told_why, "it is told why")
            assert len((await cluster.nodes[0].info()).members) == 1
            await cluster.nodes[0].set_role(joiner.node_id, NodeRole.NODE_ROLE_MANAGER)
            await cluster.voters(2)

    asyncio.run(story())
