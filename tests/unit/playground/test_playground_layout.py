"""Names, paths and addresses of a playground, and what `down` makes of the kernel's tables."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_cli.playground import record
from orch_cli.playground.layout import DEFAULT_SUBNET, Layout
from orch_cli.playground.leftovers import mounts_beneath, unescape
from orch_cli.playground.network import overlapping_route
from orch_cli.playground.processes import ProcessId, identify
from orch_rpc.errors import FailedPrecondition, InvalidArgument, NotFound

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
"""


@given(st.from_regex(r"[a-z][a-z0-9-]{0,19}", fullmatch=True), st.integers(1, 50))
def test_every_name_fits_the_kernel(name: str, count: int) -> None:
    """Whatever a playground is called, its interface names and socket paths are within the kernel's limits."""
    layout = Layout(name, DEFAULT_SUBNET, count)
    assert len(layout.host_link) <= 15
    for node in layout.nodes:
        assert len(node.port) <= 15
        assert len(str(node.run_dir / "runtime" / "runtime.sock")) < 108
        assert node.address in layout.subnet
        assert node.address != layout.gateway
    assert len({node.address for node in layout.nodes}) == count


@pytest.mark.parametrize("name", ["", "A", "1a", "a/b", "../x", "a" * 21, "a b", "a\n"])
def test_a_name_that_would_leave_its_folders_is_refused(name: str) -> None:
    """A playground's name is never anything but a plain word."""
    with pytest.raises(InvalidArgument):
        Layout(name, DEFAULT_SUBNET, 1)


def test_two_playgrounds_share_nothing() -> None:
    """Playgrounds of different names have no path, link, namespace, cgroup or table in common."""
    one, two = Layout("one", DEFAULT_SUBNET, 1), Layout("two", DEFAULT_SUBNET, 1)
    for part in ("host_link", "switch", "table", "run_root", "state_root", "cgroup_root"):
        assert getattr(one, part) != getattr(two, part)
    assert one.nodes[0].namespace != two.nodes[0].namespace


def test_a_node_is_found_by_name_and_by_number() -> None:
    """`node-1` and `1` mean the same node; another one is an error that names those there are."""
    layout = Layout("x", DEFAULT_SUBNET, 2)
    assert layout.node("2") == layout.node("node-2")
    with pytest.raises(NotFound, match="node-1, node-2"):
        layout.node("3")


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [
        ("172.31.250.0/24", None),
        ("192.0.2.128/26", "192.0.2.0/24 on eth0"),
        ("192.0.0.0/16", "192.0.2.0/24 on eth0"),
        ("172.17.5.0/24", "172.17.0.0/16 on docker0"),
    ],
)
def test_a_clash_of_addresses_is_found_whichever_range_is_wider(subnet: str, expected: str | None) -> None:
    """A range collides with routes inside it and around it, and never with the default route."""
    assert overlapping_route(ROUTES, IPv4Network(subnet), "orb-x") == expected


def test_the_own_bridge_is_no_clash() -> None:
    """A route over the playground's own bridge does not stand in its way."""
    assert overlapping_route(ROUTES, IPv4Network("172.17.0.0/16"), "docker0") is None


def test_only_mounts_beneath_the_folders_are_taken_the_latest_first() -> None:
    """`down` unmounts what is below its folders, innermost first, and nothing that merely begins with their name."""
    table = "\n".join(
        f"{number} 1 0:1 / {point} rw - tmpfs tmpfs rw"
        for number, point in enumerate(
            ["/", "/run", "/run/orch-x", "/run/orch-x/a\\040b", "/run/orch-xy", "/var/lib/orch-x/n/m"]
        )
    )
    found = mounts_beneath(table, (Path("/run/orch-x"), Path("/var/lib/orch-x")))
    assert found == ["/var/lib/orch-x/n/m", "/run/orch-x/a b", "/run/orch-x"]


def test_mountinfo_escapes_are_undone() -> None:
    """A blank, a tab and a backslash in a mount point are read as they are."""
    assert unescape(r"/a\040b\011c\134d") == "/a b\tc\\d"


def test_a_pid_alone_is_no_process() -> None:
    """A recorded process whose pid belongs to another one now counts as gone, and is not killed."""
    own = identify(1)
    assert own is not None
    assert own.is_alive()
    stranger = ProcessId(1, own.start_time + 1)
    assert not stranger.is_alive()
    stranger.kill()
    assert own.is_alive()


def test_a_damaged_record_is_told_and_down_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that cannot be read is an error for `status`, and no hindrance for `down`."""
    monkeypatch.setattr(Layout, "state_root", property(lambda _: tmp_path))
    (tmp_path / "playground.json").write_text('{"name": 3')
    with pytest.raises(FailedPrecondition, match="orch playground down --name x"):
        record.load("x")
    assert record.load_or_guess("x").layout.node_count == 1


def test_a_record_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `up` records is what `down` reads; a second `up` is refused while the record is there."""
    monkeypatch.setattr(Layout, "state_root", property(lambda _: tmp_path))
    made = record.Record(Layout("x", IPv4Network("10.9.0.0/24"), 5), managers=3, show_metrics=True, share_images=True)
    made.create()
    assert record.load("x") == made
    with pytest.raises(FailedPrecondition, match="exists already"):
        made.create()
