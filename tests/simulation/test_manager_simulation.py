"""Whole managers with agents that fail: whatever is asked in whatever order, the cluster comes to be as wanted."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from orch_manager.store.errors import StoreError
from orch_manager.store.transaction import Transaction
from orch_proto.objects_pb2 import Cluster, Config, Node, NodeState, Service, Stack, Task
from orch_proto.specs_pb2 import NodeAvailability, StackSpec
from orch_proto.types_pb2 import UpdateOrder, UpdateState
from orch_raft.errors import ProposalError
from orch_rpc.errors import FailedPrecondition, OrchError
from simulation.cluster import SimulatedCluster, service, stack
from simulation.virtual_time import run


def random_stack(chance: random.Random) -> StackSpec:
    """A stack of one to three services, as chance has it."""
    services = []
    for name in chance.sample(("web", "db", "worker"), chance.randint(1, 3)):
        spec = service(name, chance.randint(0, 6), memory_mib=chance.choice((0, 0, 16, 64)))
        spec.task.container.env.append(f"VERSION={chance.randint(1, 3)}")
        if chance.random() < 0.3:
            spec.update.order = UpdateOrder.UPDATE_ORDER_START_FIRST
            # Old and new together may not fit: such an update waits for ever, as in Swarm.
            spec.task.resources.Clear()
        if chance.random() < 0.5:
            spec.endpoint.ports.add(target_port=80, protocol=1, mode=1, published_port=chance.choice((0, 8000)))
        services.append(spec)
    spec = stack(*services)
    if chance.random() < 0.5:
        config = spec.configs.add(data=bytes([chance.randint(0, 3)]))
        config.annotations.name = "shop_settings"
        services[0].task.container.configs.add(config_name="shop_settings")
        spec.services[0].CopyFrom(services[0])
    return spec


async def storm(seed: int) -> None:
    """Twenty things happen to a cluster; then it is left alone, and must converge."""
    # Room for all that can be asked for on all three nodes, and not on two.
    cluster = SimulatedCluster(seed, memory_mib=576)
    chance = random.Random(seed)
    cluster.lost_outcomes = chance.choice((0.0, 0.0, 0.02))
    cluster.behaviour.fail_starting = chance.choice((0.0, 0.02, 0.1))
    cluster.behaviour.crash_each_s = chance.choice((0.0, 20.0, 5.0))
    await cluster.start()
    for _ in range(20):
        await asyncio.sleep(chance.choice((0.01, 0.3, 2.0, 20.0)))
        with suppress(OrchError, StoreError, ProposalError):
            await something_happens(cluster, chance)
    cluster.lost_outcomes = 0.0
    assert cluster.engine is not None
    cluster.engine.lost_outcomes = 0.0
    cluster.behaviour.fail_starting = cluster.behaviour.crash_each_s = 0.0
    for agent in cluster.agents:
        agent.connected = True
    await set_drained(cluster, drained=False)
    await cluster.converge(within_s=200)
    await cluster.finish()


async def set_drained(cluster: SimulatedCluster, *, drained: bool) -> None:
    """Drains the first node, or makes it active."""
    wanted = NodeAvailability.NODE_AVAILABILITY_DRAIN if drained else NodeAvailability.NODE_AVAILABILITY_ACTIVE

    def write(transaction: Transaction) -> None:
        node = transaction.edit(Node, "node0")
        node.spec.availability = wanted
        transaction.update(node)

    await cluster.store.update(write, reason="drain")


async def something_happens(cluster: SimulatedCluster, chance: random.Random) -> None:
    """One thing that people, nodes or chance do."""
    what = chance.choice(("apply", "apply", "scale", "scale", "remove", "away", "away", "back", "restart", "drain"))
    agent = chance.choice(cluster.agents)
    if what == "apply":
        await cluster.apply(random_stack(chance))
    elif what == "scale":
        services = cluster.store.all(Service)
        if services:
            await cluster.scale(chance.choice(services).id, chance.randint(0, 8))
    elif what == "remove" and chance.random() < 0.4:
        await cluster.remove("shop")
    elif what == "away":
        agent.connected = False
    elif what == "back":
        agent.connected = True
    elif what == "restart":
        await cluster.stop()
        await cluster.start()
    elif what == "drain":
        await set_drained(cluster, drained=chance.random() < 0.5)


@pytest.mark.parametrize("seed", range(24))
def test_any_sequence_of_events_converges_and_breaks_no_invariant(seed: int) -> None:
    """Applies, scales, removals, crashes, lost and drained nodes and restarts of the manager end as wanted."""
    run(storm(seed))


def test_a_task_of_a_lost_node_is_replaced_and_given_up_when_the_node_returns() -> None:
    """A node away for its grace is DOWN, its tasks run elsewhere, and what it still runs is stopped on return."""

    async def story() -> None:
        cluster = SimulatedCluster(1, nodes=2)
        await cluster.start()
        await cluster.apply(stack(service("web", 4)))
        await cluster.converge()
        cluster.agents[0].connected = False
        await asyncio.sleep(40)
        node = cluster.store.get(Node, "node0")
        assert node is not None
        assert node.status.state == NodeState.NODE_STATE_DOWN
        assert cluster.agents[0].running(), "programs go on while the agent is away"
        assert len(cluster.agents[1].running()) == 4
        cluster.agents[0].connected = True
        await cluster.converge()
        assert not cluster.agents[0].running()
        await cluster.finish()

    run(story())


def test_a_short_absence_moves_nothing() -> None:
    """A node that comes back within its grace keeps its tasks."""

    async def story() -> None:
        cluster = SimulatedCluster(2, nodes=2)
        await cluster.start()
        await cluster.apply(stack(service("web", 4)))
        await cluster.converge()
        before = {task.id for task in cluster.store.all(Task)}
        cluster.agents[0].connected = False
        await asyncio.sleep(8)
        cluster.agents[0].connected = True
        await asyncio.sleep(30)
        assert {task.id for task in cluster.store.all(Task)} == before
        await cluster.finish()

    run(story())


def test_a_restart_of_the_manager_moves_nothing() -> None:
    """Tasks run on, and are the same, when the manager was killed and started again."""

    async def story() -> None:
        cluster = SimulatedCluster(3, nodes=2)
        await cluster.start()
        await cluster.apply(stack(service("web", 5)))
        await cluster.converge()
        before = {task.id for task in cluster.store.all(Task)}
        for _ in range(3):
            await cluster.stop()
            await cluster.start()
            await asyncio.sleep(60)
        assert {task.id for task in cluster.store.all(Task)} == before
        await cluster.converge()
        await cluster.finish()

    run(story())


def test_a_failing_update_stops_and_a_rollback_goes_back() -> None:
    """With pause an update of failing tasks stops after the first; with rollback the old version runs again."""

    async def story(action: int, state: int) -> Service:
        cluster = SimulatedCluster(4, nodes=2)
        await cluster.start()
        wanted = service("web", 4)
        wanted.update.parallelism, wanted.update.max_failure_ratio = 1, 0.0
        wanted.update.failure_action = action  # type: ignore[assignment]  # an enum's number
        wanted.rollback.monitor_ms = 100
        await cluster.apply(stack(wanted))
        await cluster.converge()
        first = {task.id for task in cluster.store.all(Task)}
        cluster.behaviour.broken_env = "BROKEN=yes"
        wanted.task.container.env.append("BROKEN=yes")
        await cluster.apply(stack(wanted))
        await asyncio.sleep(5)
        current = cluster.store.all(Service)[0]
        assert current.update_status.state in (state, 6), current.update_status
        kept = [task for task in cluster.store.all(Task) if task.id in first and task.status.state == 512]
        assert len(kept) == 3, "only the first slot was touched"
        await asyncio.sleep(30)
        current = cluster.store.all(Service)[0]
        await cluster.finish()
        return current

    paused = run(story(1, 2))
    assert list(paused.spec.task.container.env) == ["BROKEN=yes"]
    rolled_back = run(story(3, 4))
    assert not rolled_back.spec.task.container.env
    assert rolled_back.update_status.state == 6


def test_deploying_the_same_again_resumes_a_paused_update() -> None:
    """A stack deployed again, after what made its update fail is gone, has the update go on as the same version."""

    async def story() -> None:
        cluster = SimulatedCluster(5, nodes=2)
        await cluster.start()
        wanted = service("web", 4)
        wanted.update.parallelism, wanted.update.max_failure_ratio = 1, 0.0
        wanted.update.monitor_ms = 100
        await cluster.apply(stack(wanted))
        await cluster.converge()
        cluster.behaviour.broken_env = "NEW=yes"
        wanted.task.container.env.append("NEW=yes")
        await cluster.apply(stack(wanted))
        await asyncio.sleep(5)
        assert cluster.store.all(Service)[0].update_status.state == UpdateState.UPDATE_STATE_PAUSED
        version = cluster.store.all(Stack)[0].current.number
        cluster.behaviour.broken_env = ""
        await cluster.apply(stack(wanted))
        assert cluster.store.all(Service)[0].update_status.state == UpdateState.UPDATE_STATE_UPDATING
        assert cluster.store.all(Stack)[0].current.number == version
        await cluster.converge()
        await asyncio.sleep(5)
        assert cluster.store.all(Service)[0].update_status.state == UpdateState.UPDATE_STATE_COMPLETED
        await cluster.finish()

    run(story())


def test_new_content_of_a_config_rolls_its_users_and_the_old_one_goes() -> None:
    """A config with new content keeps its name; its users are replaced; the old content goes once nothing names it."""

    async def story() -> None:
        cluster = SimulatedCluster(5, nodes=1)
        await cluster.start()

        def wanted(content: bytes) -> StackSpec:
            web = service("web", 2)
            web.task.container.configs.add(config_name="shop_settings")
            spec = stack(web)
            spec.configs.add(data=content).annotations.name = "shop_settings"
            return spec

        for number in range(4):
            await cluster.apply(wanted(b"content %d" % number))
            await cluster.converge()
            await asyncio.sleep(2)
        assert cluster.store.all(Service)[0].spec_version == 4
        named = [config for config in cluster.store.all(Config) if config.spec.annotations.name == "shop_settings"]
        assert [config.spec.data for config in named] == [b"content 3"]
        # The previous version stays for a rollback, no older one.
        assert len(cluster.store.all(Config)) == 2
        await cluster.finish()

    run(story())


def test_a_removed_stack_leaves_nothing_and_frees_its_name() -> None:
    """After a removal no object of the stack is left, and the same stack can be deployed again."""

    async def story() -> None:
        cluster = SimulatedCluster(6, nodes=2)
        await cluster.start()
        for _ in range(2):
            await cluster.apply(stack(service("web", 3), service("db", 1)))
            await cluster.converge()
            await cluster.remove("shop")
            with pytest.raises(OrchError, match="being removed"):
                await cluster.apply(stack(service("web", 3)))
            await asyncio.sleep(5)
            assert not cluster.store.all(Stack)
            assert {kind.__name__ for kind, count in cluster.store.counts().items() if count} == {"Cluster", "Node"}
        await cluster.finish()

    run(story())


def test_a_network_without_free_addresses_says_so_and_serves_those_it_can() -> None:
    """Tasks beyond a network's addresses wait with the reason, and get one when a task goes."""

    async def story() -> None:
        cluster = SimulatedCluster(8, nodes=2)
        await cluster.start()
        spec = stack(service("web", 8))
        spec.networks[0].ipam.pools.add(subnet="10.77.0.0/29")
        await cluster.apply(spec)
        await asyncio.sleep(5)
        waiting = [task for task in cluster.store.all(Task) if task.status.state == 0]
        assert len(waiting) == 4, "six addresses, less the gateway and the service's own"
        assert "no free address in 10.77.0.0/29" in waiting[0].status.message
        await cluster.scale("shop_web", 4)
        await cluster.converge()
        await cluster.finish()

    run(story())


def test_a_network_that_found_no_subnet_gets_one_when_another_goes() -> None:
    """A stack without one is refused; one that comes while another goes waits for what that gives back."""

    async def story() -> None:
        cluster = SimulatedCluster(9, nodes=1)
        await cluster.start()

        def write(transaction: Transaction) -> None:
            item = transaction.edit(Cluster, "cluster")
            item.spec.network.address_pools.append("10.99.0.0/24")
            transaction.update(item)

        await cluster.store.update(write, reason="small pool")
        await cluster.apply(stack(service("web", 1)))
        await cluster.converge()
        blog = stack(service("web", 1, stack="blog"), name="blog")
        with pytest.raises(FailedPrecondition, match=r"no free subnet of /24 in 10.99.0.0/24"):
            await cluster.apply(blog)
        await cluster.remove("shop")
        await cluster.apply(blog)
        await cluster.converge()
        assert [task.service_name for task in cluster.store.all(Task)] == ["blog_web"]
        await cluster.finish()

    run(story())


def test_hundreds_of_replicas_come_up_and_go() -> None:
    """A service of more tasks than a transaction holds is made and removed in steps."""

    async def story() -> None:
        cluster = SimulatedCluster(7, nodes=3)
        await cluster.start()
        spec = stack(service("web", 300))
        spec.networks[0].ipam.pools.add(subnet="10.77.0.0/20")
        await cluster.apply(spec)
        await cluster.converge(within_s=60)
        await cluster.remove("shop")
        await asyncio.sleep(10)
        assert not cluster.store.all(Task)
        await cluster.finish()

    run(story())
