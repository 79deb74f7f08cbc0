"""What watchers of the store may rely on."""

import asyncio

import pytest

from orch_manager.store.changes import Action, Event
from orch_manager.store.store import Store
from orch_manager.store.transaction import Transaction
from orch_manager.store.watch import Resync
from orch_proto.objects_pb2 import Node, Service, Task
from unit.store.conftest import StoreBench
from unit.store.objects import create, move, remove, service, task


def test_events_tell_what_was_before_and_what_is_now(bench: StoreBench) -> None:
    """A watch gives each committed change in order, with the object before and after it."""

    async def body(store: Store) -> None:
        with store.watch(Task) as watch:
            await store.update(create(task("t1", node_id="n1"), service("s1", "web")), reason="test")
            await store.update(move("t1", "n2"), reason="test")
            await store.update(lambda tx: tx.delete(Task, "t1"), reason="test")
            seen = [await anext(watch) for _ in range(3)]
        assert [each.action for each in seen if isinstance(each, Event)] == [
            Action.CREATED,
            Action.UPDATED,
            Action.DELETED,
        ]
        first, second, third = (each for each in seen if isinstance(each, Event))
        assert isinstance(second.old, Task)
        assert isinstance(second.new, Task)
        assert (second.old.node_id, second.new.node_id) == ("n1", "n2")
        assert first.old is None
        assert third.new is None
        assert third.old is second.new
        assert first.index < second.index < third.index == store.index

    bench.run(body)


def test_only_what_was_asked_for_arrives(bench: StoreBench) -> None:
    """Kinds and predicate decide what a watch gets; no kinds means all."""

    def on_node(event: Event) -> bool:
        return isinstance(event.new, Task) and event.new.node_id == "n1"

    async def body(store: Store) -> None:
        with store.watch() as everything, store.watch(Task, predicate=on_node) as some, store.watch(Node) as none:
            await store.update(
                create(task("t1", node_id="n1"), task("t2", node_id="n2"), service("s1", "web")), reason="test"
            )
            assert [each.object_id for each in everything.drain() if isinstance(each, Event)] == ["t1", "t2", "s1"]
            assert [each.object_id for each in some.drain() if isinstance(each, Event)] == ["t1"]
            assert none.drain() == []

    bench.run(body)


def test_a_refused_write_has_no_events(bench: StoreBench) -> None:
    """Watchers hear of committed changes only."""

    def failing(tx: Transaction) -> None:
        tx.create(task("t1"))
        raise RuntimeError("no")

    async def body(store: Store) -> None:
        with store.watch() as watch:
            with pytest.raises(RuntimeError):
                await store.update(failing, reason="test")
            assert watch.drain() == []

    bench.run(body)


def test_a_view_and_its_watch_fit_together(bench: StoreBench) -> None:
    """What was read together with the start of a watch, plus its events, is the state at any later time."""

    async def body(store: Store) -> None:
        async def write(writer: int) -> None:
            for number in range(40):
                await store.update(create(task(f"t{writer}.{number}")), reason="test")
                if number % 3:
                    await store.update(remove(f"t{writer}.{number}"), reason="test")

        writers = [asyncio.create_task(write(writer)) for writer in range(5)]
        for _ in range(30):
            await asyncio.sleep(0)
        tasks, watch = store.view_and_watch(lambda view: view.all(Task), Task)
        known = {each.id: each for each in tasks}
        await asyncio.gather(*writers)
        for event in watch.drain():
            assert isinstance(event, Event)
            assert known.get(event.object_id) is event.old
            if isinstance(event.new, Task):
                known[event.object_id] = event.new
            else:
                del known[event.object_id]
        assert known == {each.id: each for each in store.all(Task)}
        watch.close()

    bench.run(body)


def test_a_slow_watcher_is_told_to_read_again(bench: StoreBench) -> None:
    """A watcher that lags further than its queue gets a Resync in place of the events, then what happens after it."""

    async def body(store: Store) -> None:
        with store.watch(Task, queue_events=10) as watch:
            for number in range(11):
                await store.update(create(task(f"t{number}")), reason="test")
            lost_at = store.index
            await store.update(create(task("t11")), reason="test")
            resync = await anext(watch)
            assert isinstance(resync, Resync)
            assert resync.index >= lost_at
            await store.update(create(task("t12")), reason="test")
            event = await anext(watch)
            assert isinstance(event, Event)
            assert event.object_id == "t12"

    bench.run(body)


def test_a_watch_ends_with_the_store_or_when_closed(bench: StoreBench) -> None:
    """`async for` over a watch ends after its last event when the watch or the store is closed."""

    async def body() -> None:
        store = bench.store()
        await store.start()
        watch, closed = store.watch(Task), store.watch(Task)
        closed.close()
        await store.update(create(task("t1")), reason="test")
        await store.stop()
        assert [each.object_id async for each in watch if isinstance(each, Event)] == ["t1"]
        assert [each async for each in closed] == []

    asyncio.run(body())


def test_a_signal_coalesces(bench: StoreBench) -> None:
    """A signal wakes once for any number of changes and names the kinds, of those asked for, that changed."""

    async def body(store: Store) -> None:
        signal = store.signal(Task, Node)
        assert await signal.wait(timeout_s=0.01) == frozenset()
        waiter = asyncio.create_task(signal.wait())
        await store.update(create(*(task(f"t{number}") for number in range(50)), service("s1", "web")), reason="test")
        assert await waiter == {Task}
        await store.update(create(Node(id="n1")), reason="test")
        await store.update(create(task("t99")), reason="test")
        assert await signal.wait() == {Task, Node}
        assert signal.take() == frozenset()
        signal.close()
        assert await signal.wait() == frozenset()

    bench.run(body)


def test_a_restored_snapshot_makes_watchers_read_again(bench: StoreBench) -> None:
    """When the whole state is replaced, each watch gets a Resync and each signal wakes."""

    async def body() -> None:
        store = bench.store()
        await store.start()
        await store.update(create(task("t1")), reason="test")
        await store.stop()
        other = bench.store()
        watch, signal = other.watch(Task), other.signal(Service)
        path = bench.folder.parent / "snapshot"
        with path.open("wb") as stream:
            store.snapshot()(stream)
        with path.open("rb") as stream:
            other.restore(stream)()
        assert watch.drain() == [Resync(store.index)]
        assert signal.take() == {Service}
        assert [each.id for each in other.all(Task)] == ["t1"]

    asyncio.run(body())
