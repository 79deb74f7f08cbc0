"""What an agent decides by itself: the rules, and a worker that acts on them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_agent.runtime import ContainerExit, ContainerView
from orch_agent.task.controller import now_ms
from orch_agent.task.record import Records
from orch_agent.worker import alone, worker
from orch_proto import defaults
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types
from unit.agent.scripted import play
from unit.agent.test_worker import Node, ScriptedNode, assigned, cancel_lives, make_node, task_of

NOW_MS = 1_000_000_000
RUNNING, READY = types.TASK_STATE_RUNNING, types.TASK_STATE_READY
FAILED, SHUTDOWN = types.TASK_STATE_FAILED, types.TASK_STATE_SHUTDOWN


def task(
    name: str,
    slot: int = 1,
    *,
    state: types.TaskState.ValueType = RUNNING,
    desired: types.TaskState.ValueType = RUNNING,
) -> objects.Task:
    made = objects.Task(id=name, service_id="s", slot=slot, desired_state=desired)
    made.status.state = state
    made.meta.created_at_unix_ms = NOW_MS - 60_000
    made.spec.restart.delay_ms = 0
    return made


def made_of(tasks: list[objects.Task], told: set[str] | None = None) -> list[objects.Task]:
    ids = iter(f"new{number}" for number in range(100))
    return alone.successors(tasks, told or set(), now_ms=NOW_MS, new_id=lambda: next(ids))


def test_a_successor_has_the_slot_the_specification_and_the_address_of_the_ended_task() -> None:
    """All but its id, its state and its count is the old one's; it names the one that it replaces."""
    old = task("old", state=FAILED)
    old.networks.add(network_id="n", addresses=["10.0.0.5/24"])
    old.spec.container.image = "web:1"
    (made,) = made_of([old])
    assert (made.id, made.replaces, made.slot, made.restart_count) == ("new0", "old", 1, 1)
    assert (made.networks, made.spec) == (old.networks, old.spec)
    assert (made.status.state, made.desired_state) == (types.TASK_STATE_ASSIGNED, RUNNING)


def test_a_delay_is_waited_for_in_ready() -> None:
    """The successor is prepared and runs when its time has come."""
    old = task("old", state=FAILED)
    old.spec.restart.delay_ms = 5_000
    (made,) = made_of([old])
    assert (made.desired_state, made.not_before_unix_ms) == (READY, NOW_MS + 5_000)
    for at_ms, turns in ((NOW_MS + 4_999, []), (NOW_MS + 5_000, ["new0"])):
        assert alone.whose_turn_has_come([old, made], alone_since_ms=NOW_MS, now_ms=at_ms) == turns


def test_a_task_whose_predecessor_is_elsewhere_waits_as_long_as_a_leader_would() -> None:
    """Nobody here can say whether the old task has stopped."""
    waiting = task("new", state=READY, desired=READY)
    wait_ms = defaults.OLD_TASK_WAIT_MS
    assert alone.whose_turn_has_come([waiting], alone_since_ms=NOW_MS, now_ms=NOW_MS + wait_ms - 1) == []
    assert alone.whose_turn_has_come([waiting], alone_since_ms=NOW_MS, now_ms=NOW_MS + wait_ms) == ["new"]


@pytest.mark.parametrize(
    "kept",
    [
        task("runs"),
        task("unwanted", state=FAILED, desired=SHUTDOWN),
        task("stopped", state=SHUTDOWN),
        task("lost", state=types.TASK_STATE_ORPHANED),
    ],
    ids=lambda kept: kept.id,
)
def test_what_did_not_end_by_itself_is_not_replaced(kept: objects.Task) -> None:
    """A task that runs, was to stop, or was stopped gets no successor."""
    assert made_of([kept]) == []


def test_an_end_that_a_leader_knows_of_is_left_to_the_leader() -> None:
    """It may have given the slot to another node already."""
    assert made_of([task("old", state=FAILED)], told={"old"}) == []


_SOUP = st.lists(st.tuples(st.integers(1, 3), st.sampled_from([192, 384, 512, 576, 640, 704, 768, 832])), max_size=8)


@given(_SOUP, st.integers(0, 3), st.integers(1, 30))
def test_a_slot_never_has_two_and_never_more_attempts_than_allowed(
    soup: list[tuple[int, int]], most: int, rounds: int
) -> None:
    """Whatever there is and however often it fails: one successor at a time, max_attempts at most."""
    tasks = [task(f"t{number}", slot, state=state) for number, (slot, state) in enumerate(soup)]  # type: ignore[arg-type]
    for number, each in enumerate(tasks):
        each.meta.created_at_unix_ms += number
        each.spec.restart.max_attempts = most
    own: set[str] = set()
    ids = iter(f"new{number:04}" for number in range(1000))
    made_in: dict[int, int] = {}
    for number in range(rounds):
        made = alone.successors(tasks, set(), now_ms=NOW_MS + number, new_id=lambda: next(ids))
        assert len({each.slot for each in made}) == len(made)
        for each in made:
            assert not any(other.slot == each.slot and other.status.state <= RUNNING for other in tasks)
            made_in[each.slot] = made_in.get(each.slot, 0) + 1
            tasks.append(each)
            own.add(each.id)
            each.status.state = FAILED
        gone = alone.superfluous(tasks, own)
        tasks = [each for each in tasks if each.id not in gone]
    if most:
        assert all(count <= most for count in made_in.values())
    assert len(tasks) <= len(soup) + 3 * (max(defaults.REPLACEMENTS_KEPT, most + 1) + 1)


# ---- a worker ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _soon_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "ALONE_AFTER_MS", 50)
    monkeypatch.setattr(worker, "ALONE_LOOK_S", 0.01)


def on_this_node(task_id: str = "t1") -> objects.Task:
    made = task_of(task_id)
    made.service_id = "s"
    made.spec.restart.delay_ms = 0
    return made


async def successor_of(node: Node, task_id: str) -> str:
    """Waits until a task has a successor that runs."""
    async with asyncio.timeout(5):
        while True:
            for controller in node.worker.controllers.values():
                if controller.task.replaces == task_id and controller.status.state == RUNNING:
                    return controller.task.id
            await asyncio.sleep(0.001)


async def crash(node: Node, task_id: str) -> None:
    node.runtime.there.pop(task_id, None)
    node.worker.controllers[task_id].container_ended(ContainerExit(1, oom_killed=False, finished_at_unix_ms=now_ms()))
    await node.until(task_id, FAILED)


def test_a_worker_alone_replaces_what_fails_and_tells_the_next_leader(tmp_path: Path) -> None:
    """The successor runs without a leader, and is told of together with the end of what it replaced."""

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, ScriptedNode())
            standing_in = group.create_task(node.worker.stand_in())
            await node.worker.runtime_connected()
            node.worker.assignments(assigned(on_this_node()))
            await node.until("t1", RUNNING)
            node.reporter.acknowledged((await node.reporter.next_batch()).batch)
            node.worker.session_lost()
            await crash(node, "t1")
            made = await successor_of(node, "t1")
            batch = await node.reporter.next_batch()
            assert [(one.task_id, one.replaces, one.restart_count) for one in batch.replacements] == [(made, "t1", 1)]
            assert batch.updates[0].task_id == "t1"
            assert batch.updates[0].status.state == FAILED
            standing_in.cancel()
            cancel_lives(node.worker)

    play(scenario)


def test_nothing_is_replaced_while_a_leader_speaks_or_has_just_gone(tmp_path: Path) -> None:
    """A change of leader is not the hour of the agents."""

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, ScriptedNode())
            standing_in = group.create_task(node.worker.stand_in())
            await node.worker.runtime_connected()
            node.worker.assignments(assigned(on_this_node()))
            await node.until("t1", RUNNING)
            await crash(node, "t1")
            await asyncio.sleep(0.15)
            assert list(node.worker.controllers) == ["t1"]
            assert not node.worker.is_alone
            node.worker.session_lost()
            assert not node.worker.is_alone
            standing_in.cancel()

    play(scenario)


def test_what_was_replaced_alone_outlives_the_agent(tmp_path: Path) -> None:
    """The next agent finds the successor and goes on; a leader that takes it in keeps it, one that refuses stops it."""

    async def first() -> str:
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, ScriptedNode())
            standing_in = group.create_task(node.worker.stand_in())
            await node.worker.runtime_connected()
            node.worker.assignments(assigned(on_this_node("t1")))
            await node.until("t1", RUNNING)
            node.worker.session_lost()
            await crash(node, "t1")
            made = await successor_of(node, "t1")
            standing_in.cancel()
            cancel_lives(node.worker)
            there.update(node.runtime.there)
            return made

    async def second(made: str, *, taken: bool) -> None:
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, ScriptedNode(there=dict(there)))
            await node.worker.runtime_connected()
            batch = await node.reporter.next_batch()
            assert [one.task_id for one in batch.replacements] == [made]
            node.worker.assignments(assigned(on_this_node("t1")))
            assert node.worker.controllers[made].task.desired_state == RUNNING, "no answer is no refusal"
            answer = dispatcher.AssignmentSet(
                type=dispatcher.ASSIGNMENT_SET_TYPE_INCREMENTAL, applies_to="s-1", results_in="s-2"
            )
            change = answer.changes.add()
            change.assignment.task.CopyFrom(node.worker.controllers[made].task)
            change.action = dispatcher.ASSIGNMENT_ACTION_UPDATE if taken else dispatcher.ASSIGNMENT_ACTION_REMOVE
            node.worker.assignments(answer)
            assert (node.worker.controllers[made].task.desired_state == RUNNING) == taken
            if taken:
                cancel_lives(node.worker)
            else:
                node.worker.controllers[made].container_ended(ContainerExit(143, False, now_ms()))  # noqa: FBT003

    there: dict[str, ContainerView] = {}
    made = ""

    async def scenario() -> None:
        nonlocal made
        made = await first()
        await second(made, taken=True)
        await second(made, taken=False)

    play(scenario)


def test_an_end_that_was_told_stays_told_over_a_restart_of_the_agent(tmp_path: Path) -> None:
    """The leader sees to that slot; the next agent does not, however long it is alone."""

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, ScriptedNode())
            await node.worker.runtime_connected()
            node.worker.assignments(assigned(on_this_node()))
            await node.until("t1", RUNNING)
            await crash(node, "t1")
            node.reporter.acknowledged((await node.reporter.next_batch()).batch)
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, ScriptedNode())
            standing_in = group.create_task(node.worker.stand_in())
            await node.worker.runtime_connected()
            await asyncio.sleep(0.2)
            assert node.worker.is_alone
            assert list(node.worker.controllers) == ["t1"]
            standing_in.cancel()

    play(scenario)
    assert Records(tmp_path).load()[0].told


def test_a_long_chain_of_failures_alone_stays_short(tmp_path: Path) -> None:
    """Only the last ended tasks of a slot are kept; the chain still begins at the task that the leader knows."""

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, ScriptedNode())
            standing_in = group.create_task(node.worker.stand_in())
            await node.worker.runtime_connected()
            first = on_this_node()
            first.spec.restart.max_delay_ms = 0
            node.worker.assignments(assigned(first))
            await node.until("t1", RUNNING)
            node.worker.session_lost()
            last = "t1"
            for _ in range(defaults.REPLACEMENTS_KEPT + 4):
                previous, before = last, set(node.worker.controllers)
                await crash(node, previous)
                async with asyncio.timeout(5):
                    while not set(node.worker.controllers) - before:  # noqa: ASYNC110 -- nobody is told
                        await asyncio.sleep(0.001)
                (last,) = set(node.worker.controllers) - before
                await node.until(last, RUNNING)
            await asyncio.sleep(0.05)
            batch = await node.reporter.next_batch()
            assert len(batch.replacements) == defaults.REPLACEMENTS_KEPT + 1
            known = "t1"
            for one in batch.replacements:
                assert one.replaces == known
                known = one.task_id
            assert known == last
            standing_in.cancel()
            cancel_lives(node.worker)

    play(scenario)
