"""Starts of containers in several situations: against a C program, without spare children, many at once, in a row.

    python tests/bench/container_series.py [--rounds 20] [--pause-ms 60] [--at-once 50] [--in-a-row 200]

The C program (`container_floor.c`) makes the system calls of a start and nothing else; its figure is from its `main`
to the container's first instruction, orch's from just before the request. All isolate alike, see `container_start.py`.
Many at once and in a row are from the first start to the end of the last program, which ends at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.container_start import Bench, _pss_kib, _without_cgroup2
from orch_runtime.client import RuntimeClient
from orch_runtime.daemon import ensure_keeper

CONTROLLERS = ("memory", "cpu", "pids", "freezer", "devices", "blkio")
IDLE = 100


class Series:
    """A bench, a second runtime without spare children, and the C program.

    Args:
        bench: gives folders, plans and peers.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._bare_root = bench.folder / "bare"
        ensure_keeper(str(self._bare_root), "/orch-bench/bare", pool_size=0)
        self._bare = RuntimeClient(f"{self._bare_root}/runtime.sock")
        self._floor = bench.folder / "floor"
        source = Path(__file__).with_name("container_floor.c")
        subprocess.run(["gcc", "-O2", "-o", self._floor, source], check=True)
        self._controllers = [name for name in CONTROLLERS if Path(f"/sys/fs/cgroup/{name}").is_dir()]

    def close(self) -> None:
        """End the second runtime."""
        self._bare.shutdown(force=True)

    def floor(self) -> float:
        """Start by the C program; returns milliseconds to the first instruction."""
        self._bench.count += 1
        group = f"orch-bench-floor{self._bench.count}"
        command = [str(self._floor), str(self._bench.rootfs), group, *self._controllers]
        result = subprocess.run(command, capture_output=True, check=True)
        return (int(result.stdout) - int(result.stderr)) / 1000

    def without_pool(self) -> float:
        """Start through a supervisor that has no spare children."""
        with_pool, self._bench.client = self._bench.client, self._bare
        try:
            return self._bench.orch()
        finally:
            self._bench.client = with_pool

    def orch_batch(self, number: int, *, at_once: bool) -> float:
        """Start many programs that end at once; returns seconds until the last has ended."""
        client = self._bench.client
        plans = [self._bench.plan(["/payload"]) for _ in range(number)]
        time.sleep(0.3)
        begin = time.monotonic()
        if at_once:
            for seq in [client.send("run", plan=plan) for plan in plans]:
                client.wait(seq)
        else:
            for plan in plans:
                client.run(plan)
        while any(entry.status != "exited" for entry in client.list()):
            time.sleep(0.001)
        elapsed_s = time.monotonic() - begin
        for plan in plans:
            client.delete(plan["id"])
        return elapsed_s

    def peer_batch(self, program: str, number: int, *, at_once: bool) -> float:
        """The same by one process of a peer for each container."""
        self._bench.peer(program)
        bundle = self._bench.folder / f"bundle-{program}"
        config = json.loads((bundle / "config.json").read_text())
        commands = []
        for count in range(number):
            own = self._bench.folder / f"batch-{program}-{number}-{count}"
            own.mkdir(exist_ok=True)
            config["linux"]["cgroupsPath"] = f"/orch-bench/{program}-{count}"
            (own / "config.json").write_text(json.dumps(config))
            root = self._bench.folder / f"state-{program}"
            commands.append([program, "--root", str(root), "run", "--bundle", str(own), f"{own.name}"])
        begin = time.monotonic()
        if at_once:
            started = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
            failed = [process.args for process in started if process.wait() != 0]
        else:
            failed = [
                each for each in commands if subprocess.run(each, stdout=subprocess.DEVNULL, check=False).returncode
            ]
        elapsed_s = time.monotonic() - begin
        if failed:
            raise SystemExit(f"{program}: {len(failed)} of {number} failed")
        return elapsed_s

    def memory(self) -> None:
        """Print what an idle container costs in keeper and supervisor, beyond its own process."""
        client = self._bench.client

        def pss_kib() -> int:
            version = client.version()
            return sum(_pss_kib(int(version[name])) for name in ("keeper_pid", "pid"))

        before = pss_kib()
        plans = [self._bench.plan(["/payload", "sleep"], overlay=True, log=True) for _ in range(IDLE)]
        for plan in plans:
            client.run(plan)
        time.sleep(0.5)
        after = pss_kib()
        print(f"PSS of keeper and supervisor: {before} KiB, with {IDLE} idle containers {after} KiB: ", end="")
        print(f"{after / IDLE:.0f} KiB each with the whole share, {(after - before) / IDLE:.1f} KiB each more")
        for plan in plans:
            client.delete(plan["id"], force=True)


def interleaved(variants: dict[str, Callable[[], float]], rounds: int, pause_s: float) -> None:
    """Measure in turns and print, with the ratio to the C program."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        variant()
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            time.sleep(pause_s)
            figures[name].append(variants[name]())
    reference = statistics.median(figures["C program"])
    print(f"{'variant':<20} {'min':>7} {'p50':>7} {'p95':>7}  p50 / C   (ms, n = {rounds})")
    for name, values in figures.items():
        ordered = sorted(values)
        middle = statistics.median(values)
        p95 = ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)]
        print(f"{name:<20} {ordered[0]:>7.2f} {middle:>7.2f} {p95:>7.2f}  {middle / reference:.2f}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pause-ms", type=float, default=60.0)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--in-a-row", type=int, default=200)
    arguments = parser.parse_args()
    _without_cgroup2()
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    bench = Bench(Path(tempfile.mkdtemp(prefix="orch-bench-", dir=base)))
    series = Series(bench)
    peers = [program for program in ("crun", "runc") if shutil.which(program)]
    try:
        variants: dict[str, Callable[[], float]] = {
            "C program": series.floor,
            "orch": bench.orch,
            "orch, no spare child": series.without_pool,
        }
        for program in peers:
            variants[program] = lambda program=program: bench.peer(program)  # type: ignore[misc]
        interleaved(variants, arguments.rounds, arguments.pause_ms / 1000)
        for number, at_once in ((arguments.at_once, True), (arguments.in_a_row, False)):
            words = [f"orch {series.orch_batch(number, at_once=at_once):.2f} s"]
            words += [f"{name} {series.peer_batch(name, number, at_once=at_once):.2f} s" for name in peers]
            words.append(f"orch again {series.orch_batch(number, at_once=at_once):.2f} s")
            print(f"{number} {'at once' if at_once else 'in a row'}: {', '.join(words)}")
        series.memory()
    finally:
        series.close()
        bench.client.shutdown(force=True)
        time.sleep(0.3)
        shutil.rmtree(bench.folder, ignore_errors=True)
        for group in Path("/sys/fs/cgroup").glob("*/orch-bench"):
            with contextlib.suppress(OSError):
                group.rmdir()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
