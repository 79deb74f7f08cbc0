"""How long after kill -9 of a task's process its replacement runs.

    python tests/bench/heal.py [--rounds 20] [--default-rounds 3] [--peer]

With `restart_policy.delay: 0s`, and with the default of five seconds. The end is when the manager shows the new task as
RUNNING, seen by a watch; for Docker Swarm (--peer), which has no watch of tasks, when a poll every 20 ms shows it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import dockerd
from bench.playground_setup import SLEEPER, bench_playground, summary
from cluster.playground_driver import Playground, is_up, task_processes
from orch_cli.playground.processes import all_pids, identify
from orch_proto import control_pb2, control_pb2_grpc, types_pb2


def heal_once(playground: Playground) -> float:
    """Seconds from the kill until the watch shows another running task."""
    (victim,) = playground.wait_running("heal_sleeper", 1)
    process = task_processes([victim])[victim.id]
    assert process is not None
    with grpc.insecure_channel(f"unix:{playground.node.manager_socket}") as channel:
        request = control_pb2.WatchRequest(kinds=[types_pb2.OBJECT_KIND_TASK])
        events = control_pb2_grpc.ControlStub(channel).Watch(request, timeout=60)
        for event in events:
            if event.action == control_pb2.WATCH_ACTION_SNAPSHOT_END:
                break
        began = time.monotonic()
        process.kill()
        for event in events:
            if event.object.task.id != victim.id and is_up(event.object.task):
                return time.monotonic() - began
    raise AssertionError("the watch ended")


def heal_once_docker(peer: dockerd.Docker, began_with: str) -> float:
    """The same for Docker: the process is found through the container's pid."""
    container = peer.run("ps", "-q", "--filter", f"name={began_with}")
    pid = int(peer.run("inspect", "--format", "{{.State.Pid}}", container.split()[0]))
    inside = _outer_pid(pid, peer)
    victim = identify(inside)
    assert victim is not None
    before = set(peer.run("service", "ps", "-q", "--no-trunc", began_with).split())
    began = time.monotonic()
    victim.kill()
    while True:
        rows = peer.run("service", "ps", "--no-trunc", "--format", "{{.ID}} {{.CurrentState}}", began_with)
        for row in rows.splitlines():
            task, state = row.split(" ", 1)
            if task not in before and state.startswith("Running"):
                return time.monotonic() - began
        time.sleep(0.02)


def _outer_pid(inner: int, peer: dockerd.Docker) -> int:
    # The peer's daemon lives in a pid namespace of its own and names processes by the numbers of that.
    for pid in all_pids():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            cgroup = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            continue
        numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
        if numbers[1:2] == [str(inner)] and peer.folder.name in cgroup:
            return pid
    raise AssertionError(f"no process has the number {inner} in the daemon's namespace")


def measure(rounds: int, once: Callable[[], float]) -> list[float]:
    """So many kills, with a pause: back-to-back kills would measure the crash-loop back-off."""
    found = []
    for _ in range(rounds):
        found.append(once())
        time.sleep(0.3)
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--default-rounds", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="measure Docker Swarm in turns with orch")
    options = parser.parse_args()
    if options.peer and (reason := dockerd.missing()):
        sys.exit(f"no peer: {reason}")
    with ExitStack() as stack:
        playground = stack.enter_context(bench_playground())
        peer = stack.enter_context(dockerd.swarm()) if options.peer else None
        for delay, rounds in (("0s", options.rounds), ("5s", options.default_rounds)):
            if rounds == 0:
                continue
            own, other = [], []
            if peer is not None:
                peer.deploy("heal", 1, delay)
            for number in range(rounds):
                if number % 3 == 0:  # orch backs off after three failures of a slot: a new stack begins anew
                    playground.orch("stack", "rm", "heal", ok=False)
                    playground.deploy("heal", SLEEPER.format(replicas=1, delay=delay))
                own += measure(1, lambda: heal_once(playground))
                if peer is not None:
                    other += measure(1, lambda: heal_once_docker(peer, "heal_sleeper"))
            print(f"delay {delay}: orch   {summary(own)}")
            if other:
                print(f"delay {delay}: docker {summary(other)}")
                peer.remove("heal") if peer is not None else None
            playground.orch("stack", "rm", "heal")


if __name__ == "__main__":
    main()
