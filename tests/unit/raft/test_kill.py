"""A manager that is killed at any moment loses nothing that it acknowledged."""

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import Member
from orch_raft.storage import found_cluster
from unit.raft.counting_machine import CountingMachine

KILLS = 12
MEMBER = Member(1, "node-1")


def test_kill_9_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """After many kills at random moments every acknowledged command is there, once, in its writer's order."""
    folder = tmp_path / "raft"
    found_cluster(folder, MEMBER)
    seed = time.time_ns()
    rng = random.Random(seed)
    acknowledged: list[str] = []
    for run in range(KILLS):
        printed = kill_after(folder, run, rng.uniform(0.0, 0.35))
        acknowledged += printed.split("\n")[1:-1]
    assert len(acknowledged) > 100, f"hardly anything was acknowledged in {KILLS} runs (seed {seed})"
    commands = asyncio.run(read_back(folder))
    assert len(commands) == len(set(commands)), "a command was applied twice"
    missing = set(acknowledged) - set(commands)
    assert not missing, f"{len(missing)} acknowledged commands lost, first {sorted(missing)[:3]} (seed {seed})"
    last: dict[str, int] = {}
    for command in commands:
        writer, number = command.rsplit(".", 1)
        assert int(number) == last.get(writer, -1) + 1
        last[writer] = int(number)


def kill_after(folder: Path, run: int, delay_s: float) -> str:
    """Start the writer, kill it so long after it was ready, and return what it printed."""
    script = Path(__file__).with_name("killed_writer.py")
    output = folder.parent / f"output-{run}"
    with output.open("w") as stream:
        process = subprocess.Popen([sys.executable, str(script), str(folder), str(run)], stdout=stream)
    deadline_s = time.monotonic() + 20
    while not output.read_text().startswith("ready\n"):
        assert process.poll() is None, "the writer ended by itself"
        assert time.monotonic() < deadline_s, "the writer was not ready in time"
        time.sleep(0.005)
    time.sleep(delay_s)
    assert process.poll() is None, "the writer ended by itself"
    process.kill()
    process.wait()
    return output.read_text()


async def read_back(folder: Path) -> list[str]:
    """The commands in the log, in order."""
    machine = CountingMachine()
    engine = ReplicatedEngine(folder, machine)
    await engine.start()
    await engine.stop()
    return [command.decode() for command in machine.commands]
