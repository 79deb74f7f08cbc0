"""Queries a second at a task's resolver, with 1 and with 32 in flight. Run as root.

The client shares the machine with the resolver, so the resolver alone does better; its own CPU time is given too.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from network.conftest import Lab
from network.netlab import FRONT, inside, service, task

_QUESTION = bytes.fromhex("000001000001000000000000") + b"\3web\0\0\1\0\1"
_QUERIES = 20_000


def main() -> None:
    """Measure and print."""
    lab = Lab()
    try:
        lab.start()
        with lab.connect() as net:
            net.network_set(FRONT)
            net.service_patch(FRONT.id, service("web", "10.0.1.2", ("w1", "10.0.1.10")))
            path = net.attach(task("asker", "10.0.1.5")).netns
            assert lab.netd is not None
            for in_flight in (1, 32):
                began, cpu = time.perf_counter(), _cpu_s(lab.netd.pid)
                _flood(path, in_flight)
                took, cpu = time.perf_counter() - began, _cpu_s(lab.netd.pid) - cpu
                rate, share = _QUERIES / took, 1e6 * cpu / _QUERIES
                print(f"{in_flight:3} in flight: {rate:8.0f} queries/s; resolver's CPU {share:.1f} us per query")
            net.shutdown(remove=True)
            lab.netd.wait()
    finally:
        lab.close()


def _flood(path: str, in_flight: int) -> None:
    with inside(path):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.settimeout(5)
        client.connect(("127.0.0.11", 53))
        for _ in range(in_flight):
            client.send(_QUESTION)
        for _ in range(_QUERIES - in_flight):
            client.recv(512)
            client.send(_QUESTION)
        for _ in range(in_flight):
            client.recv(512)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
