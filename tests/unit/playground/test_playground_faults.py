"""What partitions and delays mean, and what is kept of them."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from ipaddress import IPv4Network
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_cli.playground import delays, faults, partition, power
from orch_cli.playground.delay_line import MOST_FRAMES, Way, tap_name
from orch_cli.playground.layout import Layout
from orch_cli.playground.processes import identify, with_folder_option
from orch_rpc.errors import InvalidArgument

FIVE = Layout("x", IPv4Network("10.9.0.0/24"), 5)
NAMES = [node.hostname for node in FIVE.nodes]


def cut(*expressions: str) -> set[str]:
    """The cuts of expressions, each as ``12``: nothing of node 1 reaches node 2."""
    return {source[-1] + target[-1] for source, target in partition.parse(FIVE, expressions)}


@pytest.mark.parametrize(
    ("expressions", "expected"),
    [
        (["1|2"], {"12", "21"}),
        (["node-1,2|3"], {"13", "31", "23", "32"}),
        (["1|2|3"], {"12", "21", "13", "31", "23", "32"}),
        (["1>2"], {"12"}),
        (["1,2>3"], {"13", "23"}),
        (["1 > 2 , 3"], {"12", "13"}),
        (["1>2", "2>3"], {"12", "23"}),
        (["1"], {"12", "13", "14", "15", "21", "31", "41", "51"}),
        (["1,2,3,4"], {"15", "25", "35", "45", "51", "52", "53", "54"}),
    ],
)
def test_expressions_cut_what_they_say(expressions: list[str], expected: set[str]) -> None:
    """Groups are cut both ways, arrows one way, a lone group from all others; several expressions add up."""
    assert cut(*expressions) == expected


@given(st.lists(st.sets(st.sampled_from(NAMES), min_size=1), min_size=2, max_size=3))
def test_groups_are_cut_alike_both_ways_and_never_inside(groups: list[set[str]]) -> None:
    """Whatever the groups, a partition is symmetric, and two nodes of one group keep their links."""
    text = "|".join(",".join(sorted(group)) for group in groups)
    if any(one & other for one, other in permutations(groups, 2)):
        with pytest.raises(InvalidArgument, match="twice"):
            partition.parse(FIVE, [text])
        return
    cuts = partition.parse(FIVE, [text])
    assert {(target, source) for source, target in cuts} == cuts
    assert not any({source, target} <= group for source, target in cuts for group in groups)


def test_what_a_node_is_cut_from_is_told_in_words() -> None:
    """Of each node it is told from whom it is cut, who does not hear it, and whom it does not hear."""
    cuts = partition.parse(FIVE, ["1|2", "1>3", "4>1"])
    assert partition.describe(cuts, "node-1") == "cut from node-2; not heard by node-3; does not hear node-4"
    assert partition.describe(cuts, "node-5") == ""


@pytest.mark.parametrize(
    ("text", "expected"), [("50", 50.0), ("50ms", 50.0), ("1.5s", 1500.0), ("0", 0.0), ("60s", 60_000.0)]
)
def test_times_are_milliseconds_unless_they_say_otherwise(text: str, expected: float) -> None:
    """A delay is written as 50, 50ms or 1.5s."""
    assert delays.milliseconds(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "ms", "5m", "61s", "1e9", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """Anything else, and more than a minute, is refused."""
    with pytest.raises(InvalidArgument, match="no time"):
        delays.milliseconds(text)


@given(
    st.lists(st.floats(0, 0.1), max_size=50),
    st.floats(0, 1),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
def test_late_frames_keep_their_order_and_their_delay(
    gaps_s: list[float], delay_s: float, jitter_s: float, chance: random.Random
) -> None:
    """Every frame leaves once, in its turn, and no earlier than its delay after it came."""
    left: list[tuple[float, bytes]] = []
    now_s = 0.0
    way = Way(lambda frame: left.append((now_s, frame)), delay_s, jitter_s, chance)
    came: list[float] = []
    for number, gap_s in enumerate(gaps_s):
        now_s += gap_s
        came.append(now_s)
        way.take(b"%d" % number, now_s)
        way.let_go(now_s)
    while way.next_due_s is not None:
        now_s = max(now_s, way.next_due_s)
        way.let_go(now_s)
    assert [frame for _, frame in left] == [b"%d" % number for number in range(len(gaps_s))]
    for (at_s, _), came_s in zip(left, came, strict=True):
        assert at_s >= came_s + delay_s - 1e-9


def test_a_full_way_loses_what_comes_last() -> None:
    """No more frames wait than the limit: those that come to a full queue are lost, as in a switch."""
    left: list[bytes] = []
    way = Way(left.append, 1.0, 0.0, random.Random(1))
    for number in range(MOST_FRAMES + 10):
        way.take(b"%d" % number, 0.0)
    way.let_go(2.0)
    assert len(left) == MOST_FRAMES
    assert left[-1] == b"%d" % (MOST_FRAMES - 1)


def test_faults_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one command broke another one knows; where nothing is written, nothing is broken."""
    monkeypatch.setattr(Layout, "run_root", property(lambda _: tmp_path))
    assert faults.load(FIVE) == faults.Faults()
    made = faults.Faults(partition.parse(FIVE, ["1|2"]), {"node-3": faults.Delay(50, 5)})
    faults.save(FIVE, made)
    assert faults.load(FIVE) == made
    FIVE.faults_file.write_text('{"cuts": 3}')
    assert faults.load(FIVE) == faults.Faults()


def test_ports_of_slow_nodes_fit_the_kernel() -> None:
    """The longest name of an interface in the switch is within the kernel's 15 characters."""
    assert len(tap_name("node-1000")) <= 15


@pytest.mark.parametrize("name", ["KILL", "kill", "SIGKILL", "9"])
def test_signals_are_known_by_name_and_number(name: str) -> None:
    """A signal may be written in any usual form."""
    assert power.signal_number(name) == signal.SIGKILL


def test_a_process_is_known_by_the_folder_it_was_told(tmp_path: Path) -> None:
    """A process that was told to work in a node's folder is found wherever it is; one in a like-named folder is not."""
    words = [sys.executable, "-c", "input()", "--run-dir"]
    told = subprocess.Popen([*words, str(tmp_path / "node-1")], stdin=subprocess.PIPE)
    beneath = subprocess.Popen([*words, str(tmp_path / "node-1" / "runtime")], stdin=subprocess.PIPE)
    other = subprocess.Popen([*words, str(tmp_path / "node-12")], stdin=subprocess.PIPE)
    try:
        assert set(with_folder_option(tmp_path / "node-1")) == {identify(told.pid), identify(beneath.pid)}
    finally:
        for process in (told, beneath, other):
            process.communicate(b"\n", timeout=10)
