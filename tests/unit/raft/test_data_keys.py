"""The data keys: sealed with a key that no manager keeps, and changed without losing anything."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import Member, Observer
from orch_raft.errors import StateLocked
from orch_raft.limits import EngineOptions
from orch_raft.log.key_file import create_key_file, read_key_file, write_key_file
from orch_raft.storage import check_unlock_key, found_cluster, is_locked, open_storage
from unit.raft.counting_machine import CountingMachine
from unit.raft.simulated_disk import PowerLossError, SimulatedDisk

FOLDER = Path("/keys")
MEMBER = Member(3, "node-3")
UNLOCK = random.Random(1).randbytes(32)
OTHER = random.Random(2).randbytes(32)
TIMEOUT_S = 20.0


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(50):
            await body()

    asyncio.run(bounded())


def test_a_sealed_folder_opens_with_its_unlock_key_alone(tmp_path: Path) -> None:
    """Once sealed, a member starts with the unlock key and not without it, nor with another; unsealing undoes it."""

    async def body() -> None:
        folder = tmp_path / "raft"
        found_cluster(folder, MEMBER)
        engine = ReplicatedEngine(folder, CountingMachine())
        await engine.start()
        await engine.propose(b"one", timeout_s=TIMEOUT_S)
        plain = (folder / "data.key").read_text()
        await engine.set_unlock_key(UNLOCK)
        await engine.propose(b"two", timeout_s=TIMEOUT_S)
        await engine.stop()
        assert is_locked(folder)
        sealed = (folder / "data.key").read_text()
        assert plain.split()[1] not in sealed
        assert (folder / "data.key").stat().st_mode & 0o777 == 0o600
        for wrong, why in ((None, "it needs the unlock key"), (OTHER, "does not open it")):
            with pytest.raises(StateLocked, match=why):
                await ReplicatedEngine(folder, CountingMachine(), unlock_key=wrong).start()
        with pytest.raises(StateLocked):
            check_unlock_key(folder, OTHER)
        check_unlock_key(folder, UNLOCK)
        machine = CountingMachine()
        engine = ReplicatedEngine(folder, machine, unlock_key=UNLOCK)
        await engine.start()
        assert machine.commands == [b"one", b"two"]
        await engine.set_unlock_key(OTHER)
        await engine.stop()
        with pytest.raises(StateLocked):
            await ReplicatedEngine(folder, CountingMachine(), unlock_key=UNLOCK).start()
        engine = ReplicatedEngine(folder, CountingMachine(), unlock_key=OTHER)
        await engine.start()
        await engine.set_unlock_key(None)
        await engine.stop()
        assert not is_locked(folder)

    run(body)


def test_a_changed_data_key_makes_the_old_one_useless(tmp_path: Path) -> None:
    """After a change of the data key nothing on disk needs the old one, which is forgotten, and nothing is lost."""

    async def body() -> None:
        folder = tmp_path / "raft"
        found_cluster(folder, MEMBER, unlock_key=UNLOCK)
        engine = ReplicatedEngine(folder, CountingMachine(), unlock_key=UNLOCK)
        await engine.start()
        old = engine._opened()[0].keyring
        for number in range(50):
            await engine.propose(b"%d" % number, timeout_s=TIMEOUT_S)
        writes = [asyncio.create_task(engine.propose(b"more %d" % n, timeout_s=TIMEOUT_S)) for n in range(100)]
        await engine.change_data_key()
        await asyncio.gather(*writes)
        new = engine._opened()[0].keyring
        assert len(new.key_ids) == 1
        assert new.key_ids != old.key_ids
        await engine.stop()
        (old_id,) = old.key_ids
        for path in (*(folder / "log").iterdir(), *(folder / "snapshots").iterdir()):
            assert old_id not in path.read_bytes()
        machine = CountingMachine()
        engine = ReplicatedEngine(folder, machine, unlock_key=UNLOCK)
        await engine.start()
        assert len(machine.commands) == 150
        await engine.stop()

    run(body)


def test_a_change_of_key_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    """When a member ends between the new key and the snapshot, the next start reads both keys and finishes it."""

    async def body() -> None:
        folder = tmp_path / "raft"
        found_cluster(folder, MEMBER)
        engine = ReplicatedEngine(folder, CountingMachine())
        await engine.start()
        await engine.propose(b"one", timeout_s=TIMEOUT_S)
        await engine.stop()
        storage, _ = open_storage(folder, options=EngineOptions(), observer=Observer())
        storage.change_data_key()
        assert storage.has_old_keys
        storage.close()
        machine = CountingMachine()
        engine = ReplicatedEngine(folder, machine)
        await engine.start()
        await engine.propose(b"two", timeout_s=TIMEOUT_S)
        storage = engine._opened()[0]
        async with asyncio.timeout(TIMEOUT_S):
            while storage.has_old_keys:  # noqa: ASYNC110  # a test looks from outside
                await asyncio.sleep(0.01)
        await engine.stop()
        machine = CountingMachine()
        engine = ReplicatedEngine(folder, machine)
        await engine.start()
        assert machine.commands == [b"one", b"two"]
        await engine.stop()

    run(body)


def test_power_loss_while_the_key_file_is_written_leaves_the_old_or_the_new() -> None:
    """Whenever power is lost while keys are written, a file that opens with the old or the new key is left."""
    for at in range(1, 30):
        disk = SimulatedDisk()
        disk.make_folder(FOLDER)
        old = create_key_file(disk, FOLDER / "data.key", UNLOCK)
        new = old.with_new_key()
        disk.operations.clear()
        disk.power_loss_at = at
        try:
            write_key_file(disk, FOLDER / "data.key", new, OTHER)
        except PowerLossError:
            done = False
        else:
            done = True
        for seed in range(5):
            after = disk.after_power_loss(random.Random(f"{at} {seed}"))
            found = []
            for unlock_key in (UNLOCK, OTHER):
                try:
                    found.append(read_key_file(after, FOLDER / "data.key", unlock_key))
                except StateLocked:
                    continue
            assert found == [new] or (found == [old] and not done)
        if done:
            return
    pytest.fail("the writing never came to its end")


def test_every_flipped_bit_of_a_sealed_key_file_is_refused() -> None:
    """A sealed key file with any flipped bit gives no key at all rather than a wrong one."""
    disk = SimulatedDisk()
    disk.make_folder(FOLDER)
    create_key_file(disk, FOLDER / "data.key", UNLOCK)
    whole = bytes(disk.inode(FOLDER / "data.key").content)
    keyring = read_key_file(disk, FOLDER / "data.key", UNLOCK)
    for bit in range(len(whole) * 8):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        disk.inode(FOLDER / "data.key").content[:] = content
        try:
            found = read_key_file(disk, FOLDER / "data.key", UNLOCK)
        except Exception as error:
            assert "cannot" in str(error)  # noqa: PT017  # several kinds are right
        else:
            assert found == keyring, "a bit that says nothing: case of a digit, kind of a space"


def test_a_short_unlock_key_is_refused(tmp_path: Path) -> None:
    """An unlock key that could be guessed is an error at once."""
    with pytest.raises(ValueError, match="at least 16 bytes"):
        found_cluster(tmp_path / "raft", MEMBER, unlock_key=b"guess")
