"""The scheduler's decisions: filters that explain themselves, spread, and never more than a node has."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_manager import tasks as states
from orch_manager.scheduler.constraints import ConstraintSyntaxError, parse
from orch_manager.scheduler.nodes import NodeSet
from orch_manager.scheduler.placing import place
from orch_proto.objects_pb2 import Node, NodeState, Task
from orch_proto.specs_pb2 import NodeAvailability, NodeRole
from orch_proto.types_pb2 import PortConfig, PublishMode

MIB = 1024 * 1024
NOW_MS = 1_000_000_000


def node(name: str, *, memory_mib: int = 1024, cpus: float = 4, **labels: str) -> Node:
    made = Node(id=name, role=NodeRole.NODE_ROLE_WORKER)
    made.spec.availability = NodeAvailability.NODE_AVAILABILITY_ACTIVE
    made.spec.annotations.labels.update(labels)
    made.status.state = NodeState.NODE_STATE_READY
    made.description.hostname = name
    made.description.platform.os, made.description.platform.architecture = "linux", "x86_64"
    made.description.resources.memory_bytes = memory_mib * MIB
    made.description.resources.nano_cpus = int(cpus * 1e9)
    return made


def pending(name: str, *, service: str = "web", memory_mib: int = 0) -> Task:
    task = Task(id=name, service_id=service, spec_version=1, slot=1, desired_state=states.RUNNING)
    task.status.state = states.PENDING
    task.spec.resources.reservations.memory_bytes = memory_mib * MIB
    return task


def cluster(*nodes: Node) -> NodeSet:
    made = NodeSet()
    for each in nodes:
        made.put_node(each)
    return made


def where(tasks: list[Task], nodes: NodeSet) -> Counter[str]:
    return Counter(each.node_id for each in place(tasks, nodes, NOW_MS).placements)


def test_tasks_of_a_service_spread_evenly() -> None:
    """Nine tasks on three equal nodes: three each."""
    nodes = cluster(node("a"), node("b"), node("c"))
    assert where([pending(str(n)) for n in range(9)], nodes) == {"a": 3, "b": 3, "c": 3}


def test_the_node_with_fewest_tasks_of_the_service_wins_over_the_emptiest() -> None:
    """Tasks of other services count only between nodes that have equally many of this one."""
    nodes = cluster(node("a"), node("b"))
    place([pending(f"other{n}", service="db") for n in range(2)], nodes, NOW_MS)
    running = pending("first")
    running.node_id, running.status.state = "a", states.RUNNING
    nodes.put_task(running, NOW_MS)
    assert where([pending("second")], nodes) == {"b": 1}


def test_a_preference_spreads_over_labels_before_nodes() -> None:
    """With three nodes in one zone and one in the other, half of the tasks go to each zone."""
    nodes = cluster(*(node(name, zone="east") for name in "abc"), node("d", zone="west"))
    tasks = [pending(str(number)) for number in range(6)]
    for task in tasks:
        task.spec.placement.preferences.add(spread_descriptor="node.labels.zone")
    assert where(tasks, nodes) == {"a": 1, "b": 1, "c": 1, "d": 3}


def test_a_task_without_a_place_learns_why() -> None:
    """The explanation names each reason with the number of nodes."""
    paused, down = node("paused"), node("down")
    paused.spec.availability = NodeAvailability.NODE_AVAILABILITY_PAUSE
    down.status.state = NodeState.NODE_STATE_DOWN
    outcome = place([pending("big", memory_mib=4096)], cluster(node("a"), node("b"), paused, down), NOW_MS)
    expected = "no suitable node (insufficient memory on 2 nodes; not ready on 1 node; paused on 1 node)"
    assert outcome.placements[0].reason == expected
    assert outcome.filtered == {"resource": 2, "ready": 2}


def test_an_empty_cluster_says_so() -> None:
    """A cluster without nodes is a reason of its own."""
    assert (
        place([pending("a")], cluster(), NOW_MS).placements[0].reason == "no suitable node (the cluster has no nodes)"
    )


@pytest.mark.parametrize(
    ("constraint", "fits"),
    [
        ("node.labels.disk == SSD", True),
        ("node.labels.disk != ssd", False),
        ("node.labels.absent != x", True),
        ("node.labels.absent == x", False),
        ("node.role==worker", True),
        ("node.hostname == a", True),
        ("node.platform.arch == amd64", True),
        ("node.platform.arch != x86_64", False),
        ("engine.labels.gpu == none", False),
    ],
)
def test_constraints_compare_as_swarm_does(constraint: str, fits: bool) -> None:  # noqa: FBT001
    """Values compare without case; an absent label is the empty string; architectures have two names."""
    task = pending("a")
    task.spec.placement.constraints.append(constraint)
    assert where([task], cluster(node("a", disk="ssd"))) == {"a" if fits else "": 1}


@pytest.mark.parametrize(
    "text", ["node.role", "node.role = manager", "role == x", "node.labels. == x", "node.role == king"]
)
def test_a_constraint_that_makes_no_sense_is_refused(text: str) -> None:
    """What cannot match anything is an error, not a task that waits for ever."""
    with pytest.raises(ConstraintSyntaxError):
        parse(text)


def test_host_ports_and_max_replicas_limit_a_node() -> None:
    """A node takes one task for a host port, and no more replicas than allowed."""
    tasks = [pending(str(number)) for number in range(3)]
    for task in tasks:
        task.endpoint.ports.append(PortConfig(target_port=80, published_port=80, mode=PublishMode.PUBLISH_MODE_HOST))
    assert where(tasks, cluster(node("a"), node("b"))) == {"a": 1, "b": 1, "": 1}
    limited = [pending(str(number)) for number in range(5)]
    for task in limited:
        task.spec.placement.max_replicas_per_node = 2
    placements = place(limited, cluster(node("a"), node("b")), NOW_MS).placements
    assert Counter(each.node_id for each in placements) == {"a": 2, "b": 2, "": 1}
    assert placements[-1].reason == "no suitable node (max replicas per node reached on 2 nodes)"


def test_a_node_where_a_version_keeps_failing_is_the_last_choice() -> None:
    """Five failures of a service version within five minutes make its node the last one."""
    nodes = cluster(node("a"), node("b"))
    for number in range(5):
        failed = pending(f"failed{number}")
        failed.node_id, failed.status.state, failed.status.timestamp_unix_ms = "a", states.FAILED, NOW_MS - 1000
        nodes.put_task(failed, NOW_MS)
    assert where([pending(str(number)) for number in range(3)], nodes) == {"b": 3}
    assert where([pending("other", service="db")], nodes) == {"a": 1}


_TASKS = st.lists(st.tuples(st.sampled_from(["web", "db"]), st.integers(0, 600)), max_size=40)
_NODES = st.lists(st.integers(0, 2048), max_size=6)


@settings(deadline=None)
@given(_TASKS, _NODES)
def test_no_node_is_ever_overcommitted(wishes: list[tuple[str, int]], memories: list[int]) -> None:
    """Whatever is asked: reservations stay within memory, every task has a place or a reason, none is lost."""
    nodes = cluster(*(node(f"n{number}", memory_mib=mib) for number, mib in enumerate(memories)))
    tasks = [pending(f"t{n}", service=f"{name}{mib}", memory_mib=mib) for n, (name, mib) in enumerate(wishes)]
    placements = place(tasks, nodes, NOW_MS).placements
    assert sorted(each.task.id for each in placements) == sorted(task.id for task in tasks)
    used: Counter[str] = Counter()
    for each in placements:
        assert bool(each.node_id) or each.reason.startswith("no suitable node")
        used[each.node_id] += each.task.spec.resources.reservations.memory_bytes
    for number, mib in enumerate(memories):
        assert used[f"n{number}"] <= mib * MIB


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 1]), st.sampled_from([192, 512, 640, 704])), max_size=60)
)
def test_what_a_node_holds_depends_on_the_last_word_on_each_task(words: list[tuple[int, int, int]]) -> None:
    """Feeding versions of tasks in any number, also twice, leaves the count that the last versions alone give."""
    fed, last = cluster(node("n0"), node("n1")), {}
    for number, where_to, state in words:
        task = pending(f"t{number}", memory_mib=10)
        task.node_id, task.status.state = f"n{where_to}", state  # type: ignore[assignment]  # an enum's number
        last[task.id] = task
        fed.put_task(task, NOW_MS)
        fed.put_task(task, NOW_MS)
    fresh = cluster(node("n0"), node("n1"))
    for task in last.values():
        fresh.put_task(task, NOW_MS)
    for name, info in fresh.infos.items():
        assert fed.infos[name].memory_free_bytes == info.memory_free_bytes
        assert fed.infos[name].by_service == info.by_service
        assert fed.infos[name].total == info.total
