"""The engine with one member: what its callers may rely on."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import LeadershipChange, Member, MembershipAction, MembershipChange, Observer, Role
from orch_raft.errors import (
    AlreadyFounded,
    ApplyFailed,
    DataKeyError,
    DurabilityLost,
    EngineStopped,
    FolderInUse,
    MembershipError,
    NotFounded,
    OutcomeUnknown,
    ProposalQueueFull,
    ProposalTooLarge,
    SnapshotCorrupt,
)
from orch_raft.limits import EngineOptions
from orch_raft.storage import found_cluster, is_founded, open_storage
from unit.raft.counting_machine import CountingMachine
from unit.raft.engine_bench import TIMEOUT_S, Bench

MEMBER = Member(0x5EED, "node-1", "192.0.2.1:2377")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    found_cluster(tmp_path / "raft", MEMBER)
    return Bench(tmp_path / "raft")


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(50):
            await body()

    asyncio.run(bounded())


def test_an_acknowledged_proposal_is_applied_and_survives_a_restart(bench: Bench) -> None:
    """A proposal returns once applied, with its index, term and result, and is there again after a restart."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        first = await engine.propose(b"one", timeout_s=TIMEOUT_S)
        second = await engine.propose(b"two", timeout_s=TIMEOUT_S)
        assert (first.result, second.result) == (1, 2)
        assert second.index == first.index + 1
        assert first.term == second.term == engine.status().term
        await engine.stop()
        engine = bench.engine()
        await engine.start()
        assert bench.machine.commands == [b"one", b"two"]
        assert bench.machine.indexes == [first.index, second.index]
        assert engine.status().term > first.term
        third = await engine.propose(b"three", timeout_s=TIMEOUT_S)
        assert third.index > second.index
        await engine.stop()

    run(body)


def test_many_writers_share_a_sync(bench: Bench) -> None:
    """Proposals that arrive while a batch is synced are written together, in the order in which they were made."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        bench.files.hold()
        first = asyncio.create_task(engine.propose(b"first", timeout_s=TIMEOUT_S))
        await bench.files.wait_syncing()
        rest = [asyncio.create_task(engine.propose(b"%d" % n, timeout_s=TIMEOUT_S)) for n in range(200)]
        await asyncio.sleep(0)
        bench.recorder.batches.clear()
        bench.files.gate.set()
        await asyncio.gather(first, *rest)
        assert bench.recorder.batches == [1, 200]
        assert bench.machine.commands == [b"first", *(b"%d" % n for n in range(200))]
        await engine.stop()

    run(body)


def test_nothing_is_acknowledged_before_its_sync(bench: Bench) -> None:
    """While the sync is under way the proposal is neither acknowledged nor applied."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        bench.files.hold()
        proposal = asyncio.create_task(engine.propose(b"one", timeout_s=TIMEOUT_S))
        await bench.files.wait_syncing()
        assert not proposal.done()
        assert bench.machine.commands == []
        bench.files.gate.set()
        await proposal
        assert bench.machine.commands == [b"one"]
        await engine.stop()

    run(body)


def test_a_failed_sync_stops_the_engine(bench: Bench) -> None:
    """After a failed sync the write in flight is of unknown outcome, no more are taken, and the process must stop."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        await engine.propose(b"kept", timeout_s=TIMEOUT_S)
        bench.files.hold()
        in_flight = asyncio.create_task(engine.propose(b"lost?", timeout_s=TIMEOUT_S))
        await bench.files.wait_syncing()
        waiting = asyncio.create_task(engine.propose(b"never", timeout_s=TIMEOUT_S))
        await asyncio.sleep(0)
        bench.files.broken = True
        bench.files.gate.set()
        with pytest.raises(OutcomeUnknown):
            await in_flight
        with pytest.raises(EngineStopped):
            await waiting
        with pytest.raises(EngineStopped, match="Input/output error"):
            await engine.propose(b"never", timeout_s=TIMEOUT_S)
        with pytest.raises(EngineStopped):
            await engine.read_barrier()
        with pytest.raises(DurabilityLost):
            await engine.wait_stopped()
        assert engine.status().role is Role.FAILED
        assert bench.machine.commands == [b"kept"]
        await engine.stop()
        bench.files.broken = False
        engine = bench.engine()
        await engine.start()
        assert bench.machine.commands[0] == b"kept"
        assert b"never" not in bench.machine.commands
        await engine.stop()

    run(body)


def test_a_proposal_that_takes_too_long_is_of_unknown_outcome(bench: Bench) -> None:
    """A time-out says that the outcome is unknown; the entry may be applied all the same."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        bench.files.hold()
        with pytest.raises(OutcomeUnknown, match="read the state before repeating it"):
            await engine.propose(b"slow", timeout_s=0.05)
        bench.files.gate.set()
        await engine.propose(b"next", timeout_s=TIMEOUT_S)
        assert bench.machine.commands == [b"slow", b"next"]
        assert bench.recorder.failures == ["OutcomeUnknown"]
        await engine.stop()

    run(body)


def test_a_proposal_whose_caller_gave_up_before_it_was_written_is_dropped(bench: Bench) -> None:
    """A caller that is cancelled while its proposal still waits leaves nothing behind."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        bench.files.hold()
        first = asyncio.create_task(engine.propose(b"first", timeout_s=TIMEOUT_S))
        await bench.files.wait_syncing()
        second = asyncio.create_task(engine.propose(b"second", timeout_s=TIMEOUT_S))
        await asyncio.sleep(0)
        second.cancel()
        bench.files.gate.set()
        await first
        await engine.propose(b"third", timeout_s=TIMEOUT_S)
        assert bench.machine.commands == [b"first", b"third"]
        await engine.stop()

    run(body)


def test_proposals_are_bounded_in_size_and_number(bench: Bench) -> None:
    """A proposal over the limit, and one more than may wait, are refused before anything is written."""

    async def body() -> None:
        engine = bench.engine(EngineOptions(max_waiting_proposals=3))
        await engine.start()
        with pytest.raises(ProposalTooLarge, match="at most 1572864 bytes"):
            await engine.propose(bytes(1_572_865), timeout_s=TIMEOUT_S)
        assert (await engine.propose(bytes(1_572_864), timeout_s=TIMEOUT_S)).result == 1
        bench.files.hold()
        tasks = [asyncio.create_task(engine.propose(b"x", timeout_s=TIMEOUT_S))]
        await bench.files.wait_syncing()
        tasks += [asyncio.create_task(engine.propose(b"x", timeout_s=TIMEOUT_S)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ProposalQueueFull):
            await engine.propose(b"x", timeout_s=TIMEOUT_S)
        bench.files.gate.set()
        await asyncio.gather(*tasks)
        await engine.stop()

    run(body)


def test_a_state_machine_that_raises_stops_the_engine(bench: Bench) -> None:
    """An entry that cannot be applied is fatal: skipping it would make members differ."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        with pytest.raises(OutcomeUnknown):
            await engine.propose(b"poison", timeout_s=TIMEOUT_S)
        with pytest.raises(ApplyFailed, match="cannot apply log entry 3"):
            await engine.wait_stopped()
        await engine.stop()
        with pytest.raises(ApplyFailed):
            await bench.engine().start()

    run(body)


def test_leadership_is_announced_after_every_entry_was_applied(bench: Bench) -> None:
    """Who watches leadership hears of it when the whole log is applied, and hears when it ends."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        for number in range(50):
            await engine.propose(b"%d" % number, timeout_s=TIMEOUT_S)
        await engine.stop()
        engine = bench.engine()
        changes: list[tuple[LeadershipChange, int]] = []

        async def watch() -> None:
            async for change in engine.leadership():
                changes.append((change, len(bench.machine.commands)))  # noqa: PERF401  # read at the time of each

        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0)
        await engine.start()
        term = engine.status().term
        await engine.propose(b"last", timeout_s=TIMEOUT_S)
        await engine.stop()
        await watcher
        leads_first = next(pair for pair in changes if pair[0].is_leader)
        assert leads_first == (LeadershipChange(term, is_leader=True, leader_id=MEMBER.raft_id), 50)
        assert changes[-1] == (LeadershipChange(term, is_leader=False, leader_id=None), 51)

    run(body)


def test_terms_only_grow(bench: Bench) -> None:
    """Each start begins a new term, also when nothing was proposed in the one before."""

    async def body() -> None:
        terms = []
        for _ in range(4):
            engine = bench.engine()
            await engine.start()
            terms.append(engine.status().term)
            await engine.stop()
        assert terms == sorted(set(terms))

    run(body)


def test_snapshots_bound_the_log(bench: Bench) -> None:
    """After a snapshot old segments go, and a restart gives the same state from the snapshot and what follows."""
    options = EngineOptions(
        max_proposal_bytes=4096,
        max_batch_bytes=8192,
        max_batch_entries=64,
        segment_bytes=32 * 1024,
        snapshot_every_entries=100,
        keep_entries=20,
    )

    async def body() -> None:
        engine = bench.engine(options)
        await engine.start()
        for number in range(1000):
            await engine.propose(b"%d" % number + b"x" * 500, timeout_s=TIMEOUT_S)
        status = engine.status()
        await engine.stop()
        assert bench.recorder.snapshots >= 5
        assert status.applied_index - status.last_snapshot_index <= 100
        segments = sorted((bench.folder / "log").iterdir())
        assert len(segments) <= 8
        assert len(list((bench.folder / "snapshots").iterdir())) == 1
        storage, recovered = open_storage(bench.folder, options=options, observer=Observer())
        storage.close()
        kept = recovered.snapshot.index + 1 - recovered.log.entries[0].index
        assert kept >= options.keep_entries, "a slow follower would need a snapshot"
        commands = bench.machine.commands
        engine = bench.engine(options)
        await engine.start()
        assert bench.machine.restored == 1
        assert bench.machine.commands == commands
        assert engine.status().members == (MEMBER,)
        await engine.stop()

    run(body)


def test_large_entries_bring_a_snapshot_forward(bench: Bench) -> None:
    """A snapshot is due after so many bytes, however few the entries."""

    async def body() -> None:
        engine = bench.engine(EngineOptions(snapshot_every_bytes=4 * 1024 * 1024))
        await engine.start()
        for _ in range(9):
            await engine.propose(bytes(1024 * 1024), timeout_s=TIMEOUT_S)
        await engine.stop()
        assert bench.recorder.snapshots >= 1

    run(body)


def test_a_snapshot_that_fails_costs_nothing(bench: Bench) -> None:
    """When a snapshot cannot be written the log is kept and the engine goes on."""

    async def body() -> None:
        engine = bench.engine(EngineOptions(snapshot_every_entries=10))
        await engine.start()
        (bench.folder / "snapshots").rename(bench.folder / "elsewhere")
        for number in range(25):
            await engine.propose(b"%d" % number, timeout_s=TIMEOUT_S)
        await engine.stop()
        assert bench.recorder.snapshot_failures >= 1
        (bench.folder / "elsewhere").rename(bench.folder / "snapshots")
        engine = bench.engine()
        await engine.start()
        assert len(bench.machine.commands) == 25
        await engine.stop()

    run(body)


def test_a_read_barrier_covers_what_was_acknowledged(bench: Bench) -> None:
    """A read barrier returns an index that every acknowledged proposal is at or below, applied here."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        applied = await engine.propose(b"one", timeout_s=TIMEOUT_S)
        assert await engine.read_barrier() >= applied.index
        await engine.stop()
        with pytest.raises(EngineStopped):
            await engine.read_barrier()

    run(body)


def test_one_process_works_in_a_folder(bench: Bench) -> None:
    """A second engine over the same folder is refused while the first runs, and not after."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        with pytest.raises(FolderInUse, match="another process has it locked"):
            await bench.engine().start()
        await engine.stop()
        engine = bench.engine()
        await engine.start()
        await engine.stop()

    run(body)


def test_a_cluster_is_founded_once_and_on_purpose(tmp_path: Path) -> None:
    """An empty folder is not taken for a new cluster, and a founded one cannot be founded again."""
    folder = tmp_path / "raft"

    async def body() -> None:
        with pytest.raises(NotFounded):
            await ReplicatedEngine(folder, CountingMachine()).start()

    run(body)
    assert not is_founded(folder)
    found_cluster(folder, MEMBER)
    assert is_founded(folder)
    with pytest.raises(AlreadyFounded):
        found_cluster(folder, MEMBER)


def test_a_lost_snapshot_is_not_taken_for_an_empty_folder(bench: Bench) -> None:
    """A folder whose snapshot is gone, but whose log is there, is refused as damaged."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        await engine.stop()
        for path in (bench.folder / "snapshots").iterdir():
            path.unlink()
        with pytest.raises(SnapshotCorrupt, match="had a snapshot, and there is none"):
            await bench.engine().start()

    run(body)


def test_the_data_key_is_guarded(bench: Bench) -> None:
    """The key file is for its owner alone; one that others may read, or that is missing, is refused with what to do."""
    key = bench.folder / "data.key"
    assert key.stat().st_mode & 0o777 == 0o600

    async def refused(match: str) -> None:
        with pytest.raises(DataKeyError, match=match):
            await bench.engine().start()

    key.chmod(0o640)
    run(lambda: refused("chmod 600"))
    key.chmod(0o600)
    text = key.read_text()
    key.write_text("garbage\n")
    run(lambda: refused("line 1"))
    key.unlink()
    run(lambda: refused("is missing"))
    key.touch(0o600)
    run(lambda: refused("is empty"))
    key.write_text(text)

    async def works() -> None:
        engine = bench.engine()
        await engine.start()
        await engine.stop()

    run(works)


def test_the_only_voter_stays(bench: Bench) -> None:
    """Removing the only voter, and handing leadership to nobody, are refused with the reason, and change nothing."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        for action in (MembershipAction.REMOVE, MembershipAction.DEMOTE):
            with pytest.raises(MembershipError, match="it is the only one that votes; nothing was changed"):
                await engine.change_membership(MembershipChange(action, MEMBER), timeout_s=TIMEOUT_S)
        with pytest.raises(MembershipError, match="it does not vote"):
            await engine.transfer_leadership(1, timeout_s=TIMEOUT_S)
        assert engine.status().members == (MEMBER,)
        await engine.stop()

    run(body)


def test_stop_finishes_the_write_under_way_and_refuses_the_rest(bench: Bench) -> None:
    """A stop acknowledges what is being written, and what still waits was never written."""

    async def body() -> None:
        engine = bench.engine()
        await engine.start()
        bench.files.hold()
        first = asyncio.create_task(engine.propose(b"first", timeout_s=TIMEOUT_S))
        await bench.files.wait_syncing()
        second = asyncio.create_task(engine.propose(b"second", timeout_s=TIMEOUT_S))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)
        bench.files.gate.set()
        await stopping
        await engine.stop()
        assert (await first).result == 1
        with pytest.raises(EngineStopped):
            await second
        await engine.wait_stopped()
        engine = bench.engine()
        await engine.start()
        assert bench.machine.commands == [b"first"]
        await engine.stop()

    run(body)


def test_options_that_cannot_work_are_refused() -> None:
    """A segment smaller than a batch, or a batch smaller than a proposal, is an error at once."""
    with pytest.raises(ValueError, match="segment_bytes must be at least"):
        EngineOptions(segment_bytes=1024 * 1024)
    with pytest.raises(ValueError, match="max_batch_bytes must be at least"):
        EngineOptions(max_batch_bytes=1024)
    with pytest.raises(ValueError, match="must be at least 1"):
        EngineOptions(max_waiting_proposals=0)
