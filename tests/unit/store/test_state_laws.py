"""Laws of the store: indexes agree with a scan, replicas agree with the leader, snapshots hold everything."""

import asyncio
import io
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orch_manager.store.changes import encode_entry
from orch_manager.store.errors import SnapshotUnreadable, TransactionError
from orch_manager.store.schema import KINDS, SCHEMA, StoreObject
from orch_manager.store.snapshot import read_snapshot, snapshot_writer
from orch_manager.store.store import Store
from orch_manager.store.tables import State
from orch_manager.store.transaction import Overlay, Transaction
from orch_proto.objects_pb2 import Service, StoreSnapshotHeader, Task
from orch_raft.engine import Engine, StateMachine
from orch_raft.limits import EngineOptions
from unit.store.conftest import StoreBench
from unit.store.objects import create, move, service, task

IDS = st.sampled_from(["a", "b", "c", "d"])
NAMES = st.sampled_from(["", "web", "db"])
NODES = st.sampled_from(["", "n1", "n2"])


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, str, str, str, int]:
    """One random change: verb, kind, id, and what to write."""
    verb = draw(st.sampled_from(["create", "update", "delete", "fail"]))
    kind = draw(st.sampled_from(["task", "service"]))
    return verb, kind, draw(IDS), draw(NODES if kind == "task" else NAMES), draw(st.integers(0, 2))


Plan = Sequence[Sequence[tuple[str, str, str, str, int]]]


def perform(tx: Transaction, plan: Sequence[tuple[str, str, str, str, int]]) -> None:
    """Make the changes of one transaction; any refusal ends it."""
    for verb, kind_name, object_id, text, number in plan:
        kind: type[Task | Service] = Task if kind_name == "task" else Service
        if verb == "fail":
            raise KeyError("the plan fails here")
        if verb == "delete":
            tx.delete(kind, object_id)
            continue
        item: Task | Service = tx.edit(kind, object_id) if verb == "update" else kind(id=object_id)
        if isinstance(item, Task):
            item.node_id, item.slot, item.service_id = text, number, text
        else:
            item.spec.annotations.name, item.stack_id = text, text
        if verb == "update":
            tx.update(item)
        else:
            tx.create(item)


def check_indexes(reader: State | Overlay) -> None:
    """Every index gives exactly what a scan gives, for every key in use."""
    for kind in KINDS:
        schema = SCHEMA[kind]
        items: list[StoreObject] = list(reader.all(kind))
        for name, keys_of in schema.indexes.items():
            keys = {key for item in items for key in keys_of(item)} | {"absent"}
            for key in keys:
                found = reader.find(kind, **{name: key})
                assert sorted(each.id for each in found) == sorted(each.id for each in items if key in keys_of(each))
                if name in schema.unique:
                    assert len(found) <= 1


def contents(reader: State | Overlay) -> dict[tuple[str, str], bytes]:
    """Everything, in a form that can be compared."""
    return {
        (SCHEMA[kind].label, item.id): item.SerializeToString(deterministic=True)
        for kind in KINDS
        for item in reader.all(kind)
    }


def no_engine(_machine: StateMachine) -> Engine:
    """For stores that only apply."""
    return None  # type: ignore[return-value]  # nothing is proposed


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.lists(steps(), max_size=5), min_size=1, max_size=4), max_size=5))
def test_leader_and_replica_agree(entries: Sequence[Plan]) -> None:
    """Whatever transactions are run, leader, replica and restored snapshot hold the same and indexes agree with a scan.

    A refused transaction leaves no trace, and what the leader's transactions saw is what applying the entries gives.
    """
    leader, follower = Store(no_engine, verify=True), Store(no_engine, verify=True)
    for index, entry in enumerate(entries, start=2):
        overlay = Overlay(leader._state)
        transactions = []
        for plan in entry:
            tx = Transaction(overlay, 1000 + index)
            before = contents(overlay)
            try:
                perform(tx, plan)
            except (TransactionError, KeyError):
                tx.roll_back()
                assert contents(overlay) == before
                continue
            tx.changes.proposed_at_unix_ms = 1000 + index
            transactions.append(tx.changes.SerializeToString())
            check_indexes(overlay)
        expected = {key: versionless(data, key) for key, data in contents(overlay).items()}
        data = encode_entry(transactions)
        assert leader.apply(index, 1, data) == (None,) * len(transactions)
        assert follower.apply(index, 1, data) == (None,) * len(transactions)
        assert {key: versionless(data, key) for key, data in contents(leader._state).items()} == expected
    check_indexes(leader._state)
    leader.check_unedited()
    assert contents(leader._state) == contents(follower._state)
    stream = io.BytesIO()
    leader.snapshot()(stream)
    stream.seek(0)
    restored = Store(no_engine, verify=True)
    restored.restore(stream)()
    assert contents(restored._state) == contents(leader._state)
    assert restored.index == leader.index
    check_indexes(restored._state)


def versionless(data: bytes, key: tuple[str, str]) -> bytes:
    """An object without its version, which is not known before it is in the log."""
    item = (Task if key[0] == "task" else Service).FromString(data)
    item.meta.version_index = 0
    return item.SerializeToString(deterministic=True)


def test_a_refused_transaction_in_an_entry_leaves_its_neighbours(bench: StoreBench) -> None:
    """Of an entry's transactions the refused one changes nothing, on any replica, and the others are applied."""
    store = Store(no_engine, verify=True)

    def encoded(*functions: object) -> bytes:
        transactions = []
        for function in functions:
            tx = Transaction(Overlay(store._state), 5)
            function(tx)  # type: ignore[operator]  # from objects.py
            transactions.append(tx.changes.SerializeToString())
        return encode_entry(transactions)

    assert store.apply(2, 1, encoded(create(service("s1", "web"), task("t1", node_id="n1")))) == (None,)
    entry = encoded(create(task("t2")), create(task("t3"), service("s2", "db")), create(task("t4")))
    store.apply(3, 1, encoded(create(service("s3", "db"))))
    outcomes = store.apply(4, 1, entry)
    assert [type(each).__name__ for each in outcomes] == ["NoneType", "NameTaken", "NoneType"]
    assert sorted(each.id for each in store.all(Task)) == ["t1", "t2", "t4"]
    check_indexes(store._state)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 200))
def test_a_damaged_snapshot_is_refused(cut: int) -> None:
    """A snapshot that ends early, goes on after its end, or is of a newer version is refused."""
    state = State()
    for number in range(5):
        state.put(task(f"t{number}", "s1", number))
    stream = io.BytesIO()
    snapshot_writer(state, 7)(stream)
    whole = stream.getvalue()
    index, items = read_snapshot(io.BytesIO(whole))
    assert (index, len(items)) == (7, 5)
    with pytest.raises(SnapshotUnreadable):
        read_snapshot(io.BytesIO(whole[: cut % len(whole)]))
    with pytest.raises(SnapshotUnreadable, match="bytes follow"):
        read_snapshot(io.BytesIO(whole + b"x"))
    newer = StoreSnapshotHeader(schema_version=99).SerializeToString()
    with pytest.raises(SnapshotUnreadable, match="schema version 99"):
        read_snapshot(io.BytesIO(len(newer).to_bytes(4, "big") + newer))


def test_a_store_survives_snapshots_and_restarts(bench: StoreBench) -> None:
    """Through many snapshots and restarts the store holds what was written, under the same versions."""
    options = EngineOptions(snapshot_every_entries=20, keep_entries=5)
    before: dict[tuple[str, str], bytes] = {}

    async def write(store: Store) -> None:
        assert contents(store._state) == before
        start = len(store.all(Task))
        for number in range(start, start + 50):
            await store.update(create(task(f"t{number}", "s1", number)), reason="test")
            await store.update(move(f"t{number // 2}", f"n{number}"), reason="test")
        before.clear()
        before.update(contents(store._state))
        assert store.engine.status().last_snapshot_index > 1

    for _ in range(3):
        bench.run(write, options)
    bench.run(lambda store: _same(store, before))


async def _same(store: Store, before: dict[tuple[str, str], bytes]) -> None:
    await asyncio.sleep(0)
    assert contents(store._state) == before
