"""Placing a thousand tasks on a thousand nodes, in memory, with constraints and reservations.

Run: python tests/bench/scheduler.py
"""

from __future__ import annotations

import statistics
import time

from orch_manager import tasks as states
from orch_manager.scheduler.nodes import NodeSet
from orch_manager.scheduler.placing import place
from orch_proto.objects_pb2 import Node, NodeState, Task
from orch_proto.specs_pb2 import NodeAvailability

NOW_MS = 1_000_000_000
ROUNDS = 5


def cluster(count: int) -> NodeSet:
    """Nodes in ten zones."""
    nodes = NodeSet()
    for number in range(count):
        node = Node(id=f"node{number}")
        node.status.state = NodeState.NODE_STATE_READY
        node.spec.availability = NodeAvailability.NODE_AVAILABILITY_ACTIVE
        node.spec.annotations.labels["zone"] = f"z{number % 10}"
        node.description.resources.memory_bytes = 8 << 30
        node.description.resources.nano_cpus = 8_000_000_000
        nodes.put_node(node)
    return nodes


def wishes(count: int, *, services: int, spread: bool) -> list[Task]:
    """Tasks of some services, each with a constraint and a reservation."""
    tasks = []
    for number in range(count):
        task = Task(id=f"t{number}", service_id=f"s{number % services}", spec_version=1, desired_state=states.RUNNING)
        task.status.state = states.PENDING
        task.spec.resources.reservations.memory_bytes = 16 << 20
        task.spec.placement.constraints.append("node.labels.zone != z3")
        if spread:
            task.spec.placement.preferences.add(spread_descriptor="node.labels.zone")
        tasks.append(task)
    return tasks


def main() -> None:
    """Prints the median of some rounds for each shape."""
    for services, spread in ((1, False), (1, True), (50, False)):
        times = []
        for _ in range(ROUNDS):
            nodes, tasks = cluster(1000), wishes(1000, services=services, spread=spread)
            started = time.perf_counter()
            outcome = place(tasks, nodes, NOW_MS)
            times.append((time.perf_counter() - started) * 1000)
            assert all(each.node_id for each in outcome.placements)
        shape = f"1000 tasks of {services} service(s) on 1000 nodes{', spread over zones' if spread else ''}"
        print(f"{shape}: median {statistics.median(times):.0f} ms, {min(times):.0f} to {max(times):.0f}")


if __name__ == "__main__":
    main()
