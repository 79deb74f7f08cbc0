"""One member of the cluster that `raft_etcd.py` measures: told what to do by lines of JSON, answers by lines of JSON.

Usage: python tests/bench/raft_member.py FOLDER RAFT_ID PORT HEARTBEAT_MS ELECTION_MS

FOLDER holds `raft-RAFT_ID` (founded or prepared) and `identity-RAFT_ID`. Whenever this member comes to lead it writes
one entry and says when that was committed, by the clock that all processes of the host share.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

import orch_manager  # noqa: F401  # first: how managers set grpc up

sys.path.insert(0, str(Path(__file__).parents[1]))

from orch_raft.engine import Member, MembershipAction, MembershipChange, SnapshotInstaller, SnapshotWriter
from orch_raft.errors import ProposalError
from orch_raft.limits import EngineOptions
from orch_rpc.identity import IdentitySource, IdentityStore
from unit.raft.tls_member import TlsMember

VALUE_BYTES = 480
TIMEOUT_S = 20.0


class NoState:
    """A state machine that keeps nothing, so that consensus alone is measured."""

    def apply(self, _index: int, _term: int, _data: bytes) -> object:
        """Do nothing."""

    def snapshot(self) -> SnapshotWriter:
        """Write nothing."""
        return lambda _stream: None

    def restore(self, _stream: Any) -> SnapshotInstaller:
        """Restore nothing."""
        return lambda: None


def say(**what: object) -> None:
    """One line for the bench."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def add(member: TlsMember, raft_id: int, address: str) -> None:
    """Let another member join, and vote once it has caught up."""
    other = Member(raft_id, f"node-{raft_id}", address)
    engine = member.engine
    await engine.change_membership(MembershipChange(MembershipAction.ADD_LEARNER, other), timeout_s=TIMEOUT_S)
    async with asyncio.timeout(TIMEOUT_S):
        while not all(peer.caught_up for peer in engine.status().peers):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)
    await engine.change_membership(MembershipChange(MembershipAction.PROMOTE, other), timeout_s=TIMEOUT_S)
    say(added=raft_id)


async def load(member: TlsMember, writers: int, seconds: float) -> None:
    """Propose from so many writers at once, each the next as soon as its last is committed."""
    data = os.urandom(VALUE_BYTES)
    engine = member.engine
    until_s = time.perf_counter() + seconds
    durations_ms: list[float] = []

    async def write() -> None:
        while (began_s := time.perf_counter()) < until_s:
            await engine.propose(data, timeout_s=TIMEOUT_S)
            durations_ms.append((time.perf_counter() - began_s) * 1000)

    started_s = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(writers)))
    elapsed_s = time.perf_counter() - started_s
    cuts = statistics.quantiles(durations_ms, n=100)
    say(per_s=len(durations_ms) / elapsed_s, p50_ms=cuts[49], p99_ms=cuts[98])


async def tell_leadership(member: TlsMember) -> None:
    """Commit one entry whenever this member leads."""
    async for change in member.engine.leadership():
        if change.is_leader:
            try:
                await member.engine.propose(b"x", timeout_s=TIMEOUT_S)
            except ProposalError as error:
                say(lost=str(error))
            else:
                say(leads=member.engine.status().member_id, at_s=time.monotonic(), term=change.term)


async def main(folder: Path, raft_id: int, port: int, heartbeat_ms: int, election_ms: int) -> None:
    """Run until standard input ends."""
    options = EngineOptions(heartbeat_ms=heartbeat_ms, election_ms=election_ms)
    source = IdentitySource(IdentityStore(folder / f"identity-{raft_id}"))
    member = TlsMember(folder / f"raft-{raft_id}", source, port, NoState(), options)
    await member.start()
    say(started=raft_id)
    leadership = asyncio.create_task(tell_leadership(member))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        if "add" in command:
            await add(member, command["add"], command["address"])
        else:
            await load(member, command["load"], command["seconds"])
    leadership.cancel()
    await member.stop()


if __name__ == "__main__":
    # ORCH_BENCH_LOOP=asyncio compares with the standard library's loop.
    factory = uvloop.new_event_loop if os.environ.get("ORCH_BENCH_LOOP", "uvloop") == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:6])))
