"""What a write through the store promises."""

import asyncio

import pytest

from orch_manager.store.errors import (
    AlreadyExists,
    NameTaken,
    ObjectMutated,
    ObjectNotFound,
    OutOfDate,
    StoreBusy,
    TransactionTooLarge,
    UnknownIndex,
)
from orch_manager.store.store import Store
from orch_manager.store.transaction import Transaction
from orch_manager.store.writes import observed_writes
from orch_proto.objects_pb2 import Config, Network, Node, Secret, Service, Stack, Task
from orch_raft.errors import EngineStopped, NotLeader, OutcomeUnknown
from unit.store.conftest import StoreBench
from unit.store.objects import create, move, service, task

Named = Stack | Service | Network | Secret | Config


def test_a_write_is_visible_when_it_returns_and_after_a_restart(bench: StoreBench) -> None:
    """What `update` wrote is read back at once, and by the next store over the same folder."""

    async def write(store: Store) -> None:
        await store.update(create(service("s1", "web"), task("t1", "s1", 1)), reason="test")
        written = store.get(Service, "s1")
        assert written is not None
        assert written.spec.annotations.name == "web"
        assert written.meta.version_index == store.index
        assert written.meta.created_at_unix_ms == written.meta.updated_at_unix_ms == bench.clock.now_unix_ms

    async def read(store: Store) -> None:
        assert [each.id for each in store.find(Service, name="web")] == ["s1"]
        assert [each.id for each in store.find(Task, slot=("s1", 1))] == ["t1"]
        assert store.get(Task, "t2") is None

    bench.run(write)
    bench.run(read)


def test_a_transaction_sees_its_own_writes_and_nobody_else_does(bench: StoreBench) -> None:
    """Inside a transaction its writes are found by id and index; readers outside see the state before it."""

    async def body(store: Store) -> None:
        await store.update(create(task("t1", node_id="n1"), task("t2", node_id="n1")), reason="test")

        def function(tx: Transaction) -> None:
            moved = tx.edit(Task, "t1")
            moved.node_id = "n2"
            tx.update(moved)
            tx.create(task("t3", node_id="n1"))
            tx.delete(Task, "t2")
            assert [each.id for each in tx.find(Task, node_id="n1")] == ["t3"]
            assert [each.id for each in tx.find(Task, node_id="n2")] == ["t1"]
            assert sorted(each.id for each in tx.all(Task)) == ["t1", "t3"]
            assert tx.get(Task, "t2") is None
            assert sorted(each.id for each in store.find(Task, node_id="n1")) == ["t1", "t2"]

        await store.update(function, reason="test")
        assert [each.id for each in store.find(Task, node_id="n1")] == ["t3"]

    bench.run(body)


def test_a_function_that_raises_changes_nothing_and_disturbs_nobody(bench: StoreBench) -> None:
    """A raise undoes the function's writes, reaches its caller alone, and its neighbours in the entry are written."""

    async def body(store: Store) -> None:
        await store.update(create(task("t0", node_id="n1")), reason="test")

        def failing(tx: Transaction) -> None:
            tx.create(task("half"))
            tx.update(moved := tx.edit(Task, "t0"))
            moved = tx.edit(Task, "t0")
            moved.node_id = "n9"
            tx.update(moved)
            tx.delete(Task, "t0")
            raise RuntimeError("changed my mind")

        before, broken, after = await asyncio.gather(
            store.update(create(task("t1")), reason="test"),
            store.update(failing, reason="test"),
            store.update(move("t0", "n2"), reason="test"),
            return_exceptions=True,
        )
        assert before is None
        assert after is None
        assert isinstance(broken, RuntimeError)
        assert sorted(each.id for each in store.all(Task)) == ["t0", "t1"]
        assert [each.id for each in store.find(Task, node_id="n2")] == ["t0"]
        assert store.find(Task, node_id="n9") == []

    bench.run(body)


def test_writers_that_wait_share_an_entry_and_build_on_each_other(bench: StoreBench) -> None:
    """Functions that wait together see what those before them wrote, and share one version."""

    async def body(store: Store) -> None:
        await store.update(create(task("t1")), reason="test")

        def count(tx: Transaction) -> int:
            changed = tx.edit(Task, "t1")
            changed.slot += 1
            tx.update(changed)
            return changed.slot

        index = store.index
        results = await asyncio.gather(*(store.update(count, reason="test") for _ in range(150)))
        assert results == list(range(1, 151))
        counted = store.get(Task, "t1")
        assert counted is not None
        assert counted.slot == 150
        # The first goes alone or with all others; what matters is that they did not go one by one.
        assert store.index - index <= 5

    bench.run(body)


def test_an_update_of_an_old_version_is_refused(bench: StoreBench) -> None:
    """A copy that was made before somebody else's change cannot overwrite that change, waiting together or not."""

    async def body(store: Store) -> None:
        await store.update(create(task("t1")), reason="test")
        stored = store.get(Task, "t1")
        assert stored is not None

        def based_on_stored(node_id: str) -> Task:
            changed = Task()
            changed.CopyFrom(stored)
            changed.node_id = node_id
            return changed

        outcomes = await asyncio.gather(
            store.update(lambda tx: tx.update(based_on_stored("n1")), reason="test"),
            store.update(lambda tx: tx.update(based_on_stored("n2")), reason="test"),
            return_exceptions=True,
        )
        assert outcomes[0] is None
        assert isinstance(outcomes[1], OutOfDate)
        with pytest.raises(OutOfDate, match="read it again and repeat the change"):
            await store.update(lambda tx: tx.update(based_on_stored("n3")), reason="test")
        assert [each.id for each in store.find(Task, node_id="n1")] == ["t1"]

        def notices_at_once(tx: Transaction) -> None:
            with pytest.raises(OutOfDate):
                tx.update(based_on_stored("n4"))

        await store.update(notices_at_once, reason="test")

    bench.run(body)


def test_times_and_versions_belong_to_the_store(bench: StoreBench) -> None:
    """Created stays, updated and version move with each write, whatever the caller put into `meta`."""

    async def body(store: Store) -> None:
        forged = task("t1")
        forged.meta.version_index = 12345
        forged.meta.created_at_unix_ms = 1
        await store.update(create(forged), reason="test")
        first = store.get(Task, "t1")
        assert first is not None
        bench.clock.now_unix_ms += 5000

        def forge(tx: Transaction) -> None:
            changed = tx.edit(Task, "t1")
            changed.meta.created_at_unix_ms = 7
            tx.update(changed)

        await store.update(forge, reason="test")
        second = store.get(Task, "t1")
        assert second is not None
        assert first.meta.created_at_unix_ms == second.meta.created_at_unix_ms == 1_000_000
        assert second.meta.updated_at_unix_ms == 1_005_000
        assert second.meta.version_index > first.meta.version_index

    bench.run(body)


@pytest.mark.parametrize("kind", [Stack, Service, Network, Secret, Config])
def test_names_are_unique_within_a_kind(bench: StoreBench, kind: type[Named]) -> None:
    """A second object of a kind with a name is refused, on creation and on renaming; a freed name may be used."""

    def give_name(item: Named, name: str) -> Named:
        (item.annotations if isinstance(item, Stack) else item.spec.annotations).name = name
        return item

    def rename(tx: Transaction) -> None:
        tx.update(give_name(tx.edit(kind, "b"), "one"))

    def swap(tx: Transaction) -> None:
        tx.delete(kind, "a")
        tx.create(give_name(kind(id="c"), "one"))

    async def body(store: Store) -> None:
        await store.update(create(give_name(kind(id="a"), "one"), give_name(kind(id="b"), "two")), reason="test")
        with pytest.raises(NameTaken, match="a has this name") as caught:
            await store.update(create(give_name(kind(id="c"), "one")), reason="test")
        assert caught.value.holder_id == "a"
        with pytest.raises(NameTaken):
            await store.update(rename, reason="test")
        await store.update(swap, reason="test")
        assert [item.id for item in store.find(kind, name="one")] == ["c"]

    bench.run(body)


def test_nodes_may_share_a_hostname(bench: StoreBench) -> None:
    """Two hosts of the same name are two nodes."""

    async def body(store: Store) -> None:
        first, second = Node(id="n1"), Node(id="n2")
        first.description.hostname = second.description.hostname = "host"
        await store.update(create(first, second), reason="test")
        assert [each.id for each in store.find(Node, hostname="host")] == ["n1", "n2"]

    bench.run(body)


def test_impossible_changes_are_refused(bench: StoreBench) -> None:
    """Creating what exists, changing or removing what does not, and creating without an id each have their error."""

    async def body(store: Store) -> None:
        await store.update(create(task("t1")), reason="test")
        with pytest.raises(AlreadyExists):
            await store.update(create(task("t1")), reason="test")
        with pytest.raises(ObjectNotFound):
            await store.update(move("t2", "n1"), reason="test")
        with pytest.raises(ObjectNotFound):
            await store.update(lambda tx: tx.update(task("t2")), reason="test")
        with pytest.raises(ObjectNotFound):
            await store.update(lambda tx: tx.delete(Task, "t2"), reason="test")
        with pytest.raises(ValueError, match="without an id"):
            await store.update(create(task("")), reason="test")
        with pytest.raises(UnknownIndex, match="desired_state, node_id, service_id, slot, stack_id"):
            store.find(Task, colour="blue")

        async def later(tx: Transaction) -> None:
            tx.create(task("t3"))

        with pytest.raises(TypeError, match="must not be async"):
            await store.update(later, reason="test")  # type: ignore[unused-coroutine]  # what is refused

    bench.run(body)


def test_a_large_transaction_stays_whole(bench: StoreBench) -> None:
    """One transaction may have thousands of changes, and is one version."""

    async def body(store: Store) -> None:
        await store.update(create(*(task(f"t{n}", "s1", n) for n in range(5000))), reason="deploy")
        assert {each.meta.version_index for each in store.all(Task)} == {store.index}

    bench.run(body)


def test_a_transaction_over_the_limit_is_refused(bench: StoreBench) -> None:
    """A transaction over 1.5 MiB is refused with its size and the limit, and what comes after it is written."""

    async def body(store: Store) -> None:
        big = Config(id="c1")
        big.spec.data = bytes(1_600_000)
        with pytest.raises(TransactionTooLarge, match="the limit is 1572864 bytes"):
            await store.update(create(big), reason="test")
        await store.update(create(Config(id="c1")), reason="test")

    bench.run(body)


def test_writers_that_do_not_fit_into_one_entry_are_all_written(bench: StoreBench) -> None:
    """Waiting transactions that together are over the limit go into several entries."""

    def config(number: int) -> Config:
        item = Config(id=f"c{number}")
        item.spec.data = bytes(700_000)
        return item

    async def body(store: Store) -> None:
        await asyncio.gather(*(store.update(create(config(number)), reason="test") for number in range(7)))
        assert len(store.all(Config)) == 7

    bench.run(body)


def test_editing_a_stored_object_in_place_is_noticed(bench: StoreBench) -> None:
    """Handing the stored object itself to `update` is refused, and an edit in place is found."""

    async def body(store: Store) -> None:
        await store.update(create(task("t1")), reason="test")
        stored = store.get(Task, "t1")
        assert stored is not None
        with pytest.raises(ObjectMutated):
            await store.update(lambda tx: tx.update(stored), reason="test")
        stored.node_id = "edited"
        with pytest.raises(ObjectMutated, match="task t1 was edited in place"):
            store.check_unedited()
        stored.node_id = ""

    bench.run(body)


def test_what_the_caller_keeps_is_its_own(bench: StoreBench) -> None:
    """Editing an object after handing it to the transaction does not reach the store."""

    async def body(store: Store) -> None:
        mine = task("t1", node_id="n1")

        def function(tx: Transaction) -> None:
            tx.create(mine)
            mine.node_id = "n2"
            assert tx.edit(Task, "t1").node_id == "n1"
            copy = tx.edit(Task, "t1")
            copy.slot = 1
            tx.update(copy)
            copy.slot = 2
            assert tx.edit(Task, "t1").slot == 1

        await store.update(function, reason="test")
        mine.node_id = "n3"
        stored = store.get(Task, "t1")
        assert stored is not None
        assert (stored.node_id, stored.slot) == ("n1", 1)

    bench.run(body)


def test_a_read_only_function_writes_nothing(bench: StoreBench) -> None:
    """A function without changes returns its result and costs no log entry."""

    async def body(store: Store) -> None:
        before = store.engine.status().last_index
        assert await store.update(lambda tx: len(tx.all(Task)), reason="look") == 0
        assert store.engine.status().last_index == before

    bench.run(body)


def test_a_stopped_store_refuses_writes(bench: StoreBench) -> None:
    """Before the start and after the stop a write is refused, and reads still work."""

    async def body() -> None:
        store = bench.store()
        with pytest.raises(EngineStopped, match="not started"):
            await store.update(create(task("t1")), reason="test")
        await store.start()
        await store.update(create(task("t1")), reason="test")
        await store.stop()
        with pytest.raises(EngineStopped, match="stopped"):
            await store.update(create(task("t2")), reason="test")
        assert store.get(Task, "t1") is not None

    asyncio.run(body())


def test_a_waiting_write_is_bounded_in_time(bench: StoreBench) -> None:
    """A write whose turn does not come in time was not written and says so; one under way is of unknown outcome."""

    async def body(store: Store) -> None:
        held = asyncio.Event()
        propose = store.engine.propose

        async def slow(data: bytes, *, timeout_s: float) -> object:
            await held.wait()
            return await propose(data, timeout_s=timeout_s)

        store.engine.propose = slow  # type: ignore[method-assign,assignment]  # a slow disk, seen from above
        under_way = asyncio.create_task(store.update(create(task("t1")), reason="test", timeout_s=0.1))
        await asyncio.sleep(0.02)
        waiting = asyncio.create_task(store.update(create(task("t2")), reason="test", timeout_s=0.1))
        with pytest.raises(OutcomeUnknown):
            await under_way
        with pytest.raises(StoreBusy, match="nothing was written"):
            await waiting
        held.set()
        await store.update(create(task("t3")), reason="test")
        assert sorted(each.id for each in store.all(Task)) == ["t1", "t3"]

    bench.run(body)


def forget_answers(store: Store, *, arrives_late: bool) -> list[asyncio.Task[object]]:
    """Make the next proposal's answer get lost; the entry itself is proposed now, or only later."""
    propose = store.engine.propose
    lost: list[asyncio.Task[object]] = []

    async def forgetful(data: bytes, *, timeout_s: float) -> object:
        store.engine.propose = propose  # type: ignore[method-assign]  # only this once

        def send() -> None:
            lost.append(asyncio.create_task(propose(data, timeout_s=timeout_s)))

        if arrives_late:
            asyncio.get_running_loop().call_soon(send)
        else:
            send()
            await asyncio.sleep(0)
        raise OutcomeUnknown("the test says so")

    store.engine.propose = forgetful  # type: ignore[method-assign,assignment]  # an answer lost on its way
    return lost


def test_after_an_unknown_outcome_the_log_settles_first(bench: StoreBench) -> None:
    """The function that runs after a write of unknown outcome sees that write, if it was made."""

    async def body(store: Store) -> None:
        await store.update(create(task("t1")), reason="test")
        lost = forget_answers(store, arrives_late=False)
        with pytest.raises(OutcomeUnknown):
            await store.update(move("t1", "n1"), reason="test")
        assert await store.update(lambda tx: tx.edit(Task, "t1").node_id, reason="test") == "n1"
        await asyncio.gather(*lost)

    bench.run(body)


def test_a_transaction_that_was_overtaken_is_refused(bench: StoreBench) -> None:
    """Should a write slip in between a function and its entry, the entry is refused whole when it is applied."""

    async def body(store: Store) -> None:
        await store.update(create(task("t1")), reason="test")
        lost = forget_answers(store, arrives_late=True)
        with pytest.raises(OutcomeUnknown):
            await store.update(move("t1", "n1"), reason="test")

        def two_changes(tx: Transaction) -> None:
            tx.create(task("t2"))
            move("t1", "n2")(tx)

        with pytest.raises(OutOfDate):
            await store.update(two_changes, reason="test")
        await asyncio.gather(*lost)
        assert [each.id for each in store.find(Task, node_id="n1")] == ["t1"]
        assert store.get(Task, "t2") is None, "half of a refused transaction was written"

    bench.run(body)


def test_a_refusal_that_rests_on_a_write_waits_until_that_is_committed(bench: StoreBench) -> None:
    """Who is refused because of a write of the same batch is told so only when that write is there for good."""

    async def body(store: Store) -> None:
        propose, held = store.engine.propose, asyncio.Event()

        async def slow(data: bytes, *, timeout_s: float) -> object:
            await held.wait()
            return await propose(data, timeout_s=timeout_s)

        store.engine.propose = slow  # type: ignore[method-assign,assignment]  # a slow disk, seen from above
        first = asyncio.create_task(store.update(create(task("t1")), reason="test"))
        second = asyncio.create_task(store.update(create(task("t1")), reason="test"))
        await asyncio.sleep(0.05)
        assert not second.done()
        held.set()
        await first
        with pytest.raises(AlreadyExists):
            await second

    bench.run(body)


def test_a_refusal_that_rests_on_a_write_that_was_lost_is_thought_over(bench: StoreBench) -> None:
    """Who is refused because of a write that is never made is run again; without a leader nothing is claimed."""

    async def body(store: Store) -> None:
        propose = store.engine.propose
        errors = [OutcomeUnknown("the test says so"), NotLeader(None, 1)]

        async def losing(data: bytes, *, timeout_s: float) -> object:
            store.engine.propose = propose  # type: ignore[method-assign]  # only this once
            raise errors.pop(0)

        store.engine.propose = losing  # type: ignore[method-assign,assignment]  # an entry that is lost
        both = (store.update(create(task("t1")), reason="test") for _ in range(2))
        first, second = await asyncio.gather(*both, return_exceptions=True)
        assert isinstance(first, OutcomeUnknown)
        assert second is None
        assert store.get(Task, "t1") is not None
        store.engine.propose = losing  # type: ignore[method-assign,assignment]  # an entry that is lost
        both = (store.update(create(task("t2")), reason="test") for _ in range(2))
        assert [type(each) for each in await asyncio.gather(*both, return_exceptions=True)] == [NotLeader, NotLeader]

    bench.run(body)


def test_whether_a_call_wrote_is_told(bench: StoreBench) -> None:
    """A call knows whether anything was written for it, also by a task that it made."""

    async def body(store: Store) -> None:
        with observed_writes() as writes:
            await store.update(lambda tx: tx.get(Task, "t1"), reason="test")
            assert not writes.any
            await asyncio.gather(store.update(create(task("t1")), reason="test"))
            assert writes.any
        with observed_writes() as writes:
            with pytest.raises(AlreadyExists):
                await store.update(create(task("t1")), reason="test")
            assert not writes.any

    bench.run(body)
