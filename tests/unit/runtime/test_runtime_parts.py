"""Parts of the runtime that need no kernel: log lines, cgroup v2 files, journal, errors."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_runtime import errors
from orch_runtime.cgroups.v2 import CgroupV2, weight_of_shares
from orch_runtime.keeper import parse_arguments
from orch_runtime.keeper_command import signal_number
from orch_runtime.supervisor.exits import ExitJournal
from orch_runtime.supervisor.logs import LINE_BYTES, LogFile, split_lines
from orch_runtime.supervisor.usage import network_usage


@given(st.lists(st.binary(max_size=40_000).map(lambda data: data.replace(b"\0", b"\n")), max_size=4))
def test_lines_add_up(chunks: list[bytes]) -> None:
    """However output arrives, its records put together are the output, none is over 16 KiB, and no lines are joined."""
    pending = b""
    records: list[bytes] = []
    for chunk in chunks:
        pending += chunk
        new, used = split_lines(pending, at_end=False)
        records += new
        pending = pending[used:]
        assert len(pending) < LINE_BYTES
        assert b"\n" not in pending
    new, used = split_lines(pending, at_end=True)
    records += new
    assert used == len(pending)
    assert b"".join(records) == b"".join(chunks)
    assert all(len(record) <= LINE_BYTES and b"\n" not in record[:-1] for record in records)


def test_log_rotation_keeps_order(tmp_path: Path) -> None:
    """Rotation keeps the newest files, newest without a number, and counts what cannot be written."""
    file = LogFile(str(tmp_path / "log"), 4096, 2)
    for number in range(300):
        file.write([f"{number:099d}\n".encode()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    text = (tmp_path / "log.1").read_text() + (tmp_path / "log").read_text()
    numbers = [int(line) for line in text.split()]
    assert numbers == list(range(numbers[0], 300))
    assert file.dropped == 0
    lost = LogFile("/nowhere/log", 4096, 2)
    lost.write([b"a\n", b"b\n"])
    assert lost.dropped == 2


def _fake_v2(tmp_path: Path) -> CgroupV2:
    for folder in (tmp_path, tmp_path / "orch", tmp_path / "orch/n"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpu memory pids io\n")
        (folder / "cgroup.subtree_control").write_text("")
    backend = CgroupV2(str(tmp_path), "/orch/n")
    backend.controllers = {"cpu", "memory", "pids"}
    backend.create("c")
    for name in ("memory.max", "memory.swap.max", "memory.low", "cpu.weight", "cpu.max", "pids.max", "cgroup.kill"):
        (tmp_path / "orch/n/c" / name).write_text("")
    return backend


def test_v2_limits(tmp_path: Path) -> None:
    """Limits are written in cgroup v2's terms: swap without memory, weight for shares, quota with period."""
    backend = _fake_v2(tmp_path)
    warnings = backend.set_limits(
        "c",
        {
            "memory_bytes": 100,
            "memory_swap_bytes": 150,
            "cpu_shares": 1024,
            "cpu_quota_us": 5000,
            "cpu_period_us": 50_000,
            "pids_max": 10,
        },
    )
    group = tmp_path / "orch/n/c"
    assert warnings == []
    written = {name: (group / name).read_text() for name in ("memory.max", "memory.swap.max", "cpu.weight", "cpu.max")}
    assert written == {"memory.max": "100", "memory.swap.max": "50", "cpu.weight": "39", "cpu.max": "5000 50000"}
    assert (group / "pids.max").read_text() == "10"
    backend.kill("c")
    assert (group / "cgroup.kill").read_text() == "1"


def test_v2_warns_of_what_is_not_delegated(tmp_path: Path) -> None:
    """A limit whose controller is not there is a warning, never silence."""
    backend = _fake_v2(tmp_path)
    backend.controllers = {"pids"}
    assert any("memory controller" in text for text in backend.set_limits("c", {"memory_bytes": 100}))


def test_v2_stats(tmp_path: Path) -> None:
    """Usage is read from cgroup v2's files in the units of the protocol."""
    backend = _fake_v2(tmp_path)
    group = tmp_path / "orch/n/c"
    (group / "cpu.stat").write_text("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\n")
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.stat").write_text("anon 400\nfile 300\ninactive_file 100\n")
    (group / "memory.events").write_text("max 2\noom_kill 1\n")
    (group / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n")
    stats = backend.stats("c")
    assert (stats["cpu_usage_ns"], stats["cpu_user_ns"], stats["cpu_throttled_periods"]) == (5000, 3000, 1)
    assert (stats["memory_working_set_bytes"], stats["memory_limit_bytes"], stats["oom_kills"]) == (900, 0, 1)
    assert (stats["block_read_bytes"], stats["block_write_bytes"]) == (11, 22)


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000)])
def test_shares_to_weight(shares: int, weight: int) -> None:
    """The OCI formula maps the ends of one range to the ends of the other."""
    assert weight_of_shares(shares) == weight


def test_journal_follows_a_new_file(tmp_path: Path) -> None:
    """Entries are read once, complete lines only, over the renewal of the file."""
    path = tmp_path / "exits.journal"
    path.write_text("1 10 0 1000\n2 20 -9 1001\n3 30 ")
    journal = ExitJournal(str(path))
    assert journal.read() == [(1, 10, 0, 1000), (2, 20, -9, 1001)]
    with path.open("a") as file:
        file.write("5 1002\n")
    assert journal.read() == [(3, 30, 5, 1002)]
    (tmp_path / "new").write_text("4 40 1 1003\n")
    (tmp_path / "new").rename(path)
    assert journal.read() == [(4, 40, 1, 1003)]
    assert journal.read() == []


def test_errors_cross_the_wire() -> None:
    """Every error arrives as what it was, with its fields."""
    for failure in (
        errors.NotFound("x"),
        errors.StartFailed("y", 127),
        errors.InvalidConfig("a.b", "is wrong"),
        errors.KernelError("mount", errno.EPERM, "/x"),
        errors.Refused("z"),
    ):
        copy = errors.from_wire(failure.kind, str(failure), failure.details())
        assert type(copy) is type(failure)
        assert str(copy) == str(failure)
        assert copy.details() == failure.details()


def test_network_usage() -> None:
    """Counters are read by column, loopback left out."""
    text = "Inter-|\n face |\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n"
    (entry,) = network_usage(text)
    assert (entry["interface"], entry["receive_bytes"], entry["transmit_dropped"]) == ("eth0", 10, 8)


def test_keeper_arguments() -> None:
    """Wards are given as NAME=JSON; what is unknown or incomplete is refused."""
    root, supervisor, wards = parse_arguments(["--root", "/r", "--cgroup-parent", "/p", "--ward", 'n=["a", "b"]'])
    assert (root, supervisor) == ("/r", ["--root", "/r", "--cgroup-parent", "/p"])
    assert [(ward.name, ward.argv) for ward in wards] == [("n", ["a", "b"])]
    for wrong in (["--root"], ["--nope", "x"], ["--root", "relative"]):
        with pytest.raises(SystemExit):
            parse_arguments(wrong)


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("sigkill", 9), ("10", 10)])
def test_signal_names(text: str, number: int) -> None:
    """Signals are given by name, with or without SIG, or by number."""
    assert signal_number(text) == number
