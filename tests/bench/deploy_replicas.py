"""How long `orch deploy` takes to run 50 and 100 replicas of a sleeping container, and `orch stack rm` to remove them.

    python tests/bench/deploy_replicas.py [--rounds 3] [--replicas 50 100] [--peer]

A deploy counts from just before the command to the moment at which it says that all replicas run (it then waits half a
second more for programs that end at once); a removal to the command's exit. With --peer the same is done with `docker
stack deploy` in turns, and the ratio is printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import dockerd
from bench.playground_setup import SLEEPER, bench_playground, summary
from cluster.playground_driver import ORCH, Playground


def timed_deploy(playground: Playground, replicas: int) -> tuple[float, float]:
    """Seconds of one deploy and of the removal after it."""
    file = playground.file(SLEEPER.format(replicas=replicas, delay="0s"))
    began = time.monotonic()
    words = [ORCH, "deploy", "--name", "bench", "--progress", "plain", file]
    environment = {**os.environ, "ORCH_HOST": f"unix://{playground.node.manager_socket}"}
    deployed = 0.0
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as deploy:
        assert deploy.stderr is not None
        for line in deploy.stderr:
            if f"{replicas}/{replicas} running" in line and not deployed:
                deployed = time.monotonic() - began
    assert deploy.returncode == 0
    assert len(playground.running("bench_sleeper")) == replicas
    began = time.monotonic()
    playground.orch("stack", "rm", "bench", limit_s=120)
    return deployed, time.monotonic() - began


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", type=int, nargs="+", default=[50, 100])
    parser.add_argument("--peer", action="store_true", help="measure Docker Swarm in turns with orch")
    options = parser.parse_args()
    if options.peer and (reason := dockerd.missing()):
        sys.exit(f"no peer: {reason}")
    with ExitStack() as stack:
        playground = stack.enter_context(bench_playground())
        peer = stack.enter_context(dockerd.swarm()) if options.peer else None
        timed_deploy(playground, 5)  # the first deploy of a new cluster pays for imports
        for replicas in options.replicas:
            ours: list[tuple[float, float]] = []
            theirs: list[tuple[float, float]] = []
            for _ in range(options.rounds):
                ours.append(timed_deploy(playground, replicas))
                if peer is not None:
                    theirs.append((peer.deploy("bench", replicas), peer.remove("bench")))
            for index, what in enumerate(("deploy", "rm")):
                own = sorted(pair[index] for pair in ours)
                print(f"{what} of {replicas}: orch   {summary(own)}")
                if theirs:
                    other = sorted(pair[index] for pair in theirs)
                    ratio = median(other) / median(own)
                    print(f"{what} of {replicas}: docker {summary(other)}  orch is {ratio:.1f} times as fast")


if __name__ == "__main__":
    main()
