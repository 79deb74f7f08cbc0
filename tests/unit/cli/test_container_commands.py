"""What the commands about one running task decide without a cluster."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from orch_cli.commands.copy import Place, parse_place
from orch_cli.commands.stats import cpu_percent, stats_rows
from orch_cli.containers.archive import Unpacker, is_folder, pack, source_name
from orch_cli.containers.keys import DetachKeys, parse_keys
from orch_cli.errors import CliError, UsageError
from orch_cli.verbs import parse
from orch_proto.node_pb2 import TaskStats
from orch_proto.objects_pb2 import Node, Task

# ---- keys ------------------------------------------------------------------------------------------------------------


def test_detach_keys_are_dockers() -> None:
    """Keys are letters and ctrl-LETTER with commas between; another word is refused with what may be written."""
    assert parse_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_keys("a,ctrl-@,ctrl-]") == b"a\x00\x1d"
    assert parse_keys("") == b""
    with pytest.raises(UsageError, match="detach keys"):
        parse_keys("ctrl-P1")


@pytest.mark.parametrize("cuts", [[b"ab\x10\x11cd"], [b"ab\x10", b"\x11cd"], [b"a", b"b", b"\x10", b"\x11"]])
def test_detach_keys_are_found_over_any_reads(cuts: list[bytes]) -> None:
    """The row of keys ends the session however the terminal cuts it; what came before it is sent."""
    keys = DetachKeys(b"\x10\x11")
    sent = b""
    for typed in cuts:
        data, detached = keys.feed(typed)
        sent += data
        if detached:
            break
    assert detached
    assert sent == b"ab"


def test_a_beginning_of_the_keys_is_not_lost() -> None:
    """Ctrl-P alone goes to the program as soon as the next key shows that it was not meant."""
    keys = DetachKeys(b"\x10\x11")
    assert keys.feed(b"\x10") == (b"", False)
    assert keys.feed(b"x") == (b"\x10x", False)


def test_options_after_the_task_are_the_commands() -> None:
    """`orch exec -t web ls -l` hands -l to ls, and reads -t itself."""
    _, parsed = parse("task", "exec", ["-it", "-u", "1", "web", "ls", "-l", "--", "x"], "")
    assert (parsed.interactive, parsed.tty, parsed.user, parsed.target) == (True, True, "1", "web")
    assert parsed.command == ["ls", "-l", "--", "x"]


# ---- copies ----------------------------------------------------------------------------------------------------------


def test_ends_of_a_copy() -> None:
    """TASK:PATH is in a container; a local name with a colon begins with ./ or /."""
    assert parse_place("web.1:/etc/hosts") == Place("web.1", "/etc/hosts")
    assert parse_place("./a:b") == Place("", "./a:b")
    assert parse_place("/a:b") == Place("", "/a:b")
    assert parse_place("folder/a:b") == Place("", "folder/a:b")
    assert parse_place("-") == Place("", "-")


def make_tree(folder: Path) -> Path:
    tree = folder / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a").write_text("A")
    (tree / "a").chmod(0o640)
    (tree / "sub/link").symlink_to("../a")
    (tree / "hard").hardlink_to(tree / "a")
    return tree


def packed(path: Path, name: str = "", *, follow_link: bool = False) -> io.BytesIO:
    target = io.BytesIO()
    assert pack(str(path), name or source_name(str(path)), target, follow_link=follow_link) == []
    target.seek(0)
    return target


def unpack(source: io.BytesIO, destination: Path | str, *, contents_only: bool = False) -> None:
    Unpacker(str(destination), contents_only=contents_only, keep_owners=False).unpack(source)


def test_a_tree_survives_the_way_there_and_back(tmp_path: Path) -> None:
    """Modes, links and hard links of a folder are as they were."""
    tree = make_tree(tmp_path)
    unpack(packed(tree), tmp_path / "copy")
    copy = tmp_path / "copy"
    assert (copy / "a").read_text() == "A"
    assert (copy / "a").stat().st_mode & 0o777 == 0o640
    assert str((copy / "sub/link").readlink()) == "../a"
    assert (copy / "hard").samefile(copy / "a")


def test_dockers_rules_for_a_destination(tmp_path: Path) -> None:
    """Into a folder that is there, over a file that is there, else under a new name; a folder never over a file."""
    tree = make_tree(tmp_path)
    there = tmp_path / "there"
    there.mkdir()
    unpack(packed(tree), there)
    assert (there / "tree/a").exists()
    unpack(packed(tree), there, contents_only=True)
    assert (there / "a").exists()
    unpack(packed(tree / "a"), tmp_path / "new")
    assert (tmp_path / "new").read_text() == "A"
    (tree / "a").write_text("B")
    unpack(packed(tree / "a"), tmp_path / "new")
    assert (tmp_path / "new").read_text() == "B"
    with pytest.raises(CliError, match="cannot copy"):
        unpack(packed(tree), tmp_path / "new")
    with pytest.raises(CliError, match="cannot copy"):
        unpack(packed(tree / "a"), f"{tmp_path}/nosuch/")
    with pytest.raises(CliError, match="cannot copy"):
        unpack(packed(tree / "a"), tmp_path / "no/such")


@pytest.mark.parametrize("name", ["x/../../evil", "other/file", "x/link/evil", "x//evil"])
def test_a_node_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    """Names that climb, that are of another root, or that go through a link of the copy, are refused."""
    outside = tmp_path / "outside"
    outside.mkdir()
    source = io.BytesIO()
    with tarfile.open(fileobj=source, mode="w") as tar:
        for entry, kind in (("x", tarfile.DIRTYPE), ("x/link", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(entry)
            info.type, info.linkname, info.mode = kind, str(outside), 0o755
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo(name))
    source.seek(0)
    with pytest.raises(CliError):
        unpack(source, tmp_path / "x")
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_a_missing_source_is_told(tmp_path: Path) -> None:
    """A local path that is not there is an error before anybody is called; a link is a folder if it is followed."""
    with pytest.raises(CliError, match="cannot copy"):
        is_folder(str(tmp_path / "nope"), follow_link=True)
    (tmp_path / "link").symlink_to(tmp_path)
    assert is_folder(str(tmp_path / "link"), follow_link=True)
    assert not is_folder(str(tmp_path / "link"), follow_link=False)


# ---- stats -----------------------------------------------------------------------------------------------------------


def test_cpu_is_of_one_processor_between_two_readings() -> None:
    """One second of time on a processor in half a second is 200 %; a first reading says nothing."""
    before = TaskStats(cpu_usage_ns=1_000_000_000, sampled_at_unix_ms=1000)
    now = TaskStats(cpu_usage_ns=2_000_000_000, sampled_at_unix_ms=1500)
    assert cpu_percent(before, now) == "200.00%"
    assert cpu_percent(None, now) == "--"
    assert cpu_percent(now, now) == "--"


def test_usage_without_a_limit_is_of_the_nodes_memory() -> None:
    """A task without a limit is measured against its node; one that does not run has no row."""
    node = Node(id="n1")
    node.description.hostname = "one"
    node.description.resources.memory_bytes = 1 << 30
    tasks = [Task(id=f"t{number}", service_name="web", slot=number, node_id="n1") for number in (1, 2)]
    rows = stats_rows(tasks, {"n1": node}, {}, {"t1": TaskStats(task_id="t1", memory_usage_bytes=1 << 28, pids=3)})
    assert [(row["Name"], row["Node"], row["MemPerc"], row["PIDs"]) for row in rows] == [
        ("web.1", "one", "25.00%", "3")
    ]
