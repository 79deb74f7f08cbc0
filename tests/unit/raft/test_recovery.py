"""A member that goes on alone after the others are lost for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import EngineStatus, Member, MembershipAction, MembershipChange, Observer, Suffrage
from orch_raft.errors import MembershipError, StateLocked
from orch_raft.limits import EngineOptions
from orch_raft.log.records import Entry, EntryKind, HardState
from orch_raft.membership import encode_change
from orch_raft.recovery import force_new_cluster
from orch_raft.storage import found_cluster, open_storage, prepare_joiner

OWN = Member(1, "one", "10.0.0.1:2377")
OTHERS = (Member(2, "two", "10.0.0.2:2377"), Member(3, "three", "10.0.0.3:2377"))


class Journal:
    """A state machine that is the list of what was applied."""

    def __init__(self) -> None:
        self.applied: list[bytes] = []

    def apply(self, index: int, term: int, data: bytes) -> object:  # noqa: ARG002 -- the protocol's names
        self.applied.append(data)
        return index

    def snapshot(self) -> object:
        return lambda _stream: None

    def restore(self, stream: object) -> object:  # noqa: ARG002 -- the protocol's names
        return lambda: None


def change(index: int, action: MembershipAction, member: Member) -> Entry:
    return Entry(index, 2, EntryKind.MEMBERSHIP, encode_change(MembershipChange(action, member)))


def a_member_of_three(folder: Path, *, unlock_key: bytes | None = None) -> None:
    """A state folder whose log has two other voters, a committed write and one that was not committed."""
    found_cluster(folder, OWN, unlock_key=unlock_key)
    entries: list[Entry] = []
    for member in OTHERS:
        entries.append(change(len(entries) + 2, MembershipAction.ADD_LEARNER, member))
        entries.append(change(len(entries) + 2, MembershipAction.PROMOTE, member))
    entries.append(Entry(6, 2, EntryKind.COMMAND, b"acknowledged"))
    entries.append(Entry(7, 2, EntryKind.COMMAND, b"not committed"))
    storage, _ = open_storage(folder, options=EngineOptions(), observer=Observer(), unlock_key=unlock_key)
    storage.log.append(entries, HardState(2, 1, 6))
    storage.close()


def serve(folder: Path, unlock_key: bytes | None = None) -> tuple[EngineStatus, list[bytes]]:
    """Starts the member without anybody to talk to, writes once, and returns what it is and has."""

    async def story() -> tuple[EngineStatus, list[bytes]]:
        journal = Journal()
        engine = ReplicatedEngine(folder, journal, unlock_key=unlock_key)  # type: ignore[arg-type]
        await engine.start()
        await engine.propose(b"new", timeout_s=5)
        status = engine.status()
        await engine.stop()
        return status, journal.applied

    return asyncio.run(story())


def test_it_serves_alone_with_everything_it_has(tmp_path: Path) -> None:
    """It elects itself, has every entry of its log, takes writes, and the others' ids are never used again."""
    a_member_of_three(tmp_path)
    assert force_new_cluster(tmp_path) == OTHERS
    status, applied = serve(tmp_path)
    assert [member.raft_id for member in status.members] == [1]
    assert status.removed_ids == {2, 3}
    assert applied == [b"acknowledged", b"not committed", b"new"]
    assert status.term > 2


def test_twice_is_as_once(tmp_path: Path) -> None:
    """A recovery that is repeated changes nothing more."""
    a_member_of_three(tmp_path)
    force_new_cluster(tmp_path)
    assert force_new_cluster(tmp_path) == ()
    assert [member.raft_id for member in serve(tmp_path)[0].members] == [1]


def test_a_learner_that_is_left_votes_from_then_on(tmp_path: Path) -> None:
    """Also a manager that was not caught up yet can go on alone, with what it has."""
    a_member_of_three(tmp_path)
    storage, _ = open_storage(tmp_path, options=EngineOptions(), observer=Observer())
    storage.log.append([change(8, MembershipAction.DEMOTE, OWN)], HardState(2, 1, 8))
    storage.close()
    force_new_cluster(tmp_path)
    (member,) = serve(tmp_path)[0].members
    assert member.suffrage is Suffrage.VOTER


def test_a_joiner_without_state_cannot_go_on(tmp_path: Path) -> None:
    """Who never received the cluster's state has nothing to go on with, and says so."""
    prepare_joiner(tmp_path, 9)
    with pytest.raises(MembershipError, match="restore a backup"):
        force_new_cluster(tmp_path)


def test_a_sealed_state_needs_its_key(tmp_path: Path) -> None:
    """Recovery opens no lock: without the key nothing is read, with it the member goes on."""
    a_member_of_three(tmp_path, unlock_key=b"k" * 32)
    with pytest.raises(StateLocked):
        force_new_cluster(tmp_path)
    force_new_cluster(tmp_path, unlock_key=b"k" * 32)
    assert serve(tmp_path, b"k" * 32)[1][:1] == [b"acknowledged"]
