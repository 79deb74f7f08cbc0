"""How long after kill -9 of the leading manager the control API takes a write again.

    python tests/bench/failover.py [--rounds 20] [--pause]

Three managers at default settings, two of which survive. A client at each of the two tries to create an object every
20 ms, with names of its own, from before the kill on. What is measured ends with the first answer to a write that was
begun after the kill. With --pause the leader is stopped (SIGSTOP) instead, so that no connection breaks.
`raft_etcd.py --failovers` compares the engine alone with etcd at equal timers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import grpc.aio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.playground_setup import summary
from cluster.consensus_faults import converged
from cluster.playground_driver import Playground, own_subnet
from orch_proto import control_pb2, control_pb2_grpc, defaults
from orch_proto.specs_pb2 import SecretSpec

_TRY_EVERY_S = 0.02
_TRY_LIMIT_S = 10.0
_ROUND_LIMIT_S = 30.0


@contextmanager
def three_managers() -> Iterator[Playground]:
    """A playground of three managers that is removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        made = Playground(f"bench-{os.getpid()}", own_subnet(2), Path(folder), managers=3)
        made.up()
        try:
            yield made
        finally:
            made.down()


class Writer:
    """Tries to write, again and again; each try has its own call, as one that hangs must not hide the next."""

    def __init__(self, socket: Path, name: str) -> None:
        self._socket = socket
        self._name = name
        #: When the first write that was begun after the kill was answered.
        self.first_s: float | None = None

    async def run(self, killed_s: asyncio.Future[float], stop: asyncio.Event) -> None:
        """Writes until told to stop."""
        async with grpc.aio.insecure_channel(f"unix:{self._socket}") as channel, asyncio.TaskGroup() as group:
            number = 0
            while not stop.is_set():
                number += 1
                group.create_task(self._once(channel, number, killed_s, stop))
                await asyncio.sleep(_TRY_EVERY_S)

    async def _once(
        self, channel: grpc.aio.Channel, number: int, killed_s: asyncio.Future[float], stop: asyncio.Event
    ) -> None:
        spec = SecretSpec(data=b"x")
        spec.annotations.name = f"{self._name}-{number}"
        request = control_pb2.CreateRequest(spec=control_pb2.Spec(secret=spec))
        began_s = time.monotonic()
        try:
            await control_pb2_grpc.ControlStub(channel).Create(request, timeout=_TRY_LIMIT_S)
        except grpc.aio.AioRpcError:
            return
        if killed_s.done() and began_s >= killed_s.result() and self.first_s is None:
            self.first_s = time.monotonic()
            stop.set()


async def fail_over(playground: Playground, number: int, *, pause: bool) -> float:
    """Seconds from the kill to the first write."""
    leader = playground.leader()
    victim = playground.process("manager", leader)
    survivors = [playground.place(node) for node in (1, 2, 3) if node != leader]
    stop = asyncio.Event()
    killed_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    writers = [Writer(place.manager_socket, f"round-{number}-{place.number}") for place in survivors]
    async with asyncio.timeout(_ROUND_LIMIT_S), asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(writer.run(killed_s, stop))
        await asyncio.sleep(0.5)  # the connections stand, and the leader writes
        victim.send(signal.SIGSTOP if pause else signal.SIGKILL)
        killed_s.set_result(time.monotonic())
    if pause:
        victim.send(signal.SIGCONT)
    return min(writer.first_s for writer in writers if writer.first_s is not None) - killed_s.result()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pause", action="store_true", help="stop the leader instead of killing it")
    options = parser.parse_args()
    how = "stopped" if options.pause else "killed"
    with three_managers() as playground:
        found = []
        for number in range(options.rounds):
            converged(playground)
            found.append(asyncio.run(fail_over(playground, number, pause=options.pause)))
            print(f"leader {how}, round {number + 1}: {found[-1]:.3f} s", flush=True)
    print(
        f"leader {how} to first write, heartbeat {defaults.RAFT_HEARTBEAT_MS} ms, "
        f"election {defaults.RAFT_ELECTION_MS} ms: {summary(found)}"
    )


if __name__ == "__main__":
    main()
