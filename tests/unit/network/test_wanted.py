"""Requests and the wanted state: validation, encoding, files."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_network import limits, protocol
from orch_network.errors import Conflict, InvalidRequest, NetworkFailure
from orch_network.ipv4 import parse_subnet
from orch_network.kernel.nftables import Batch
from orch_network.netd import parse_options
from orch_network.node import free_uplink, uplink_name
from orch_network.protocol import (
    Endpoint,
    Network,
    PublishedPort,
    Service,
    Task,
    TaskAddress,
    read_network,
    read_port,
    read_service,
    read_task,
    to_json,
)
from orch_network.router import Uplink, task_link_name
from orch_network.store import WantedStore
from orch_network.tables import change_elements

VALUES = [
    (read_network, Network("n1", "stack_front", "10.0.1.0/24", "10.0.1.1", internal=True, mtu=1450)),
    (read_task, Task("t.1-x_y", (TaskAddress("n1", "10.0.1.5"), TaskAddress("n2", "10.0.2.5")), "n2")),
    (read_service, Service("s", "web", ("a", "b.c"), "10.0.1.2", (Endpoint("t", 3, "10.0.1.5", ("h",)),))),
    (read_port, PublishedPort("udp", 53, "n", "s", 5353, "127.0.0.1", ("10.0.1.5",))),
]


@pytest.mark.parametrize(("read", "value"), VALUES)
def test_values_survive_the_wire(read: object, value: object) -> None:
    """Every value reads back from its JSON as it was."""
    assert read(json.loads(json.dumps(to_json(value)))) == value  # type: ignore[operator]


@pytest.mark.parametrize(("read", "value"), VALUES)
def test_no_key_is_accepted_in_silence(read: object, value: object) -> None:
    """An unknown key is refused, and so is each field of another type."""
    good = asdict(value)  # type: ignore[call-overload]
    with pytest.raises(InvalidRequest, match="unknown key 'more'"):
        read(good | {"more": 1})  # type: ignore[operator]
    for key in good:
        with pytest.raises(InvalidRequest):
            read(good | {key: {"wrong": "type"}})  # type: ignore[operator]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(JSON)
def test_nonsense_is_refused_with_a_typed_error(value: object) -> None:
    """Whatever JSON comes, reading it gives a value or InvalidRequest."""
    for read in (read_network, read_task, read_service, read_port):
        with pytest.raises(InvalidRequest):
            read(value)


@given(st.binary(max_size=100))
def test_packets_decode_to_objects_or_are_invalid(data: bytes) -> None:
    """A packet that holds no JSON object is InvalidRequest."""
    with contextlib.suppress(InvalidRequest):
        assert isinstance(protocol.decode(data), dict)


@pytest.mark.parametrize("text", ["10.0.1.0", "10.0.1.5/24", "10.0.1.0/33", "10.0.1.0/-1", "a/24", "10.0.1.0/7", ""])
def test_subnets_are_checked(text: str) -> None:
    """Only a network's own address with a prefix of 8 to 30 bits is a subnet."""
    with pytest.raises(InvalidRequest):
        parse_subnet(text, "test")


@pytest.mark.parametrize("name", ["", ".web", "web.", "a..b", "-web", "x" * 64, "a b", "ä", "a/b"])
def test_names_must_fit_the_dns(name: str) -> None:
    """A service whose name cannot be asked for is refused."""
    with pytest.raises(InvalidRequest):
        read_service({"id": "s", "name": name, "endpoints": []})


def test_errors_keep_their_kind_across_the_socket() -> None:
    """A client raises the class that the process raised; an unknown kind is the base class."""
    with pytest.raises(Conflict, match="taken"):
        protocol.read_answer({"error": {"kind": "conflict", "message": "taken"}})
    with pytest.raises(NetworkFailure):
        protocol.read_answer({"error": {"kind": "kernel", "message": "no"}})


def test_a_message_above_the_limit_is_refused_by_its_sender() -> None:
    """A request that the socket could not carry is an error with advice, not a hang."""
    with pytest.raises(InvalidRequest, match="service_patch"):
        protocol.request(1, "services_set", services=["x" * limits.MAX_MESSAGE_BYTES])


ELEMENTS = st.dictionaries(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4), max_size=20)


@given(ELEMENTS, ELEMENTS)
def test_a_change_touches_what_differs_and_nothing_else(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> None:
    """The number of elements in a change is the number of keys whose data differ; no change, no request."""
    batch = Batch("test")
    different = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert change_elements(batch, "m", before, after) == len(different)
    assert bool(batch.requests) == bool(different)


def test_uplinks_are_pairs_of_their_own() -> None:
    """No two networks share a link-local address, and none is the metadata address of clouds."""
    seen = set()
    for index in range(limits.MAX_NETWORKS):
        uplink = Uplink(index)
        seen |= {uplink.node_address, uplink.router_address}
    assert len(seen) == 2 * limits.MAX_NETWORKS
    assert bytes((169, 254, 169, 254)) not in seen
    assert all(address[:2] == b"\xa9\xfe" and 64 <= address[2] < 128 for address in seen)
    assert free_uplink({0, 1, 3}).index == 2


def test_link_names_fit_the_kernel() -> None:
    """Names of links have at most 15 characters and differ by root, network and task."""
    names = {uplink_name("/run/a", "n"), uplink_name("/run/b", "n"), uplink_name("/run/a", "m")}
    assert len(names) == 3
    assert all(len(name) <= 15 for name in {*names, task_link_name("x" * 100)})


def test_a_damaged_file_is_set_aside_and_reported(tmp_path: Path) -> None:
    """One unreadable file of the wanted state neither stops the start nor is lost from sight."""
    reported: list[str] = []
    store = WantedStore(str(tmp_path), lambda path, _failure: reported.append(path))
    store.save("task", "a", {"x": 1})
    store.save("task", "b", {"x": 2})
    (tmp_path / "task+a.json").write_text("{")
    assert list(store.load("task")) == [{"x": 2}]
    assert reported == [str(tmp_path / "task+a.json")]
    assert (tmp_path / "task+a.json.bad").exists()


def test_the_command_line_is_checked() -> None:
    """Unknown options and missing ones are refused with the usage."""
    assert parse_options(["--root", "/r", "--node", "n"]).resolv_conf == "/etc/resolv.conf"
    for bad in (["--root", "/r"], ["--root", "/r", "--node"], ["--what", "x"]):
        with pytest.raises(InvalidRequest, match="usage"):
            parse_options(bad)
