"""Memory of all processes of orch on a one-node cluster with 100 sleeping tasks.

    python tests/bench/memory.py [--tasks 100]

PSS from smaps_rollup: memory that processes share is counted once, split among them. The tasks' own processes are shown
apart, as they are the user's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.playground_setup import SLEEPER, bench_playground
from cluster.playground_driver import MODULES, Playground, command_line
from orch_cli.playground.leftovers import processes_in_cgroups
from orch_cli.playground.processes import in_network_namespace

SETTLE_S = 10.0


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process; 0 when it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def by_part(playground: Playground) -> dict[str, list[int]]:
    """PSS in bytes of every process, by the part of orch that it belongs to."""
    tasks = {identity.pid for identity in processes_in_cgroups(playground.layout.cgroup_root)}
    known = {identity.pid for identity in in_network_namespace(playground.node.namespace_path)}
    found: dict[str, list[int]] = {}
    for pid in tasks | known:
        words = command_line(pid)
        part = next((name for name, module in MODULES.items() if module in words), None)
        if part is None:
            part = "orchd" if any(word.endswith("/orchd") for word in words) else "tasks" if pid in tasks else "others"
        found.setdefault(part, []).append(pss_bytes(pid))
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100)
    options = parser.parse_args()
    with bench_playground() as playground:
        for count in (0, options.tasks):
            if count:
                playground.deploy("memory", SLEEPER.format(replicas=count, delay="0s"), limit_s=120)
            time.sleep(SETTLE_S)
            print(f"with {count} tasks:")
            total = 0
            for part, values in sorted(by_part(playground).items()):
                print(f"  {part:<12} {sum(values) / 2**20:8.1f} MiB in {len(values)} processes")
                total += 0 if part == "tasks" else sum(values)
            print(f"  {'orch in all':<12} {total / 2**20:8.1f} MiB")


if __name__ == "__main__":
    main()
