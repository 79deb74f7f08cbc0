"""How fast the single manager commits: the engine, and the store over it, beside a bare fdatasync in the same run.

Usage: python tests/bench/raft_commit.py [--folder FOLDER] [--rounds N] [--tasks N]

Each figure is the median of the rounds. The bare rate is what the disk gives to one writer of 500 bytes that syncs
each write; `ratio` compares with it.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from orch_manager.store.store import Store
from orch_manager.store.transaction import Transaction
from orch_proto.objects_pb2 import Task
from orch_proto.types_pb2 import TaskState
from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import Member, SnapshotInstaller, SnapshotWriter
from orch_raft.storage import found_cluster

PAYLOAD_BYTES = 480
WRITERS = (1, 16, 256)
SECONDS_PER_ROUND = 0.6


class NoState:
    """A state machine that keeps nothing, so that the engine alone is measured."""

    def apply(self, index: int, term: int, data: bytes) -> object:
        """Do nothing."""

    def snapshot(self) -> SnapshotWriter:
        """Write nothing."""
        return lambda _stream: None

    def restore(self, _stream: object) -> SnapshotInstaller:
        """Restore nothing."""
        return lambda: None


def bare_syncs_per_s(folder: Path) -> float:
    """Writes of 500 bytes to a preallocated file, each followed by fdatasync."""
    descriptor = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, 16 * 1024 * 1024)
        data, count, started_s = os.urandom(500), 0, time.perf_counter()
        while time.perf_counter() - started_s < SECONDS_PER_ROUND:
            os.pwrite(descriptor, data, count * 500)
            os.fdatasync(descriptor)
            count += 1
        return count / (time.perf_counter() - started_s)
    finally:
        os.close(descriptor)
        (folder / "bare").unlink()


async def rate(writers: int, operation: Callable[[int, int], Awaitable[object]]) -> tuple[float, float]:
    """Operations a second, and the 99th percentile of their duration in ms, with so many writers at once."""
    until_s = time.perf_counter() + SECONDS_PER_ROUND
    durations_ms: list[float] = []

    async def write(writer: int) -> None:
        number = 0
        while time.perf_counter() < until_s:
            began_s = time.perf_counter()
            await operation(writer, number)
            durations_ms.append((time.perf_counter() - began_s) * 1000)
            number += 1

    started_s = time.perf_counter()
    await asyncio.gather(*(write(writer) for writer in range(writers)))
    elapsed_s = time.perf_counter() - started_s
    return len(durations_ms) / elapsed_s, statistics.quantiles(durations_ms, n=100)[98]


def report(name: str, rounds: list[tuple[float, float]], bare_per_s: float) -> None:
    """One line."""
    per_s = statistics.median(each[0] for each in rounds)
    p99_ms = statistics.median(each[1] for each in rounds)
    print(f"{name:34} {per_s:10,.0f} /s   p99 {p99_ms:7.2f} ms   ratio to bare sync {per_s / bare_per_s:6.2f}")


async def measure_engine(folder: Path, rounds: int, bare_per_s: float) -> None:
    """Proposals to the engine."""
    found_cluster(folder, Member(1, "bench"))
    engine = ReplicatedEngine(folder, NoState())
    await engine.start()
    data = os.urandom(PAYLOAD_BYTES)
    for writers in WRITERS:
        figures = [
            await rate(writers, lambda _writer, _number: engine.propose(data, timeout_s=30)) for _ in range(rounds)
        ]
        report(f"engine, {writers} writers, {PAYLOAD_BYTES} bytes", figures, bare_per_s)
    await engine.stop()


def new_task(number: int) -> Task:
    """A task of the size that real ones have."""
    task = Task(id=f"task{number:021d}", service_id=f"service{number % 50}", slot=number, node_id=f"node{number % 100}")
    task.spec.container.image = "registry.example/shop/web:1.2.3"
    task.spec.container.image_digest = "sha256:" + "0" * 64
    task.spec.container.env.extend(f"VARIABLE_{n}=value" for n in range(5))
    task.desired_state = TaskState.TASK_STATE_RUNNING
    return task


async def measure_store(folder: Path, rounds: int, tasks: int, bare_per_s: float) -> None:
    """Status updates of tasks through the store, look-ups, and a restart."""
    found_cluster(folder, Member(1, "bench"))
    store = Store(lambda machine: ReplicatedEngine(folder, machine))
    await store.start()
    started_s = time.perf_counter()
    for first in range(0, tasks, 1000):

        def create(tx: Transaction, first: int = first) -> None:
            for number in range(first, min(first + 1000, tasks)):
                tx.create(new_task(number))

        await store.update(create, reason="bench")
    print(f"{'store, create tasks, 1000 at once':34} {tasks / (time.perf_counter() - started_s):10,.0f} /s")
    ids = [task.id for task in store.all(Task)]

    def report_status(writer: int, number: int) -> Awaitable[object]:
        def change(tx: Transaction) -> None:
            task = tx.edit(Task, ids[(writer * 7919 + number * 104729) % len(ids)])
            task.status.state = TaskState.TASK_STATE_RUNNING
            task.status.message = f"report {number}"
            tx.update(task)

        return store.update(change, reason="status")

    for writers in WRITERS:
        figures = [await rate(writers, report_status) for _ in range(rounds)]
        report(f"store, {writers} writers, 1 status each", figures, bare_per_s)
    measure_reads(store, tasks)
    await store.stop()
    started_s = time.perf_counter()
    store = Store(lambda machine: ReplicatedEngine(folder, machine))
    await store.start()
    print(
        f"{'store, restart':34} {(time.perf_counter() - started_s) * 1000:10,.0f} ms with {store.counts()[Task]} tasks"
    )
    await store.stop()


def measure_reads(store: Store, tasks: int) -> None:
    """Look-ups by index and by id."""
    started_s = time.perf_counter()
    found = sum(len(store.find(Task, node_id=f"node{number}")) for number in range(100))
    each_us = (time.perf_counter() - started_s) / 100 * 1e6
    print(f"{'store, tasks of a node by index':34} {each_us:10,.1f} us each, {found // 100} of {tasks} tasks found")
    started_s = time.perf_counter()
    for number in range(10_000):
        store.get(Task, f"task{number % tasks:021d}")
    print(f"{'store, task by id':34} {(time.perf_counter() - started_s) / 10_000 * 1e6:10,.2f} us each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; the disk there is what is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        bare_per_s = statistics.median(bare_syncs_per_s(folder) for _ in range(arguments.rounds))
        print(f"{'bare write and fdatasync':34} {bare_per_s:10,.0f} /s")
        asyncio.run(measure_engine(folder / "engine", arguments.rounds, bare_per_s))
        asyncio.run(measure_store(folder / "store", arguments.rounds, arguments.tasks, bare_per_s))


if __name__ == "__main__":
    main()
