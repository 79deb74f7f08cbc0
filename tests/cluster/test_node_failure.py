"""A worker that is cut off from the managers for half a minute, on the real kernel."""

from __future__ import annotations

import pytest

from cluster.playground_driver import Playground, task_processes, wait_for
from orch_proto import objects_pb2, types_pb2

WORKER = 5
STACK = """\
services:
  kept:
    image: test:1
    command: ["sh", "-c", 'trap "exit 0" TERM; while :; do sleep 3600 & wait $!; done']
    deploy: {replicas: 2, restart_policy: {delay: 0s}, placement: {constraints: ["node.role == worker"]}}
    x-orch: {disconnect_grace: 2m}
  moved:
    image: test:1
    command: ["sh", "-c", 'trap "exit 0" TERM; while :; do sleep 3600 & wait $!; done']
    deploy: {replicas: 2, restart_policy: {delay: 0s}, placement: {constraints: ["node.role == worker"]}}
"""


def states(playground: Playground) -> dict[str, objects_pb2.NodeStatus]:
    """The status of each node by its name."""
    nodes = [one.node for one in playground.objects(types_pb2.OBJECT_KIND_NODE)]
    return {node.description.hostname: node.status for node in nodes}


@pytest.mark.timeout(150)
def test_a_partition_within_the_grace_restarts_nothing_and_else_moves_once(calm: Playground) -> None:
    """A service with a grace is as it was after the partition; another one moved, and its stale task is stopped."""
    calm.deploy("cut", STACK)
    kept, moved = calm.wait_running("cut_kept", 2), calm.wait_running("cut_moved", 2)
    before = task_processes(kept)
    name = calm.place(WORKER).hostname
    calm.partition(name)
    wait_for(lambda: states(calm)[name].state == objects_pb2.NODE_STATE_DOWN, "the worker to be DOWN", 40)
    assert states(calm)[name].message == "no heartbeat for 15 s"
    shown = calm.orch("stack", "ps", "cut", "--no-trunc", node=calm.leader()).stdout
    assert "node down, last seen running; waiting up to" in shown
    calm.wait_running("cut_moved", 2)
    calm.heal()
    wait_for(lambda: states(calm)[name].state == objects_pb2.NODE_STATE_READY, "the worker's return", 40)
    stale = {task.id for task in moved} - {task.id for task in calm.running("cut_moved")}
    assert len(stale) == 1

    def stopped() -> bool:
        return all(
            task.status.state == types_pb2.TASK_STATE_SHUTDOWN for task in calm.tasks("cut_moved") if task.id in stale
        )

    wait_for(stopped, "the end of the stale task")
    assert task_processes(calm.wait_running("cut_kept", 2)) == before
