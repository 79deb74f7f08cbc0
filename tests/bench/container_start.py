"""Start of one container to its first instruction: our supervisor beside crun, runc and an unshare + chroot floor.

    .venv/bin/python tests/bench/container_start.py [--rounds 30] [--pause-ms 60] [--burst 100]

Every variant runs the same static program, which writes the monotonic clock as its first act (it is built with gcc).
Variants are interleaved in random order with a pause before each, as a node that was idle pays for waking up: moving
a process into a cgroup alone waits 8 to 12 ms then.

All isolate alike: pid, mount, uts, ipc, network and cgroup namespaces,
the default mounts, masked paths, capabilities and a pids limit. The root file system is one folder (bind), so that no
variant waits for a disk. The floor has namespaces and chroot only. crun refuses hosts that have v1 controllers and a
cgroup2 mount side by side, so everything runs in a mount namespace without the latter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orch_runtime.client import RuntimeClient
from orch_runtime.config import DEFAULT_CAPABILITIES, compile_config, default_config
from orch_runtime.config.default_seccomp import default_profile
from orch_runtime.config.seccomp_profile import Host, resolve_profile
from orch_runtime.daemon import ensure_keeper
from orch_runtime.plan import BindRootfs, LogOptions, OverlayRootfs, Plan

PAYLOAD = r"""
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(int n, char **v) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    char b[64];
    int k = snprintf(b, sizeof b, "%ld\n", t.tv_sec * 1000000L + t.tv_nsec / 1000);
    write(1, b, k);
    if (n > 1) pause();
    return 0;
}
"""


class Bench:
    """Folders, a runtime of its own, and the variants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rootfs = folder / "rootfs"
        for name in ("proc", "sys", "dev", "etc"):
            (self.rootfs / name).mkdir(parents=True)
        source = folder / "payload.c"
        source.write_text(PAYLOAD)
        subprocess.run(["gcc", "-O2", "-static", "-o", self.rootfs / "payload", source], check=True)
        self.count = 0
        self.root = folder / "run"
        ensure_keeper(str(self.root), "/orch-bench/node")
        self.client = RuntimeClient(f"{self.root}/runtime.sock")

    def _config(self) -> dict[str, Any]:
        config = default_config(args=["/payload"], hostname="box")
        config["root"]["path"] = str(self.rootfs)
        return config

    def plan(self, args: list[str], *, overlay: bool = False, log: bool = False, filtered: bool = False) -> Plan:
        """Make a plan for our runtime."""
        self.count += 1
        name = f"b{self.count}"
        rootfs: BindRootfs | OverlayRootfs = BindRootfs(str(self.rootfs))
        if overlay:
            place = self.folder / "layers" / name
            (place / "u").mkdir(parents=True)
            (place / "w").mkdir()
            rootfs = OverlayRootfs((str(self.rootfs),), str(place / "u"), str(place / "w"))
        config = self._config()
        config["process"]["args"] = args
        if filtered:
            config["linux"]["seccomp"] = resolve_profile(default_profile(), DEFAULT_CAPABILITIES, Host.here())
        return compile_config(
            config, rootfs=rootfs, container_id=name, log=LogOptions(str(self.folder / f"{name}.log")) if log else None
        )

    def orch_filtered(self) -> float:
        """Like `orch`, under the default filter of system calls."""
        return self.orch(filtered=True)

    def orch(self, *, filtered: bool = False) -> float:
        """Start through the supervisor; returns milliseconds to the first instruction."""
        plan = self.plan(["/payload"], filtered=filtered)
        reader, writer = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        begin = time.monotonic_ns()
        seq = self.client.send("run", plan=plan, descriptors=[null, writer, writer])
        os.close(writer)
        stamp = os.read(reader, 64)
        elapsed = int(stamp) / 1000 - begin / 1e6
        self.client.wait(seq)
        while self.client.state(plan["id"]).status != "exited":
            time.sleep(0.002)
        self.client.delete(plan["id"])
        os.close(reader)
        os.close(null)
        return elapsed

    def _measure(self, command: list[str], finish: Callable[[], object] = lambda: None) -> float:
        begin = time.monotonic_ns()
        result = subprocess.run(command, capture_output=True, check=False)
        finish()
        try:
            return int(result.stdout) / 1000 - begin / 1e6
        except ValueError:
            raise SystemExit(f"{command[0]} failed: {result.stderr.decode()}") from None

    def floor(self) -> float:
        """Run under unshare + chroot, no cgroup."""
        namespaces = ["--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--fork"]
        return self._measure(["unshare", *namespaces, "chroot", str(self.rootfs), "/payload"])

    def peer(self, program: str) -> float:
        """Run by crun or runc."""
        self.count += 1
        bundle = self.folder / f"bundle-{program}"
        if not bundle.exists():
            bundle.mkdir()
            config = self._config()
            config["ociVersion"] = "1.0.2"
            config["linux"]["cgroupsPath"] = f"/orch-bench/{program}"
            (bundle / "config.json").write_text(json.dumps(config))
        root = self.folder / f"state-{program}"
        return self._measure([program, "--root", str(root), "run", "--bundle", str(bundle), f"p{self.count}"])

    def burst(self, number: int) -> None:
        """Start many sleeping containers at once; print time and memory."""
        plans = [self.plan(["/payload", "sleep"], overlay=True, log=True) for _ in range(number)]
        time.sleep(0.5)
        begin = time.monotonic()
        for seq in [self.client.send("run", plan=plan) for plan in plans]:
            self.client.wait(seq)
        each = (time.monotonic() - begin) * 1000 / number
        print(f"burst of {number} (overlay, log, own netns): {each:.2f} ms each")
        time.sleep(1.0)
        version = self.client.version()
        total = 0
        for name in ("keeper_pid", "pid"):
            pss = _pss_kib(int(version[name]))
            total += pss
            print(f"PSS of {'keeper' if name == 'keeper_pid' else 'supervisor'}: {pss / 1024:.1f} MiB")
        print(f"PSS together: {total / 1024:.1f} MiB with {number} containers")
        begin = time.monotonic()
        self.client.stats()
        print(f"stats of {number}: {(time.monotonic() - begin) * 1000:.1f} ms")
        begin = time.monotonic()
        for seq in [self.client.send("delete", id=plan["id"], force=True) for plan in plans]:
            self.client.wait(seq)
        print(f"kill and delete of {number}: {(time.monotonic() - begin) * 1000:.0f} ms")


def _pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _without_cgroup2() -> None:
    """Go on in a mount namespace where crun finds pure v1."""
    if os.environ.get("ORCH_BENCH_INSIDE") or not Path("/sys/fs/cgroup/unified").is_dir():
        return
    os.environ["ORCH_BENCH_INSIDE"] = "1"
    script = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, *sys.argv]
    os.execvp(command[0], command)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--pause-ms", type=float, default=60.0)
    parser.add_argument("--burst", type=int, default=100)
    arguments = parser.parse_args()
    _without_cgroup2()
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="orch-bench-", dir=base))
    bench = Bench(folder)
    try:
        variants: dict[str, Callable[[], float]] = {
            "orch": bench.orch,
            "orch, filtered": bench.orch_filtered,
            "unshare+chroot": bench.floor,
        }
        for program in ("crun", "runc"):
            if shutil.which(program):
                variants[program] = lambda program=program: bench.peer(program)  # type: ignore[misc]
            else:
                print(f"{program} is not installed: left out")
        figures: dict[str, list[float]] = {name: [] for name in variants}
        for variant in variants.values():
            variant()
        for _ in range(arguments.rounds):
            for name in random.sample(list(variants), len(variants)):
                time.sleep(arguments.pause_ms / 1000)
                figures[name].append(variants[name]())
        reference = statistics.median(figures.get("crun", figures["orch"]))
        print(f"{'variant':<16} {'min':>7} {'p50':>7} {'p95':>7}  p50 / crun   (ms, n = {arguments.rounds})")
        for name, values in figures.items():
            ordered = sorted(values)
            p95 = ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)]
            middle = statistics.median(values)
            print(f"{name:<16} {ordered[0]:>7.2f} {middle:>7.2f} {p95:>7.2f}  {middle / reference:.2f}")
        print("pool:", {key: value for key, value in bench.client.version().items() if str(key).startswith("pool")})
        if arguments.burst:
            bench.burst(arguments.burst)
    finally:
        bench.client.shutdown(force=True)
        time.sleep(0.3)
        shutil.rmtree(folder, ignore_errors=True)
        # crun and runc leave the parent of their groups behind, in hierarchies that we do not use as well.
        for group in Path("/sys/fs/cgroup").glob("*/orch-bench"):
            with contextlib.suppress(OSError):
                group.rmdir()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
