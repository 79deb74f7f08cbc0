"""A program that proposes without end and prints what was acknowledged, to be killed at any moment.

Usage: python killed_writer.py FOLDER RUN. Prints `ready` and then `<command>` for each acknowledged one.
"""

import asyncio
import sys
from pathlib import Path

# A script's own folder stands on the path, not the tests'.
sys.path.insert(0, str(Path(__file__).parents[2]))

from orch_raft.driver import ReplicatedEngine
from orch_raft.limits import EngineOptions
from unit.raft.counting_machine import CountingMachine

OPTIONS = EngineOptions(
    max_proposal_bytes=4096,
    max_batch_bytes=8192,
    max_batch_entries=64,
    segment_bytes=32 * 1024,
    snapshot_every_entries=300,
    keep_entries=20,
)
WRITERS = 16


async def write(engine: ReplicatedEngine, run: str, writer: int) -> None:
    number = 0
    while True:
        command = f"{run}.{writer}.{number}"
        await engine.propose(command.encode(), timeout_s=30)
        sys.stdout.write(command + "\n")
        sys.stdout.flush()
        number += 1


async def main(folder: Path, run: str) -> None:
    engine = ReplicatedEngine(folder, CountingMachine(), options=OPTIONS)
    await engine.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    async with asyncio.TaskGroup() as group:
        for writer in range(WRITERS):
            group.create_task(write(engine, run, writer))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
