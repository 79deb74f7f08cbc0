"""Nodes that go away and come back, and leaders that change meanwhile, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

import pytest

from orch_manager import tasks as states
from orch_manager.dispatcher.endpoints import describe
from orch_manager.store.transaction import Transaction
from orch_proto import defaults
from orch_proto.objects_pb2 import Node, NodeState, Service, Task
from orch_proto.specs_pb2 import StackSpec
from orch_proto.types_pb2 import RestartCondition
from simulation.cluster import SimulatedCluster, service, stack
from simulation.virtual_time import run

DOWN_S = defaults.HEARTBEAT_PERIOD_MS * defaults.HEARTBEAT_GRACE_PERIODS / 1000
DOWN_AFTER_ELECTION_S = defaults.HEARTBEAT_PERIOD_MS * defaults.HEARTBEAT_GRACE_PERIODS_UNKNOWN / 1000


def web(replicas: int, *, grace_s: float = 0) -> StackSpec:
    """One service that waits so long for a node that went away."""
    spec = service("web", replicas)
    spec.task.disconnect_grace_ms = int(grace_s * 1000)
    return stack(spec)


async def running_cluster(seed: int, spec: StackSpec, *, nodes: int = 2) -> SimulatedCluster:
    cluster = SimulatedCluster(seed, nodes=nodes)
    await cluster.start()
    while any(each.status.state != NodeState.NODE_STATE_READY for each in cluster.store.all(Node)):  # noqa: ASYNC110 -- no one tells
        await asyncio.sleep(0.1)
    await cluster.apply(spec)
    await cluster.converge()
    return cluster


def ids(tasks: Iterable[Task]) -> set[str]:
    return {task.id for task in tasks}


def node(cluster: SimulatedCluster, node_id: str = "node0") -> Node:
    found = cluster.store.get(Node, node_id)
    assert found is not None
    return found


def is_down(cluster: SimulatedCluster, node_id: str = "node0") -> bool:
    return node(cluster, node_id).status.state == NodeState.NODE_STATE_DOWN


async def been_down_for(cluster: SimulatedCluster, time_ms: int) -> None:
    """Spares the simulation a day of heartbeats: the first node went down so long ago."""

    def write(transaction: Transaction) -> None:
        lost = transaction.edit(Node, "node0")
        lost.status.since_unix_ms = int(asyncio.get_running_loop().time() * 1000) - time_ms
        transaction.update(lost)

    await cluster.store.update(write, reason="time passes")


def traffic(cluster: SimulatedCluster) -> set[str]:
    """The nodes that the balancers send traffic to."""
    described = describe(cluster.store, cluster.store.all(Service)[0])
    return {endpoint.node_id for network in described.networks for endpoint in network.endpoints}


def test_a_node_that_is_silent_for_three_periods_is_down_and_says_why() -> None:
    """Not earlier than the grace and not a period later; its status carries the reason and the time."""

    async def story() -> None:
        cluster = await running_cluster(1, web(4))
        cluster.agents[0].connected = False
        await asyncio.sleep(DOWN_S - defaults.HEARTBEAT_PERIOD_MS / 1000 - 1)
        assert not is_down(cluster)
        await asyncio.sleep(defaults.HEARTBEAT_PERIOD_MS / 1000 + 2)
        assert is_down(cluster)
        assert node(cluster).status.message == "no heartbeat for 15 s"
        assert node(cluster).status.since_unix_ms
        await cluster.finish()

    run(story())


def test_what_was_last_seen_of_a_task_on_a_lost_node_stays_as_it_was_seen() -> None:
    """Nobody writes that it stopped: it is wanted SHUTDOWN, observed RUNNING, and its replacement runs at once."""

    async def story() -> None:
        cluster = await running_cluster(2, web(4))
        lost = ids(cluster.store.find(Task, node_id="node0"))
        cluster.agents[0].connected = False
        await asyncio.sleep(DOWN_S + 2)
        for task_id in lost:
            task = cluster.store.get(Task, task_id)
            assert task is not None
            assert (task.status.state, task.desired_state) == (states.RUNNING, states.SHUTDOWN)
            assert task.status.message == "node node0 is down"
        assert len(cluster.agents[1].running()) == 4
        cluster.agents[0].connected = True
        await cluster.converge()
        assert not cluster.agents[0].running()
        await cluster.finish()

    run(story())


def test_a_partition_shorter_than_the_disconnect_grace_restarts_nothing() -> None:
    """A service with a grace of 1 m outlives 30 s without its node as it was; traffic goes elsewhere meanwhile."""

    async def story() -> None:
        cluster = await running_cluster(3, web(4, grace_s=60))
        before = ids(cluster.store.all(Task))
        cluster.agents[0].connected = False
        await asyncio.sleep(30)
        assert is_down(cluster)
        assert traffic(cluster) == {"node1"}
        cluster.agents[0].connected = True
        await cluster.converge()
        await asyncio.sleep(120)
        assert ids(cluster.store.all(Task)) == before
        assert traffic(cluster) == {"node0", "node1"}
        await cluster.finish()

    run(story())


def test_after_the_disconnect_grace_tasks_are_replaced_once() -> None:
    """The grace counts from DOWN; what comes back later is stopped."""

    async def story() -> None:
        cluster = await running_cluster(4, web(4, grace_s=60))
        cluster.agents[0].connected = False
        await asyncio.sleep(DOWN_S + 55)
        assert len(cluster.agents[1].running()) == 2
        await asyncio.sleep(10)
        assert len(cluster.agents[1].running()) == 4
        cluster.agents[0].connected = True
        await cluster.converge()
        assert not cluster.agents[0].running()
        await cluster.finish()

    run(story())


def test_services_of_one_node_wait_each_for_their_own_grace() -> None:
    """One without a grace moves at once, its neighbour stays."""

    async def story() -> None:
        patient = service("db", 2)
        patient.task.disconnect_grace_ms = 60_000
        cluster = await running_cluster(5, stack(service("web", 2), patient))
        before = {task.id for task in cluster.store.all(Task) if task.service_name == "shop_db"}
        cluster.agents[0].connected = False
        await asyncio.sleep(DOWN_S + 5)
        moved = [task for task in cluster.store.all(Task) if states.is_wanted(task) and task.node_id == "node1"]
        assert sum(task.service_name == "shop_web" for task in moved) == 2
        cluster.agents[0].connected = True
        await cluster.converge()
        after = {task.id for task in cluster.store.all(Task) if task.service_name == "shop_db"}
        assert after == before
        await cluster.finish()

    run(story())


def test_a_grace_may_be_changed_while_a_node_is_away_and_restarts_nothing() -> None:
    """A new grace is no new version of the service; it counts for the tasks that wait."""

    async def story() -> None:
        cluster = await running_cluster(6, web(4, grace_s=3600))
        cluster.agents[0].connected = False
        await asyncio.sleep(DOWN_S + 5)
        before = ids(cluster.store.all(Task))
        await cluster.apply(web(4, grace_s=7200))
        await asyncio.sleep(5)
        assert ids(cluster.store.all(Task)) == before
        await cluster.apply(web(4, grace_s=10))
        await asyncio.sleep(10)
        assert len(cluster.agents[1].running()) == 4
        cluster.agents[0].connected = True
        await cluster.converge()
        await cluster.finish()

    run(story())


def test_a_new_leader_marks_no_node_down_because_it_is_new() -> None:
    """Nodes that find it within the doubled grace stay READY and keep their tasks; others go DOWN after it."""

    async def story() -> None:
        cluster = await running_cluster(7, web(6), nodes=3)
        before = ids(cluster.store.all(Task))
        await cluster.stop()
        cluster.agents[0].connected = cluster.agents[1].connected = False
        await cluster.start()
        await asyncio.sleep(DOWN_AFTER_ELECTION_S - 5)
        cluster.agents[1].connected = True
        await asyncio.sleep(4)
        assert not any(is_down(cluster, f"node{number}") for number in range(3))
        assert ids(cluster.store.all(Task)) == before
        await asyncio.sleep(3)
        assert [is_down(cluster, f"node{number}") for number in range(3)] == [True, False, False]
        cluster.agents[0].connected = True
        await cluster.converge()
        await cluster.finish()

    run(story())


def test_a_disconnect_grace_runs_on_through_a_change_of_leader() -> None:
    """The new leader counts from when the node went DOWN, not from its own beginning."""

    async def story() -> None:
        cluster = await running_cluster(8, web(4, grace_s=60))
        cluster.agents[0].connected = False
        await asyncio.sleep(DOWN_S + 30)
        await cluster.stop()
        await cluster.start()
        await asyncio.sleep(25)
        assert len(cluster.agents[1].running()) == 2
        await asyncio.sleep(10)
        assert len(cluster.agents[1].running()) == 4
        cluster.agents[0].connected = True
        await cluster.converge()
        await cluster.finish()

    run(story())


def test_the_loss_of_all_managers_moves_nothing() -> None:
    """After ten minutes without any manager the tasks are the ones that ran before."""

    async def story() -> None:
        cluster = await running_cluster(9, web(4))
        before = ids(cluster.store.all(Task))
        await cluster.stop()
        await asyncio.sleep(600)
        assert sum(len(agent.running()) for agent in cluster.agents) == 4
        await cluster.start()
        await cluster.converge()
        await asyncio.sleep(60)
        assert ids(cluster.store.all(Task)) == before
        await cluster.finish()

    run(story())


def test_agents_without_managers_replace_what_ends_and_the_next_leader_takes_it_in() -> None:
    """Programs that crash meanwhile run again; afterwards the leader has the tasks that run, as they are."""

    async def story() -> None:
        cluster = await running_cluster(11, web(4))
        before = ids(cluster.store.all(Task))
        await cluster.stop()
        cluster.behaviour.crash_each_s = 60
        await asyncio.sleep(600)
        cluster.behaviour.crash_each_s = 0
        await asyncio.sleep(10)
        running = {task_id for agent in cluster.agents for task_id in agent.running()}
        assert len(running) == 4
        assert running.isdisjoint(before)
        await cluster.start()
        await cluster.converge()
        wanted = {task.id for task in cluster.store.all(Task) if states.is_wanted(task)}
        assert wanted == running, "nothing was restarted because the managers are back"
        replaced = [task for task in cluster.store.all(Task) if task.replaces]
        assert all(task.restart_count for task in replaced)
        ended = [task for task in cluster.store.all(Task) if task.id in before]
        assert {task.status.state for task in ended} <= {states.FAILED}
        await cluster.finish()

    run(story())


def test_what_a_cut_off_node_made_by_itself_is_stopped_when_its_slot_was_filled_elsewhere() -> None:
    """The leader replaced the tasks of the node that was DOWN; on its return one task is left in each slot."""

    async def story() -> None:
        cluster = await running_cluster(12, web(4))
        cluster.agents[0].connected = False
        cluster.behaviour.crash_each_s = 30
        await asyncio.sleep(300)
        cluster.behaviour.crash_each_s = 0
        assert cluster.agents[0].running()
        cluster.agents[0].connected = True
        await cluster.converge()
        assert not cluster.agents[0].running()
        assert len(cluster.agents[1].running()) == 4
        await cluster.finish()

    run(story())


def test_what_a_cut_off_node_made_within_the_grace_is_kept() -> None:
    """A service with a grace waits for its node; what the node restarted meanwhile fills the slots."""

    async def story() -> None:
        cluster = await running_cluster(13, web(4, grace_s=3600))
        elsewhere = set(cluster.agents[1].running())
        cluster.agents[0].connected = False
        await asyncio.sleep(DOWN_S + 1)
        cluster.behaviour.crash_each_s = 20
        await asyncio.sleep(300)
        cluster.behaviour.crash_each_s = 0
        await asyncio.sleep(10)
        made = set(cluster.agents[0].running())
        assert len(made) == 2
        cluster.agents[0].connected = True
        await cluster.converge()
        assert set(cluster.agents[0].running()) == made
        assert len(elsewhere) == 2
        await cluster.finish()

    run(story())


def test_an_agent_alone_keeps_to_the_restart_policy() -> None:
    """A service that is not to be restarted stays ended, and max_attempts holds without a leader as with one."""

    async def story() -> None:
        never, thrice = service("never", 2), service("thrice", 1)
        never.task.restart.condition = RestartCondition.RESTART_CONDITION_NONE
        thrice.task.restart.max_attempts = 3
        cluster = await running_cluster(14, stack(never, thrice))
        await cluster.stop()
        cluster.behaviour.crash_each_s = 1
        await asyncio.sleep(120)
        assert not any(agent.running() for agent in cluster.agents)
        await cluster.start()
        await asyncio.sleep(60)
        tasks = [task for task in cluster.store.all(Task) if task.service_name == "shop_thrice"]
        assert len(tasks) == 4, "the first and three more"
        assert all(states.has_ended(task) for task in cluster.store.all(Task))
        await cluster.finish()

    run(story())


def test_tasks_of_a_node_that_stays_away_for_a_day_are_orphaned() -> None:
    """They give back what they held; a node that returns still later stops them."""

    async def story() -> None:
        cluster = await running_cluster(10, web(4))
        lost = ids(cluster.store.find(Task, node_id="node0"))
        cluster.agents[0].connected = False
        await asyncio.sleep(DOWN_S + 5)
        await been_down_for(cluster, defaults.ORPHANED_AFTER_MS - 30_000)
        await asyncio.sleep(25)
        assert any(states.holds_resources(task) for task in cluster.store.all(Task) if task.id in lost)
        await asyncio.sleep(10)
        orphans = [task for task in cluster.store.all(Task) if task.id in lost]
        assert {task.status.state for task in orphans} == {states.ORPHANED}
        assert {task.status.message for task in orphans} == {"its node has been down for a day"}
        assert not any(states.holds_resources(task) for task in orphans)
        cluster.agents[0].connected = True
        await cluster.converge()
        assert not cluster.agents[0].running()
        await cluster.finish()

    run(story())


@pytest.mark.parametrize("seed", range(10))
def test_flapping_nodes_and_leaders_leave_one_task_in_each_slot(seed: int) -> None:
    """Nodes come and go in any rhythm, with any grace, under changing leaders: in the end each slot runs once."""

    async def story() -> None:
        chance = random.Random(seed)
        cluster = await running_cluster(seed, web(5, grace_s=chance.choice((0, 5, 60))), nodes=3)
        cluster.behaviour.crash_each_s = chance.choice((0, 10, 60))
        for _ in range(25):
            agent = chance.choice(cluster.agents)
            agent.connected = not agent.connected
            await asyncio.sleep(chance.choice((0.5, 4, 14, 15, 16, 40, 70)))
            if chance.random() < 0.15:
                await cluster.stop()
                await asyncio.sleep(chance.choice((0, 20, 60)))
                await cluster.start()
        cluster.behaviour.crash_each_s = 0
        for agent in cluster.agents:
            agent.connected = True
        await cluster.converge(within_s=200)
        await cluster.finish()

    run(story())
