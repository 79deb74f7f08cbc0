"""The log on disk keeps what it acknowledged, through loss of power, torn writes and failing disks."""

import contextlib
import random
from pathlib import Path

import pytest

from orch_raft.errors import DataKeyError, DurabilityLost, LogCorrupt
from orch_raft.limits import EngineOptions
from orch_raft.log.durable import DurableLog
from orch_raft.log.keys import Keyring
from orch_raft.log.records import Entry, EntryKind, HardState, ReceivedMark
from unit.raft.simulated_disk import PowerLossError, SimulatedDisk

FOLDER = Path("/log")
KEYS = Keyring.generate()
OPTIONS = EngineOptions(max_proposal_bytes=2048, max_batch_bytes=4096, max_batch_entries=8, segment_bytes=12 * 1024)


def make_disk(power_loss_at: int | None = None, fail_at: int | None = None) -> SimulatedDisk:
    disk = SimulatedDisk(power_loss_at, fail_at)
    disk.make_folder(FOLDER)
    return disk


def make_log(disk: SimulatedDisk, keys: Keyring = KEYS) -> DurableLog:
    return DurableLog(disk, FOLDER, keys, OPTIONS)


def entry(index: int, term: int = 1, size: int = 40) -> Entry:
    return Entry(index, term, EntryKind.COMMAND, random.Random(index).randbytes(size))


class Writer:
    """Writes a fixed sequence of batches and notes what was begun and what was acknowledged."""

    def __init__(self) -> None:
        self.begun: list[list[Entry]] = []
        self.acknowledged = 0
        self.terms_begun = [0]
        self.terms_acknowledged = 0

    def write(self, log: DurableLog, batches: int, seed: int = 1, *, release: bool = True) -> None:
        """Append `batches` batches of entries of many sizes, rolling terms and segments."""
        rng = random.Random(seed)
        index = 1
        for number in range(batches):
            entries = []
            for _ in range(rng.randint(1, 4)):
                index += 1
                entries.append(entry(index, term=1 + number // 5, size=rng.choice((0, 30, 600, 1500))))
            while sum(len(each.data) for each in entries) > OPTIONS.max_batch_bytes:
                entries.pop()
                index -= 1
            self.begun.append(entries)
            term = 1 + number // 5
            self.terms_begun.append(term)
            log.append(entries, HardState(term, 7, index - 1) if number % 5 == 0 else None)
            self.acknowledged = len(self.begun)
            self.terms_acknowledged = term
            if release and number % 10 == 9:
                log.release(index - 6)

    def check(self, entries: tuple[Entry, ...], hard_state: HardState) -> None:
        """What was recovered is an exact run of what was written, up to the end of a batch, with all acknowledged."""
        boundaries = {1: 0}
        written: dict[int, Entry] = {}
        for number, batch in enumerate(self.begun, start=1):
            written.update({each.index: each for each in batch})
            boundaries[batch[-1].index] = number
        last_index = entries[-1].index if entries else 1
        assert last_index in boundaries, "a batch was recovered in part"
        assert boundaries[last_index] >= self.acknowledged
        first_index = entries[0].index if entries else 2
        assert [written[index] for index in range(first_index, last_index + 1)] == list(entries)
        assert hard_state.term in self.terms_begun
        assert hard_state.term >= self.terms_acknowledged


def snapshot_index_for(writer: Writer) -> int:
    """The snapshot that the releases of `Writer.write` presuppose."""
    released = [batch for number, batch in enumerate(writer.begun) if number % 10 == 9]
    return released[-1][-1].index - 6 if released else 1


def test_what_was_appended_is_recovered() -> None:
    """A log that was closed and opened again holds the same entries and hard state, over many segments."""
    disk, writer = make_disk(), Writer()
    log = make_log(disk)
    log.recover(1)
    writer.write(log, 9)
    log.close()
    assert log.segment_count > 1
    recovered = make_log(disk).recover(1)
    assert recovered.entries == tuple(each for batch in writer.begun for each in batch)
    assert recovered.hard_state.term == 2


def test_power_loss_in_any_operation_keeps_what_was_acknowledged() -> None:
    """Whatever operation power is lost in, an exact prefix with all that was acknowledged is left, and goes on."""
    disk, writer = make_disk(), Writer()
    log = make_log(disk)
    log.recover(1)
    writer.write(log, 25)
    total = len(disk.operations)
    assert {"create", "write", "sync", "rename", "sync folder", "truncate", "remove"} <= set(disk.operations)
    for at in range(1, total + 1):
        dying, writer = make_disk(power_loss_at=at), Writer()
        log = make_log(dying)
        log.recover(1)
        with pytest.raises(PowerLossError):
            writer.write(log, 25)
        for seed in range(3):
            disk = dying.after_power_loss(random.Random(f"{at} {seed}"))
            snapshot_index = snapshot_index_for(writer)
            log = make_log(disk)
            recovered = log.recover(snapshot_index)
            writer.check(recovered.entries, recovered.hard_state)
            last_index = max(recovered.entries[-1].index if recovered.entries else 1, snapshot_index)
            more = entry(last_index + 1, term=recovered.hard_state.term)
            log.append([more])
            assert make_log(disk.after_power_loss(random.Random(seed))).recover(snapshot_index).entries[-1] == more


@pytest.mark.parametrize("first_at", range(12, 60, 5))
def test_power_loss_while_recovering_keeps_what_was_acknowledged(first_at: int) -> None:
    """Losing power again, in any operation of the repair after a loss of power, loses nothing either."""
    dying, writer = make_disk(power_loss_at=first_at), Writer()
    log = make_log(dying)
    log.recover(1)
    with pytest.raises(PowerLossError):
        writer.write(log, 25, release=False)
    acknowledged = [each for batch in writer.begun[: writer.acknowledged] for each in batch]
    for seed in range(4):
        disk = dying.after_power_loss(random.Random(seed))
        for at in range(1, 12):
            again = disk.clone()
            again.power_loss_at = at
            with contextlib.suppress(PowerLossError):
                log = make_log(again)
                last_index = make_log(disk.clone()).recover(1).entries[-1].index
                log.recover(1)
                log.append([entry(last_index + 1, term=9)], HardState(9, 7, 1))
            recovered = make_log(again.after_power_loss(random.Random(seed))).recover(1)
            assert list(recovered.entries[: len(acknowledged)]) == acknowledged


def test_a_disk_that_fails_stops_the_log() -> None:
    """After any failed operation the log takes no more writes, and what was acknowledged before is kept."""
    disk, writer = make_disk(), Writer()
    log = make_log(disk)
    log.recover(1)
    writer.write(log, 12)
    for at in range(1, len(disk.operations) + 1):
        failing, writer = make_disk(fail_at=at), Writer()
        log = make_log(failing)
        log.recover(1)
        with pytest.raises(DurabilityLost, match="this process must stop"):
            writer.write(log, 12)
        with pytest.raises(DurabilityLost):
            log.append([entry(999)])
        recovered = make_log(failing.after_power_loss(random.Random(at))).recover(snapshot_index_for(writer))
        writer.check(recovered.entries, recovered.hard_state)


def small_log() -> tuple[SimulatedDisk, Path, list[Entry], list[int]]:
    """One segment of frames of many sizes: disk, path, entries, and the offset at which each frame ends."""
    disk = make_disk()
    log = make_log(disk)
    log.recover(1)
    entries, ends = [], []
    path = FOLDER / "0000000000000001.log"
    for position, size in enumerate((0, 1, 17, 300, 700, 5, 90)):
        entries.append(entry(2 + position, size=size))
        log.append([entries[-1]], HardState(1, 7, 1))
        ends.append(len(bytes(disk.inode(path).content).rstrip(b"\0")))
    return disk, path, entries, ends


def test_every_cut_of_the_file_recovers_an_exact_prefix() -> None:
    """Wherever the last segment is cut, by length or by zeros, exactly the records before the cut are recovered."""
    disk, path, entries, ends = small_log()
    whole = bytes(disk.inode(path).content)
    header_bytes = 64
    for cut in range(header_bytes, ends[-1] + 1):
        for content in (whole[:cut], whole[:cut] + bytes(len(whole) - cut)):
            damaged = make_disk()
            damaged.create(path)
            damaged.inode(path).content[:] = content
            recovered = make_log(damaged).recover(1)
            expected = [each for each, end in zip(entries, ends, strict=True) if end <= cut]
            assert list(recovered.entries) == expected, f"cut at {cut}"


def test_no_flipped_bit_loses_a_record_in_silence() -> None:
    """Any single flipped bit of a written log is refused by file and place, and the file is left as it was."""
    disk, path, _, ends = small_log()
    whole = bytes(disk.inode(path).content)
    for bit in range(ends[-1] * 8):
        damaged = make_disk()
        damaged.create(path)
        content = damaged.inode(path).content
        content[:] = whole
        content[bit // 8] ^= 1 << bit % 8
        before = bytes(content)
        with pytest.raises((LogCorrupt, DataKeyError)) as caught:
            make_log(damaged).recover(1)
        assert str(path) in str(caught.value), f"bit {bit}"
        assert bytes(damaged.inode(path).content) == before
        if isinstance(caught.value, LogCorrupt):
            assert caught.value.offset_bytes <= bit // 8


def test_flipped_bits_after_the_end_are_harmless() -> None:
    """A flipped bit in space that was never written costs nothing."""
    disk, path, entries, ends = small_log()
    for bit in range(ends[-1] * 8, (ends[-1] + 64) * 8):
        damaged = disk.clone()
        damaged.inode(path).content[bit // 8] ^= 1 << bit % 8
        assert list(make_log(damaged).recover(1).entries) == entries


def test_a_sector_lost_before_the_last_record_is_refused() -> None:
    """Zeros where a record was, with a good record after them, are damage and not a torn tail."""
    disk, path, _, ends = small_log()
    damaged = disk.clone()
    damaged.inode(path).content[ends[3] - 200 : ends[3]] = bytes(200)
    with pytest.raises(LogCorrupt, match="a good one follows at byte"):
        make_log(damaged).recover(1)


def many_segments() -> tuple[SimulatedDisk, list[Path]]:
    disk, writer = make_disk(), Writer()
    log = make_log(disk)
    log.recover(1)
    writer.write(log, 18, release=False)
    log.close()
    paths = [FOLDER / name for name in disk.list(FOLDER)]
    assert len(paths) >= 3
    return disk, paths


def test_a_missing_segment_is_refused_by_name() -> None:
    """A log of which a segment in the middle is missing is refused, and the segment is named."""
    disk, paths = many_segments()
    disk.remove(paths[1])
    with pytest.raises(LogCorrupt, match=paths[1].name):
        make_log(disk).recover(1)


def test_a_missing_first_segment_is_refused() -> None:
    """A log that begins after the snapshot's next entry is refused, and the missing entries are named."""
    disk, paths = many_segments()
    disk.remove(paths[0])
    with pytest.raises(LogCorrupt, match=r"entries 2 to \d+, after the snapshot, are missing"):
        make_log(disk).recover(1)


def test_a_lost_log_beside_a_snapshot_is_refused() -> None:
    """A snapshot without any log is refused: the vote would be forgotten with it."""
    with pytest.raises(LogCorrupt, match="no segment"):
        make_log(make_disk()).recover(500)


def test_a_segment_that_ends_early_before_another_is_refused() -> None:
    """A segment that is cut in the middle of a record, with others after it, is refused by name."""
    disk, paths = many_segments()
    content = disk.inode(paths[0]).content
    del content[len(content) // 2 :]
    with pytest.raises(LogCorrupt, match=f"{paths[0].name} .* cut short, but later segments exist"):
        make_log(disk).recover(1)


def test_a_vote_lost_at_the_end_of_a_segment_is_noticed() -> None:
    """A whole record that is missing at the end of a segment is noticed by its number, also when it held no entry."""
    disk = make_disk()
    log = make_log(disk)
    log.recover(1)
    log.append([entry(2)], HardState(1, 7, 1))
    path = FOLDER / disk.list(FOLDER)[0]
    end = len(bytes(disk.inode(path).content).rstrip(b"\0"))
    log.append([], HardState(5, 8, 1))
    log.close()
    again = make_log(disk)
    again.recover(1)
    again.append([entry(3)])
    del disk.inode(path).content[end:]
    with pytest.raises(LogCorrupt, match=f"{path.name} at byte {end}: 1 records are missing"):
        make_log(disk).recover(1)


def test_records_moved_between_files_are_refused() -> None:
    """A frame copied to another place or segment is not accepted as a record."""
    disk, path, _, ends = small_log()
    damaged = disk.clone()
    content = damaged.inode(path).content
    content[ends[-1] : ends[-1] + ends[0] - 64] = content[64 : ends[0]]
    with pytest.raises(LogCorrupt, match="checksum"):
        make_log(damaged).recover(1)


def test_a_log_of_another_key_is_refused() -> None:
    """A log cannot be read with a key that did not write it, and the error names the key that is needed."""
    disk, _, _, _ = small_log()
    with pytest.raises(DataKeyError, match=f"needs data key {KEYS.current_id.hex()}"):
        make_log(disk, Keyring.generate()).recover(1)


def test_nothing_is_on_disk_in_clear() -> None:
    """No part of an entry's data can be found in the files."""
    disk = make_disk()
    log = make_log(disk)
    log.recover(1)
    log.append([Entry(2, 1, EntryKind.COMMAND, b"correct horse battery staple " * 10)], HardState(1, 7, 1))
    for name in disk.list(FOLDER):
        assert b"correct horse" not in disk.read(FOLDER / name)


def test_a_later_entry_replaces_those_from_its_index_on() -> None:
    """An entry written at an index that exists replaces that entry and all after it, also once recovered."""
    disk = make_disk()
    log = make_log(disk)
    log.recover(1)
    log.append([entry(2), entry(3), entry(4)], HardState(1, 7, 1))
    log.append([entry(3, term=2)], HardState(2, 7, 2))
    assert make_log(disk).recover(1).entries == (entry(2), entry(3, term=2))


def test_a_received_snapshot_voids_every_entry_before_it() -> None:
    """After the mark of a received snapshot nothing written before it comes back, also what lies beyond its index."""
    disk = make_disk()
    log = make_log(disk)
    log.recover(1)
    log.append([entry(index) for index in range(2, 7)], HardState(1, 7, 1))
    log.append([], HardState(3, 0, 4), ReceivedMark(4, 2))
    recovered = make_log(disk).recover(4)
    assert recovered.entries == ()
    assert recovered.received == ReceivedMark(4, 2)
    assert recovered.hard_state == HardState(3, 0, 4)
    log.append([entry(5, term=3)])
    assert make_log(disk).recover(4).entries == (entry(5, term=3),)


def test_a_gap_is_refused() -> None:
    """Entries that are missing between two that are there are noticed and named."""
    disk = make_disk()
    log = make_log(disk)
    log.recover(1)
    log.append([entry(2), entry(3)], HardState(1, 7, 1))
    log.append([entry(90)])
    with pytest.raises(LogCorrupt, match="entries 4 to 89 are missing"):
        make_log(disk).recover(3)


def test_a_large_append_is_split_into_batches() -> None:
    """Entries that are more than one batch may hold are written as several, and are recovered whole and in order."""
    disk = make_disk()
    log = make_log(disk)
    log.recover(1)
    entries = tuple(entry(2 + number, size=1500) for number in range(50))
    log.append(entries, HardState(1, 7, 1))
    assert disk.operations.count("sync") > 15
    assert make_log(disk).recover(1).entries == entries


class FollowerWriter:
    """Writes what a follower's log meets: batches, conflicting suffixes that are replaced, received snapshots.

    `states` has the exact state, (snapshot index, entries, hard state), after every append, the first being empty.
    """

    def __init__(self) -> None:
        self.states: list[tuple[int, tuple[Entry, ...], HardState]] = [(1, (), HardState())]
        self.acknowledged = 0

    def write(self, log: DurableLog, seed: int, appends: int = 25) -> None:
        rng = random.Random(seed)
        for number in range(appends):
            base, entries, hard_state = self.states[-1]
            last_index = entries[-1].index if entries else base
            term = hard_state.term
            kind = rng.choice(("append", "append", "replace", "receive")) if number else "append"
            mark = None
            changed = None
            if kind != "append" or number == 0:
                term += 1
                changed = HardState(term, rng.randrange(4), base)
            if kind == "replace" and entries:
                keep = rng.randrange(len(entries))
                last_index = base + keep
                entries = entries[:keep]
            elif kind == "receive":
                base = last_index + rng.randint(-len(entries) // 2, 5)
                base = max(base, self.states[-1][0] + 1)
                mark, entries, last_index = ReceivedMark(base, term), (), base
            count = rng.randint(0 if changed else 1, 3)
            new = [entry(last_index + n, term, rng.choice((0, 30, 600))) for n in range(1, count + 1)]
            if kind == "replace" and not new:
                new = [entry(last_index + 1, term)]
            self.states.append((base, (*entries, *new), changed or hard_state))
            log.append(new, changed, mark)
            self.acknowledged = len(self.states) - 1

    def check(self, disk: SimulatedDisk, *, at_least: int | None = None) -> HardState:
        """What is recovered is one of the states, with all that was acknowledged."""
        log = make_log(disk)
        contents = log.read()
        snapshot_index = contents.received.index if contents.received else 1
        recovered = log.recover(snapshot_index, contents)
        found = (snapshot_index, recovered.entries, recovered.hard_state)
        first = self.acknowledged if at_least is None else at_least
        assert found in self.states[first:], f"not a state after append {first}"
        return recovered.hard_state


@pytest.mark.parametrize("seed", range(3))
def test_power_loss_in_a_followers_log_leaves_an_exact_state(seed: int) -> None:
    """Whatever operation power is lost in while suffixes are replaced and snapshots received, the state is exact."""
    disk, writer = make_disk(), FollowerWriter()
    log = make_log(disk)
    log.recover(1)
    writer.write(log, seed)
    assert len({base for base, _, _ in writer.states}) > 3
    for at in range(1, len(disk.operations) + 1):
        dying, writer = make_disk(power_loss_at=at), FollowerWriter()
        log = make_log(dying)
        log.recover(1)
        with pytest.raises(PowerLossError):
            writer.write(log, seed)
        for retry in range(4):
            writer.check(dying.after_power_loss(random.Random(f"{at} {retry}")))


def follower_segment() -> tuple[SimulatedDisk, Path, FollowerWriter]:
    """One segment with replaced suffixes and a received snapshot."""
    disk, writer = make_disk(), FollowerWriter()
    log = make_log(disk)
    log.recover(1)
    writer.write(log, seed=5, appends=9)
    names = disk.list(FOLDER)
    assert len(names) == 1
    assert any(base > 1 for base, _, _ in writer.states)
    return disk, FOLDER / names[0], writer


def test_every_cut_of_a_followers_log_recovers_an_exact_state() -> None:
    """Wherever a log with replaced suffixes and marks is cut, the state after some append comes back, exactly."""
    disk, path, writer = follower_segment()
    whole = bytes(disk.inode(path).content)
    found = set()
    for cut in range(64, len(whole.rstrip(b"\0")) + 1):
        damaged = make_disk()
        damaged.create(path)
        damaged.inode(path).content[:] = whole[:cut] + bytes(len(whole) - cut)
        found.add(writer.check(damaged, at_least=0))
    assert len(found) > 3


def test_no_flipped_bit_of_a_followers_log_passes() -> None:
    """Any flipped bit of a log with replaced suffixes and marks is refused by file and place."""
    disk, path, _ = follower_segment()
    whole = bytes(disk.inode(path).content)
    for bit in range(0, len(whole.rstrip(b"\0")) * 8, 3):
        damaged = make_disk()
        damaged.create(path)
        content = damaged.inode(path).content
        content[:] = whole
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises((LogCorrupt, DataKeyError)) as caught:
            make_log(damaged).read()
        assert str(path) in str(caught.value), f"bit {bit}"


def test_release_keeps_every_entry_after_the_index() -> None:
    """Releasing removes segments, but none with an entry after the index; the hard state outlives them."""
    whole, writer = make_disk(), Writer()
    log = make_log(whole)
    log.recover(1)
    writer.write(log, 18, release=False)
    segments = log.segment_count
    last_index = writer.begun[-1][-1].index
    for through_index in range(1, last_index + 1):
        disk = whole.clone()
        log = make_log(disk)
        log.recover(1)
        log.release(through_index)
        recovered = make_log(disk).recover(through_index)
        assert recovered.entries[0].index <= through_index + 1
        assert recovered.entries[-1].index == last_index
        assert recovered.hard_state.term == 4
    assert log.segment_count == 1 < segments


def test_power_loss_while_releasing_leaves_no_gap() -> None:
    """Whenever power is lost while several segments are removed, those that are left can be recovered."""
    whole, writer = make_disk(), Writer()
    log = make_log(whole)
    log.recover(1)
    writer.write(log, 40, release=False)
    last_index = writer.begun[-1][-1].index
    for at in range(1, 40):
        dying = whole.clone()
        log = make_log(dying)
        log.recover(1)
        dying.operations.clear()
        dying.power_loss_at = at
        try:
            log.release(last_index)
        except PowerLossError:
            done = False
        else:
            done = True
        for seed in range(10):
            recovered = make_log(dying.after_power_loss(random.Random(f"{at} {seed}"))).recover(last_index)
            assert recovered.entries[-1].index == last_index
        if done:
            assert dying.operations.count("remove") >= 3
            return
    pytest.fail("the release never came to its end")
