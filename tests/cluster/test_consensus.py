"""Real managers under faults: what clients saw has one order, nothing acknowledged is lost, and the cluster heals.

The seeds are fixed: which faults come, and what clients ask, is the same in every run; when exactly is not.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

import leaks
from cluster.conftest import build_test_image
from cluster.consensus_disk import small_disk, write_large_objects
from cluster.consensus_faults import Nemesis, converged
from cluster.consensus_workload import Client, Ran, acknowledged, run_clients
from cluster.playground_driver import ORCH, Playground, own_subnet, wait_for
from linearizability.explain import NotLinearizable
from linearizability.history import History, saved_on_failure
from orch_cli.playground.power import processes_of_part
from orch_proto import control_pb2, control_pb2_grpc, types_pb2
from orch_proto.control_pb2_grpc import ControlStub


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, busybox: str) -> Iterator[Playground]:
    """Three managers, which run tasks as well."""
    made = Playground(f"trio-{os.getpid()}", own_subnet(3), tmp_path_factory.mktemp("trio"), managers=3)
    made.down()
    before = leaks.host(made.layout)
    made.up()
    try:
        build_test_image(made, Path(busybox))
        yield made
    finally:
        made.down()
    left = leaks.settled_difference(before, lambda: leaks.host(made.layout))
    assert not left, f"the playground left behind: {left}"


def run(
    playground: Playground, disturb: Callable[[], None], seed: str, folder: Path, history: History | None = None
) -> Ran:
    """Clients at every manager while something is done to the cluster; checks what they saw, and that it healed."""
    sockets = [playground.place(node).manager_socket for node in range(1, playground.managers + 1)]
    ran = asyncio.run(run_clients(sockets, disturb, seed=seed, history=history, quiesce=lambda: converged(playground)))
    print(ran.history.summary())
    with saved_on_failure(ran.history, folder / "history.jsonl"):
        ran.assert_linearizable()
        assert ran.last_reads_failed == 0, "a manager of a healed cluster does not answer reads"
    return ran


@pytest.mark.timeout(180)
def test_histories_under_faults_are_linearizable(trio: Playground, tmp_path: Path) -> None:
    """While managers are killed, stopped, switched off and parted, clients see one order of all writes and reads."""
    nemesis = Nemesis(trio, random.Random("faults"))

    def disturb() -> None:
        for fault in nemesis.all_faults():
            fault()

    ran = run(trio, disturb, "faults", tmp_path)
    assert acknowledged(ran.history) > 100


@pytest.mark.timeout(120)
def test_stale_reads_are_told_from_others(trio: Playground) -> None:
    """Reads that were asked for as stale show the past at a manager that is cut off: the checker finds it."""
    converged(trio)
    leader = trio.leader()
    follower = next(node for node in (1, 2, 3) if node != leader)
    history = History()
    writer = Client("writer", trio.place(leader).manager_socket, history, random.Random("writer"), "stale")
    reader = Client(
        "reader", trio.place(follower).manager_socket, history, random.Random("reader"), "stale", stale=True
    )

    async def write_behind_its_back() -> None:
        key = writer.keys[0]
        async with writer.connected() as to_leader, reader.connected() as to_follower:
            await writer.create(ControlStub(to_leader), key)
            while not reader.known:
                await reader.read(ControlStub(to_follower), key)
            await asyncio.to_thread(trio.partition, trio.place(follower).hostname)
            try:
                before = acknowledged(history)
                while acknowledged(history) == before:
                    await writer.write(ControlStub(to_leader), key, base=0)
                await reader.read(ControlStub(to_follower), key)
            finally:
                await asyncio.to_thread(trio.heal)

    asyncio.run(write_behind_its_back())
    with pytest.raises(NotLinearizable, match="no order of these"):
        Ran(history, [writer, reader]).assert_linearizable()
    converged(trio)


@pytest.mark.timeout(180)
def test_a_leader_whose_disk_is_full_gives_way(trio: Playground, tmp_path: Path) -> None:
    """A leader that cannot write stops and another leads; nothing acknowledged is lost, and with room it comes back."""
    leader = trio.leader()
    with small_disk(trio, leader) as disk:
        converged(trio)
        other = next(node for node in (1, 2, 3) if node != leader)

        def disturb() -> None:
            disk.fill()
            write_large_objects(trio, other)
            wait_for(lambda: not processes_of_part(trio.place(leader), "manager"), "the end of the manager")
            disk.make_room()
            wait_for(lambda: processes_of_part(trio.place(leader), "manager"), "the manager's return", 40)

        run(trio, disturb, "disk", tmp_path)
    converged(trio)


DEPLOYED = """\
services:
  a:
    image: test:1
    command: ["sh", "-c", 'trap "exit 0" TERM; : {generation}; while :; do sleep 3600 & wait $!; done']
    deploy:
      replicas: 6
      update_config: {{parallelism: 0, monitor: 1s}}
      restart_policy: {{delay: 0s}}
"""


@pytest.mark.timeout(120)
def test_a_deploy_converges_though_the_leader_is_killed_in_the_middle(trio: Playground) -> None:
    """A deploy through a follower's manager, during which the leader is killed, ends converged by itself."""
    chance = random.Random("deploys")
    for generation in range(1, 4):
        leader = trio.leader()
        follower = next(node for node in (1, 2, 3) if node != leader)
        deploy = subprocess.Popen(
            [ORCH, "deploy", "--name", "shop", "--timeout", "60s", trio.file(DEPLOYED.format(generation=generation))],
            env={**os.environ, "ORCH_HOST": f"unix://{trio.place(follower).manager_socket}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(chance.uniform(0.3, 1.0))  # anywhere between the request and the last container's start
        trio.kill("manager", leader)
        stdout, stderr = deploy.communicate(timeout=80)
        assert deploy.returncode == 0, (stdout, stderr)
        tasks = trio.wait_running("shop_a", 6, limit_s=40)
        assert {task.slot for task in tasks} == set(range(1, 7))
        assert all(f": {generation};" in task.spec.container.args[-1] for task in tasks)
    trio.orch("stack", "rm", "shop")


def kill_leaders_while_writing(playground: Playground, kills: int, run_name: str, folder: Path) -> None:
    """Kills leader after leader; every write that was acknowledged is there at the end."""
    history = History()

    def disturb() -> None:
        for _ in range(kills):
            before = acknowledged(history)
            wait_for(lambda before=before: acknowledged(history) > before, "an acknowledged write")  # type: ignore[misc]
            playground.kill("manager", playground.leader())

    run(playground, disturb, run_name, folder, history)


@pytest.mark.timeout(120)
def test_leaders_killed_in_a_row_lose_nothing(trio: Playground, tmp_path: Path) -> None:
    """Of six leaders, each killed after its first acknowledged write, none takes an acknowledged write along."""
    kill_leaders_while_writing(trio, 6, "row", tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_hundred_leaders_killed_in_a_row_lose_nothing(trio: Playground, tmp_path: Path) -> None:
    """The same for a hundred."""
    kill_leaders_while_writing(trio, 100, "hundred", tmp_path)


@pytest.mark.timeout(180)
def test_every_manager_is_replaced_under_load(trio: Playground, tmp_path: Path) -> None:
    """Each manager is demoted, leaves, and joins anew while clients write: none of their writes fails.

    Before a manager goes, the one that went before it is back as a worker and promoted.
    """

    def replace_all() -> None:
        for node in (1, 2, 3):
            replace_manager(trio, node)

    before = raft_members(trio)
    ran = run(trio, replace_all, "replaced", tmp_path)
    after = raft_members(trio)
    assert len(after) == 3
    assert not before & after, "each manager is another member now"
    assert acknowledged(ran.history) > 50
    # Only a manager that is being removed may turn clients away, and then says so.
    refused = [reason for reason in ran.history.refused if "nobody listens" not in reason]
    assert all("was removed from the cluster" in reason for reason in refused), ran.history.refused


def replace_manager(playground: Playground, node: int) -> None:
    """Demotes a manager, has its node leave, removes it, and lets it join again as a worker that is promoted."""
    place = playground.place(node)
    other = 1 + node % 3
    name = place.hostname
    old_id = node_ids(playground)[name]
    playground.orch("node", "demote", name, node=other)
    playground.run_on(node, str(ORCH), "cluster", "leave")
    assert not processes_of_part(place, "manager")
    # It said that it leaves: nobody has to wait for its heartbeats, or to use force.
    playground.orch("node", "rm", old_id, node=other)
    token = playground.orch("cluster", "token", "worker", "-q", node=other).stdout.strip()
    address = str(playground.place(other).address)
    playground.run_on(node, str(ORCH), "cluster", "join", "--token", token, address)
    playground.orch("node", "promote", name, node=other)
    wait_for(lambda: name in voters(playground, other), f"the vote of {name}", 40)


def node_ids(playground: Playground) -> dict[str, str]:
    """Ids of the nodes, by host name."""
    found = [one.node for one in playground.objects(types_pb2.OBJECT_KIND_NODE)]
    return {node.description.hostname: node.id for node in found}


def cluster_info(playground: Playground, node: int) -> control_pb2.ClusterInfoResponse | None:
    """What a manager says of the cluster; None while it does not answer."""
    with grpc.insecure_channel(f"unix:{playground.place(node).manager_socket}") as channel:
        try:
            return control_pb2_grpc.ControlStub(channel).ClusterInfo(control_pb2.ClusterInfoRequest(), timeout=5)
        except grpc.RpcError:
            return None


def voters(playground: Playground, node: int) -> set[str]:
    """Host names of the managers that vote, by what one of them says."""
    info = cluster_info(playground, node)
    return {one.hostname for one in info.members if not one.learner} if info is not None else set()


def raft_members(playground: Playground) -> set[int]:
    """The raft ids of the managers."""
    info = wait_for(lambda: cluster_info(playground, 1), "an answer")
    return {one.raft_id for one in info.members}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(8))
def test_long_histories_under_random_faults_are_linearizable(trio: Playground, tmp_path: Path, seed: int) -> None:
    """The same for a hundred seconds a seed, with faults of random kinds and lengths one after the other."""
    chance = random.Random(f"long {seed}")

    def disturb() -> None:
        for _ in range(25):
            nemesis = Nemesis(trio, chance, hold_s=chance.choice([0.2, 1.0, 3.0, 8.0]))
            chance.choice(nemesis.all_faults())()

    run(trio, disturb, f"long-{seed}", tmp_path)
