"""What the network process costs: attach, detach, a changed backend. Run as root.

Everything happens in a network namespace made for the purpose. Attach and detach are timed at the client, through the
control socket, one request at a time; "quiet" leaves 60 ms between requests, in which the pool of namespaces refills.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from network.conftest import Lab
from network.netlab import FRONT, service, task, tool
from orch_network.client import NetworkClient


def main() -> None:
    """Run all measurements and print a table."""
    parser = argparse.ArgumentParser(description="Time the network process.")
    parser.add_argument("--tasks", type=int, default=100)
    count = parser.parse_args().tasks
    lab = Lab()
    try:
        lab.start()
        with lab.connect() as net:
            net.network_set(FRONT)
            _attach(net, lab, count)
            _balance(net)
            assert lab.netd is not None
            print(f"netd RSS {_rss_kib(lab.netd.pid)} KiB")
            net.shutdown(remove=True)
            lab.netd.wait()
    finally:
        lab.close()


def _attach(net: NetworkClient, lab: Lab, count: int) -> None:
    tasks = [task(f"t{number}", f"10.0.1.{number + 10}") for number in range(count)]
    _report("attach, quiet (pool)", [_timed(lambda each=each: net.attach(each), pause_s=0.06) for each in tasks[:40]])
    _report("attach, in a row", [_timed(lambda each=each: net.attach(each)) for each in tasks[40:]])
    began = time.perf_counter()
    _report("detach, in a row", [_timed(lambda each=each: net.detach(each.task_id)) for each in tasks])
    print(f"{count} detaches in all: {1e3 * (time.perf_counter() - began):.1f} ms")
    began = time.perf_counter()
    while ": t-" in tool(lab.router_path(FRONT.id), "ip", "-o", "link"):
        time.sleep(0.01)
    print(f"… and their links gone {1e3 * (time.perf_counter() - began):.0f} ms later")


def _balance(net: NetworkClient) -> None:
    members = [(f"w{number}", f"10.0.1.{number + 10}") for number in range(11)]
    states = [service("web", "10.0.1.2", *members[:10]), service("web", "10.0.1.2", *members[1:])]
    net.service_patch(FRONT.id, states[1])
    _report(
        "swap one of ten backends", [_timed(lambda n=n: net.service_patch(FRONT.id, states[n % 2])) for n in range(100)]
    )
    net.services_set(FRONT.id, [service(f"s{n}", f"10.0.1.{n + 100}", *members[:10]) for n in range(100)] + [states[1]])
    _report(
        "the same, 100 services", [_timed(lambda n=n: net.service_patch(FRONT.id, states[n % 2])) for n in range(100)]
    )


def _timed(action: Callable[[], object], pause_s: float = 0.0) -> float:
    if pause_s:
        time.sleep(pause_s)
    began = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - began)


def _report(what: str, milliseconds: list[float]) -> None:
    ordered = sorted(milliseconds)
    p95 = ordered[int(0.95 * (len(ordered) - 1))]
    print(f"{what:28} n={len(ordered):4}  min {ordered[0]:.2f}  p50 {statistics.median(ordered):.2f}  p95 {p95:.2f} ms")


def _rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    main()
