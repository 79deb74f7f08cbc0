"""How many writes a second one client gets through the control API, each after the answer to the last.

Usage: ORCH_HOST=... python tests/bench/control_writes.py [--seconds S] [--clients N]

Runs against a living cluster (`orch playground up --managers 3`, then the line that `orch playground env` prints)
and leaves nothing in it. Each write creates a config of 480 bytes and each second one removes it. `raft_etcd.py` prints
etcd's rate at 1 in flight on the same machine: the target is half of it.
"""

import argparse
import asyncio
import os
import secrets
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from orch_cli import connection
from orch_proto import control_pb2 as control
from orch_proto.types_pb2 import ObjectKind

VALUE_BYTES = 480


async def measure(seconds: float, clients: int) -> None:
    """Print the rate and how long a write takes."""
    durations_ms: list[float] = []
    until_s = time.perf_counter() + seconds
    async with connection.control() as stub:

        async def write() -> None:
            while time.perf_counter() < until_s:
                request = control.CreateRequest()
                request.spec.config.annotations.name = f"bench-{secrets.token_hex(8)}"
                request.spec.config.data = os.urandom(VALUE_BYTES)
                began_s = time.perf_counter()
                made = await stub.Create(request)
                durations_ms.append((time.perf_counter() - began_s) * 1000)
                began_s = time.perf_counter()
                await stub.Remove(
                    control.RemoveRequest(kind=ObjectKind.OBJECT_KIND_CONFIG, reference=made.object.config.id)
                )
                durations_ms.append((time.perf_counter() - began_s) * 1000)

        started_s = time.perf_counter()
        await asyncio.gather(*(write() for _ in range(clients)))
        per_s = len(durations_ms) / (time.perf_counter() - started_s)
    cuts = statistics.quantiles(durations_ms, n=100)
    print(f"{clients} clients: {per_s:.0f} writes/s, p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=1)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.seconds, arguments.clients))


if __name__ == "__main__":
    main()
