"""Nothing is handed out twice, and what cannot be had says why."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_manager.allocator.addresses import AddressBook, NoAddress, check_subnet, choose_subnet
from orch_manager.allocator.ports import PortBook
from orch_proto.types_pb2 import IpamPool, PortConfig, PublishMode

_INGRESS = PublishMode.PUBLISH_MODE_INGRESS


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=200))
def test_no_address_has_two_owners(steps: list[tuple[bool, int]]) -> None:
    """Any sequence of taking and giving back: addresses lie in the subnet, differ, and are never the gateway."""
    book = AddressBook(IpamPool(subnet="10.1.2.0/27", gateway="10.1.2.1"))
    held: dict[str, str] = {}
    for take, number in steps:
        owner = f"task {number}"
        if not take:
            book.release(owner)
            held.pop(owner, None)
            continue
        try:
            address = book.allocate(owner)
        except NoAddress:
            assert len(held) == 29
            continue
        assert held.setdefault(owner, address) == address
        assert ipaddress.ip_address(address) in book.subnet
        assert address not in ("10.1.2.0", "10.1.2.1", "10.1.2.31")
        assert len(set(held.values())) == len(held)


def test_an_address_that_came_back_is_given_out_as_late_as_possible() -> None:
    """A client that still speaks to a dead task's address must not reach its successor at once."""
    book = AddressBook(IpamPool(subnet="10.1.2.0/28", gateway="10.1.2.1"))
    first = book.allocate("a")
    book.release("a")
    others = [book.allocate(f"b{number}") for number in range(12)]
    assert first not in others
    assert book.allocate("c") == first
    with pytest.raises(NoAddress, match="no free address in"):
        book.allocate("d")


@settings(deadline=None)
@given(st.lists(st.integers(20, 28), max_size=12))
def test_chosen_subnets_never_overlap(lengths: list[int]) -> None:
    """Subnets of any sizes cut from one pool are disjoint and inside it."""
    used: list[ipaddress.IPv4Network] = []
    for length in lengths:
        fresh = choose_subnet(["10.8.0.0/16"], length, used)
        assert fresh.subnet_of(ipaddress.IPv4Network("10.8.0.0/16"))
        assert not any(fresh.overlaps(other) for other in used)
        used.append(fresh)


def test_a_subnet_avoids_the_hosts_own_addresses_and_an_empty_pool_says_so() -> None:
    """A network over a host's address would cut the host off."""
    assert str(choose_subnet(["10.0.0.0/8"], 24, [], avoid=["10.0.0.17"])) == "10.0.1.0/24"
    with pytest.raises(NoAddress, match=r"no free subnet of /24 in 10.0.0.0/24"):
        choose_subnet(["10.0.0.0/24"], 24, [ipaddress.IPv4Network("10.0.0.0/25")])
    with pytest.raises(NoAddress, match=r"overlaps 10.0.0.0/25 of network front"):
        check_subnet("10.0.0.0/24", {"front": ipaddress.IPv4Network("10.0.0.0/25")})


def test_an_ingress_port_has_one_owner_and_dynamic_ones_differ() -> None:
    """A second service is refused the port by name of the owner; dynamic ports are kept and never given twice."""
    book = PortBook()
    ports, why = book.allocate("one", [PortConfig(target_port=80, published_port=80, mode=_INGRESS)], [])
    assert [port.published_port for port in ports] == [80]
    assert not why
    _, why = book.allocate("two", [PortConfig(target_port=80, published_port=80, mode=_INGRESS)], [])
    assert why == "port 80/tcp is published by service one"
    wish = [PortConfig(target_port=81, mode=_INGRESS), PortConfig(target_port=82, mode=_INGRESS)]
    first, _ = book.allocate("three", wish, [])
    second, _ = book.allocate("four", wish, [])
    numbers = [port.published_port for port in (*first, *second)]
    assert numbers == [30000, 30001, 30002, 30003]
    again, _ = book.allocate("three", wish, first)
    assert [port.published_port for port in again] == numbers[:2]
    book.release("one")
    assert not book.allocate("two", [PortConfig(target_port=80, published_port=80, mode=_INGRESS)], [])[1]
