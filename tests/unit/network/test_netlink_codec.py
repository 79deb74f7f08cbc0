"""The netlink codecs: golden bytes, and what pyroute2 reads of them."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from orch_network.ipv4 import parse_subnet
from orch_network.kernel import nftexpr
from orch_network.kernel import rtnetlink as rt
from orch_network.kernel.netlink import Request, attribute, iterate_attributes, nested, parse_attributes, text
from orch_network.kernel.nftables import (
    TYPE_INET_PROTO,
    TYPE_INET_SERVICE,
    TYPE_MARK,
    Batch,
    ElementSet,
    concatenated_type,
)
from orch_network.rules import node_ruleset, read_slot_word, router_ruleset, slot_word, task_ruleset

MAC = bytes.fromhex("02420a000105")
ADDRESS = bytes((10, 0, 1, 5))


def _decoded(kind: type, request: Request) -> object:
    """``request`` as pyroute2 reads it."""
    message = kind(struct.pack("=IHHII", 16 + len(request.body), request.kind, request.flags, 1, 0) + request.body)
    message.decode()
    return message


def test_attributes_are_padded_and_nested() -> None:
    """An attribute is length, type, data, zeros up to four bytes; a nested one has its flag."""
    assert attribute(3, b"ab") == bytes.fromhex("06000300 61620000")
    assert text(1, "lo") == bytes.fromhex("07000100 6c6f0000")
    assert nested(2, attribute(1, b"x")) == bytes.fromhex("0c000280 05000100 78000000")


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=50)), max_size=10))
def test_attributes_come_back_as_they_went(pairs: list[tuple[int, bytes]]) -> None:
    """Reading what was written gives the same attributes in order."""
    assert list(iterate_attributes(b"".join(attribute(kind, data) for kind, data in pairs))) == pairs


@given(st.binary(max_size=200))
def test_random_bytes_never_crash_the_attribute_reader(data: bytes) -> None:
    """A torn or foreign message gives some attributes or none."""
    parse_attributes(data)


def test_a_veth_pair_reads_the_same_with_pyroute2() -> None:
    """Name, MAC, MTU, numbers and namespace of both ends stand where the kernel looks for them."""
    near, far = rt.LinkEnd("t-1", MAC, 1000), rt.LinkEnd("eth0", MAC, 100, 7)
    message = _decoded(ifinfmsg, rt.create_veth(near, far, 1450))
    assert message["index"] == 1000  # type: ignore[index]
    assert message.get_attr("IFLA_IFNAME") == "t-1"  # type: ignore[attr-defined]
    assert message.get_attr("IFLA_MTU") == 1450  # type: ignore[attr-defined]
    info = message.get_attr("IFLA_LINKINFO")  # type: ignore[attr-defined]
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert peer["index"] == 100
    assert peer.get_attr("IFLA_IFNAME") == "eth0"
    assert peer.get_attr("IFLA_ADDRESS") == "02:42:0a:00:01:05"
    assert peer.get_attr("IFLA_NET_NS_FD") == 7


def test_routes_and_neighbours_read_the_same_with_pyroute2() -> None:
    """An on-link default route and a permanent neighbour are what they say."""
    route = _decoded(rtmsg, rt.replace_route(rt.Route(b"\0\0\0\0", 0, 100, bytes((169, 254, 1, 1)), ADDRESS)))
    assert route["flags"] == rt.RTNH_F_ONLINK  # type: ignore[index]
    assert route.get_attr("RTA_GATEWAY") == "169.254.1.1"  # type: ignore[attr-defined]
    assert route.get_attr("RTA_PREFSRC") == "10.0.1.5"  # type: ignore[attr-defined]
    neighbour = _decoded(ndmsg, rt.replace_neighbour(rt.Neighbour(100, ADDRESS, MAC)))
    assert neighbour["state"] == rt.NUD_PERMANENT  # type: ignore[index]
    assert neighbour.get_attr("NDA_LLADDR") == "02:42:0a:00:01:05"  # type: ignore[attr-defined]


ROUTES = st.builds(
    rt.Route,
    destination=st.binary(min_size=4, max_size=4),
    prefix_length=st.integers(1, 32),
    link=st.integers(1, 1 << 30),
    gateway=st.one_of(st.just(b""), st.binary(min_size=4, max_size=4)),
    source=st.one_of(st.just(b""), st.binary(min_size=4, max_size=4)),
    table=st.integers(1, 1 << 31),
)


@given(ROUTES)
def test_a_route_reads_back_as_written(route: rt.Route) -> None:
    """Writing and reading a route are inverse, tables above 255 included."""
    assert rt.read_route(rt.replace_route(route).body) == route


def test_concatenated_types_are_the_nft_programs() -> None:
    """Six bits per field: what ``nft list`` shows as inet_proto . inet_service . mark."""
    assert concatenated_type((TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_MARK)) == (12 << 12) + (13 << 6) + 19


def test_an_expression_has_its_golden_bytes() -> None:
    """``ip daddr`` into the first register: payload, network header, offset 16, length 4."""
    golden = "34000180 0c000100 7061796c6f616400 24000280 0800010000000008 0800020000000001 "
    golden += "0800030000000010 0800040000000004"
    assert nftexpr.destination_address(8) == bytes.fromhex(golden)


@given(st.integers(0, 3000))
def test_elements_are_split_below_the_attributes_limit(count: int) -> None:
    """However many elements are added, each message stays below 64 KiB and none is lost."""
    batch = Batch("test")
    batch.add_elements("orch", "m", {number.to_bytes(12, "big"): bytes(8) for number in range(count)})
    assert all(len(request.body) < 1 << 16 for request in batch.requests)
    found = sum(len(list(iterate_attributes(parse_attributes(request.body, 4)[3]))) for request in batch.requests)
    assert found == count


def test_a_set_is_described_by_words() -> None:
    """Key and data lengths are whole words per field."""
    batch = Batch("test")
    batch.add_set("orch", ElementSet("m", (12, 13, 19), (7, 13)), 1)
    attributes = parse_attributes(batch.requests[0].body, 4)
    assert (attributes[5], attributes[7]) == (b"\0\0\0\x0c", b"\0\0\0\x08")


@given(st.integers(0, 119))
def test_slot_words_come_back(slot: int) -> None:
    """A slot number survives its way through a map key."""
    assert read_slot_word(slot_word(slot)) == slot


def test_rules_are_told_apart_by_their_tags() -> None:
    """Each rule's tag follows from its content: equal rulesets have equal tags, others differ."""
    subnet = parse_subnet("10.0.1.0/24", "test")
    routers = [
        router_ruleset(subnet, ADDRESS, bytes((169, 254, 64, n)), internal=inner) for n in (2, 6) for inner in (0, 1)
    ]
    tags = [tuple(rule.tag for _, rules in each.chains for rule in rules or ()) for each in routers]
    assert len(set(tags)) == 4
    assert node_ruleset() == node_ruleset()
    assert task_ruleset(1, 2) != task_ruleset(2, 1)
