"""All tasks of a node across deaths of the agent, with a scripted runtime in place of the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from orch_agent.errors import LinkLost
from orch_agent.network_sync import NetworkSync
from orch_agent.runtime import ContainerRequest, ContainerView, Runtime
from orch_agent.task.controller import Surroundings, now_ms
from orch_agent.task.needs import Needs, from_bytes, to_bytes
from orch_agent.task.preparation import Preparation
from orch_agent.task.record import Records
from orch_agent.worker.reporter import StatusReporter
from orch_agent.worker.worker import Worker
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types
from unit.agent.scripted import ScriptedPreparation, play


@dataclass
class ScriptedNode:
    """The runtime of a node: what runs there, and what it was asked."""

    there: dict[str, ContainerView] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    loses_links: int = 0

    async def subscribe(self) -> None:
        """Nothing to say."""

    async def containers(self) -> dict[str, ContainerView]:
        """What runs."""
        return dict(self.there)

    async def run(self, container_id: str, _request: ContainerRequest) -> ContainerView:
        """A container that is there, or is being made, is waited for; another one begins."""
        self.asked.append(container_id)
        self.there[container_id] = ContainerView(container_id, 4711, now_ms(), None)
        return self.there[container_id]

    async def delete(self, container_id: str) -> None:
        """Notes it."""
        self.deleted.append(container_id)
        self.there.pop(container_id, None)

    async def delete_now(self, container_id: str) -> None:
        """The link breaks as often as the script says."""
        if self.loses_links:
            self.loses_links -= 1
            raise LinkLost("the runtime process went away")
        await self.delete(container_id)


class ScriptedStores(ScriptedPreparation):
    """Preparation with nothing to sweep."""

    def sweep(self, _live: Collection[str]) -> None:
        """Nothing is there."""

    def sweep_logs(self, _known: Collection[str]) -> None:
        """Nothing is there."""

    def forget(self, _task_id: str) -> None:
        """Nothing is there."""


class SilentNetwork:
    """Takes every change."""

    def apply(self, _held: object, _delta: object) -> list[Any]:
        """Asks for nothing."""
        return []


@dataclass
class Node:
    """A worker and what is around it."""

    worker: Worker
    runtime: ScriptedNode
    preparation: ScriptedStores
    records: Records
    reporter: StatusReporter

    async def until(self, task_id: str, state: types.TaskState.ValueType) -> None:
        """Waits until a task has come to a state."""
        async with asyncio.timeout(5):
            while self.state_of(task_id) < state:  # noqa: ASYNC110 -- nobody is told
                await asyncio.sleep(0.001)

    def state_of(self, task_id: str) -> int:
        """How far a task is; 0 when it is not known."""
        controller = self.worker.controllers.get(task_id)
        return controller.status.state if controller is not None else 0


def make_node(folder: Path, group: asyncio.TaskGroup, runtime: ScriptedNode) -> Node:
    records, reporter, preparation = Records(folder), StatusReporter(), ScriptedStores()
    around = Surroundings(
        node_id="n1",
        runtime=cast("Runtime", runtime),
        preparation=cast("Preparation", preparation),
        records=records,
        report=reporter.report,
    )
    worker = Worker(
        around=around,
        preparation=cast("Preparation", preparation),
        records=records,
        reporter=reporter,
        network=cast("NetworkSync", SilentNetwork()),
        group=group,
    )
    return Node(worker, runtime, preparation, records, reporter)


def task_of(
    task_id: str = "t1", *, state: types.TaskState.ValueType = types.TASK_STATE_ASSIGNED, slot: int = 1
) -> objects.Task:
    return objects.Task(
        id=task_id, slot=slot, desired_state=types.TASK_STATE_RUNNING, status=types.TaskStatus(state=state)
    )


def assigned(*tasks: objects.Task) -> dispatcher.AssignmentSet:
    received = dispatcher.AssignmentSet(type=dispatcher.ASSIGNMENT_SET_TYPE_COMPLETE, results_in="s-1")
    for task in tasks:
        change = received.changes.add(action=dispatcher.ASSIGNMENT_ACTION_UPDATE)
        change.assignment.task.CopyFrom(task)
    return received


def remember(folder: Path, task: objects.Task, state: types.TaskState.ValueType) -> None:
    """What a former agent left behind of a task."""
    records = Records(folder)
    records.write_task(task, Needs())
    records.write_status(task.id, types.TaskStatus(state=state))


def cancel_lives(worker: Worker) -> None:
    for life in worker._lives.values():
        life.cancel()


def test_a_leader_that_speaks_before_the_runtime_does_loses_no_task(tmp_path: Path) -> None:
    """Assignments that come before the node's containers are known change nothing of those that run."""

    async def scenario() -> None:
        remember(tmp_path, task_of(), types.TASK_STATE_RUNNING)
        runtime = ScriptedNode(there={"t1": ContainerView("t1", 4711, now_ms(), None)})
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, runtime)
            node.worker.assignments(assigned(task_of(state=types.TASK_STATE_RUNNING), task_of("t2", slot=2)))
            await asyncio.sleep(0.01)
            await node.worker.runtime_connected()
            await node.until("t2", types.TASK_STATE_RUNNING)
            assert node.worker.controllers["t1"].status.state == types.TASK_STATE_RUNNING
            assert (runtime.asked, runtime.deleted) == (["t2"], [])
            cancel_lives(node.worker)

    play(scenario)


def test_a_container_that_was_being_made_is_asked_for_again(tmp_path: Path) -> None:
    """The start that an agent did not see the end of is asked for once more, so that its outcome is heard."""

    async def scenario() -> None:
        remember(tmp_path, task_of(), types.TASK_STATE_STARTING)
        runtime = ScriptedNode(there={"t1": ContainerView("t1", 0, 0, None, being_made=True)})
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, runtime)
            await node.worker.runtime_connected()
            await node.until("t1", types.TASK_STATE_RUNNING)
            assert runtime.asked == ["t1"]
            cancel_lives(node.worker)

    play(scenario)


def test_a_runtime_that_dies_while_tasks_are_found_again_delays_them_only(tmp_path: Path) -> None:
    """When the link breaks in the middle of it, tasks are found again on the next one."""

    async def scenario() -> None:
        remember(tmp_path, task_of(), types.TASK_STATE_RUNNING)
        there = {name: ContainerView(name, 4711, now_ms(), None) for name in ("t1", "build-1")}
        runtime = ScriptedNode(there=there, loses_links=1)
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, runtime)
            try:
                await node.worker.runtime_connected()
            except LinkLost:
                await node.worker.runtime_connected()
            node.worker.assignments(assigned(task_of(state=types.TASK_STATE_RUNNING), task_of("t2", slot=2)))
            await node.until("t2", types.TASK_STATE_RUNNING)
            assert node.worker.controllers["t1"].status.state == types.TASK_STATE_RUNNING
            assert runtime.deleted == ["build-1"]
            cancel_lives(node.worker)

    play(scenario)


def test_a_task_that_the_leader_forgot_while_the_agent_was_dead_is_stopped(tmp_path: Path) -> None:
    """It is given up also when the leader speaks before the runtime does."""

    async def scenario() -> None:
        remember(tmp_path, task_of(), types.TASK_STATE_STARTING)
        async with asyncio.TaskGroup() as group:
            node = make_node(tmp_path, group, ScriptedNode())
            node.worker.assignments(assigned())
            await node.worker.runtime_connected()
            async with asyncio.timeout(5):
                while node.worker.controllers:  # noqa: ASYNC110 -- nobody is told
                    await asyncio.sleep(0.001)
            assert node.runtime.asked == []

    play(scenario)
    assert list(tmp_path.iterdir()) == []


def test_what_a_task_needs_is_remembered_whole() -> None:
    """Networks, secrets and configs come back from a record as they were."""
    needs = Needs(
        networks={"n": objects.Network(id="n", vni=5)},
        secrets={"s": objects.Secret(id="s", content_digest="x")},
        configs={"c": objects.Config(id="c")},
    )
    assert from_bytes(to_bytes(needs)) == needs
