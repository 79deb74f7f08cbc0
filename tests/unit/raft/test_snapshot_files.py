"""Snapshots on disk are whole or refused, whatever happens while they are written."""

import random
from pathlib import Path
from typing import BinaryIO

import pytest

from orch_raft.engine import Member, SnapshotWriter, Suffrage
from orch_raft.errors import DataKeyError, DurabilityLost, SnapshotCorrupt
from orch_raft.log.keys import Keyring
from orch_raft.log.snapshots import SnapshotFolder
from orch_raft.membership import Membership, SnapshotMeta
from unit.raft.simulated_disk import PowerLossError, SimulatedDisk

FOLDER = Path("/snapshots")
KEYS = Keyring.generate()
MEMBERSHIP = Membership((Member(1, "a", "192.0.2.1:1"), Member(2, "b", "", Suffrage.LEARNER)), frozenset({9}))


def make_disk(power_loss_at: int | None = None, fail_at: int | None = None) -> SimulatedDisk:
    disk = SimulatedDisk(power_loss_at, fail_at)
    disk.make_folder(FOLDER)
    return disk


def snapshots(disk: SimulatedDisk, keys: Keyring = KEYS) -> SnapshotFolder:
    return SnapshotFolder(disk, FOLDER, keys, chunk_bytes=256)


def state(index: int) -> bytes:
    return random.Random(index).randbytes(1000)


def writes(data: bytes) -> SnapshotWriter:
    def write(stream: BinaryIO) -> None:
        stream.write(data)

    return write


def save(disk: SimulatedDisk, index: int) -> None:
    def write(stream: BinaryIO) -> None:
        stream.writelines(state(index)[start : start + 90] for start in range(0, 1000, 90))

    snapshots(disk).save(SnapshotMeta(index, 3, MEMBERSHIP), write)


def load(disk: SimulatedDisk, keys: Keyring = KEYS) -> tuple[SnapshotMeta, bytes]:
    meta, stream = snapshots(disk, keys).open_latest()
    return meta, stream.read()


def test_a_snapshot_reads_back_as_written() -> None:
    """State, index, term and membership come back as they were, and only the newest snapshot is kept."""
    disk = make_disk()
    save(disk, 10)
    save(disk, 300)
    assert load(disk) == (SnapshotMeta(300, 3, MEMBERSHIP), state(300))
    assert len(disk.list(FOLDER)) == 1


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 512])
def test_any_size_of_state_reads_back(size: int) -> None:
    """States at and around the size of a chunk come back whole, also when read byte by byte."""
    disk = make_disk()
    data = random.Random(size).randbytes(size)
    snapshots(disk).save(SnapshotMeta(5, 1, MEMBERSHIP), writes(data))
    _, stream = snapshots(disk).open_latest()
    assert b"".join(iter(lambda: stream.read(1), b"")) == data


def test_power_loss_while_saving_leaves_the_old_or_the_new() -> None:
    """Whenever power is lost while a snapshot is saved, the old one or the whole new one is found."""
    for at in range(1, 200):
        disk = make_disk()
        save(disk, 10)
        disk.operations.clear()
        disk.power_loss_at = at
        try:
            save(disk, 300)
        except PowerLossError:
            done = False
        else:
            done = True
        for seed in range(5):
            after = disk.after_power_loss(random.Random(f"{at} {seed}"))
            snapshots(after).remove_leftovers()
            meta, data = load(after)
            assert data == state(meta.index)
            assert meta.index in ({300} if done else {10, 300})
            save(after, 400)
            assert load(after)[0].index == 400
        if done:
            return
    pytest.fail("the save never came to its end")


def test_a_disk_that_fails_while_saving_leaves_the_old_or_the_new() -> None:
    """A save that fails says so, and can be repeated."""
    for at in range(1, 200):
        disk = make_disk()
        save(disk, 10)
        disk.operations.clear()
        disk.fail_at = at
        try:
            save(disk, 300)
        except DurabilityLost:
            assert load(disk)[0].index in (10, 300)
            save(disk, 400)
            assert load(disk) == (SnapshotMeta(400, 3, MEMBERSHIP), state(400))
        else:
            return
    pytest.fail("the save never came to its end")


def test_every_flipped_bit_is_refused() -> None:
    """A snapshot with any flipped bit is refused by file; none is restored with wrong content."""
    disk = make_disk()
    save(disk, 10)
    (name,) = disk.list(FOLDER)
    size = len(disk.inode(FOLDER / name).content)
    for bit in range(size * 8):
        damaged = disk.clone()
        damaged.inode(FOLDER / name).content[bit // 8] ^= 1 << bit % 8
        with pytest.raises((SnapshotCorrupt, DataKeyError), match=name):
            load(damaged)


def test_every_cut_is_refused() -> None:
    """A snapshot cut short anywhere, also between two chunks, is refused."""
    disk = make_disk()
    save(disk, 10)
    (name,) = disk.list(FOLDER)
    size = len(disk.inode(FOLDER / name).content)
    for cut in range(size):
        damaged = disk.clone()
        del damaged.inode(FOLDER / name).content[cut:]
        with pytest.raises(SnapshotCorrupt, match=name):
            load(damaged)


def test_a_snapshot_under_another_name_is_refused() -> None:
    """A snapshot that was renamed, and so would claim another index, is refused."""
    disk = make_disk()
    save(disk, 10)
    (name,) = disk.list(FOLDER)
    disk.rename(FOLDER / name, FOLDER / name.replace("a.snap", "b.snap"))
    with pytest.raises(SnapshotCorrupt, match="another snapshot under this name"):
        load(disk)


def test_a_snapshot_needs_its_key() -> None:
    """A snapshot cannot be read with another key."""
    disk = make_disk()
    save(disk, 10)
    with pytest.raises(DataKeyError):
        load(disk, Keyring.generate())


def test_a_snapshot_is_not_on_disk_in_clear() -> None:
    """Neither state nor membership can be read from the file."""
    disk = make_disk()
    snapshots(disk).save(SnapshotMeta(5, 1, MEMBERSHIP), writes(b"secret " * 99))
    (name,) = disk.list(FOLDER)
    raw = disk.read(FOLDER / name)
    assert b"secret " not in raw
    assert b"192.0.2.1" not in raw
