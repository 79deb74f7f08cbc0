"""The DNS codec and the zones, against dnslib and against random bytes."""

from __future__ import annotations

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_network.dns import message, zone
from orch_network.dns.message import MalformedMessage, Records, build_answer, parse_query
from orch_network.dns.upstream import parse_resolv_conf
from orch_network.protocol import Endpoint, Service

LABEL = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_", min_size=1, max_size=63)
NAME = st.lists(LABEL, min_size=1, max_size=3).map(".".join)


@given(st.binary(max_size=600))
def test_random_bytes_are_a_query_or_malformed(data: bytes) -> None:
    """The reader never fails in any other way than by MalformedMessage."""
    try:
        query = parse_query(data)
    except MalformedMessage:
        return
    answer = build_answer(query, message.NOERROR, Records(message.TYPE_A, [b"\1\2\3\4"], 5))
    assert answer[:2] == data[:2]


@given(st.integers(0, 65535), NAME, st.sampled_from([1, 12, 28, 33]), st.binary(max_size=40), st.integers(0, 70))
def test_a_damaged_query_never_crashes_the_reader(number: int, name: str, kind: int, noise: bytes, cut: int) -> None:
    """A real query with bytes cut off or overwritten is read or refused."""
    packed = bytes(dnslib.DNSRecord(dnslib.DNSHeader(id=number), q=dnslib.DNSQuestion(name, kind)).pack())
    for damaged in (packed[:cut], packed[:cut] + noise, packed[:cut] + noise + packed[cut + len(noise) :]):
        try:
            parse_query(damaged)
        except MalformedMessage:
            continue


@given(st.integers(0, 65535), NAME, st.lists(st.binary(min_size=4, max_size=4), max_size=20), st.booleans())
def test_answers_read_the_same_with_dnslib(number: int, name: str, addresses: list[bytes], edns: bool) -> None:  # noqa: FBT001
    """What we write, another implementation reads: id, question as spelt, addresses in order, EDNS only if asked."""
    question = dnslib.DNSRecord(dnslib.DNSHeader(id=number), q=dnslib.DNSQuestion(name))
    if edns:
        question.add_ar(dnslib.EDNS0(udp_len=4096))
    query = parse_query(question.pack())
    assert (query.name, query.id) == (name.lower(), number)
    assert query.udp_limit_bytes == (4096 if edns else 512)
    answer = dnslib.DNSRecord.parse(build_answer(query, message.NOERROR, Records(message.TYPE_A, addresses, 5)))
    assert answer.header.id == number
    assert answer.header.get_aa() == 1
    assert str(answer.q.qname) == f"{name}."
    assert [bytes(map(int, str(record.rdata).split("."))) for record in answer.rr] == addresses
    assert len(answer.ar) == int(edns)


@given(NAME, st.integers(0, 300), st.integers(512, 2000))
def test_an_answer_never_exceeds_its_limit(name: str, count: int, limit: int) -> None:
    """A response fits the limit; TC says whether something was left out."""
    query = parse_query(dnslib.DNSRecord(q=dnslib.DNSQuestion(name)).pack())
    answer = build_answer(query, 0, Records(message.TYPE_A, [b"\1\2\3\4"] * count, 5), limit_bytes=limit)
    assert len(answer) <= limit
    assert message.is_truncated(answer) == (int.from_bytes(answer[6:8], "big") < count)


def test_compressed_and_endless_names_are_refused() -> None:
    """A question's name that points elsewhere, or is longer than 255 bytes, is malformed."""
    head = bytes.fromhex("000101000001000000000000")
    for name in (b"\xc0\x0c", b"\x3f" + b"a" * 63, (b"\x3f" + b"a" * 63) * 5 + b"\0"):
        with pytest.raises(MalformedMessage):
            parse_query(head + name + b"\0\1\0\1")


def test_reverse_names() -> None:
    """Only four decimal octets under in-addr.arpa are an address."""
    assert message.reverse_address("5.1.0.10.in-addr.arpa") == b"\x0a\0\1\5"
    for name in ("1.0.10.in-addr.arpa", "256.1.0.10.in-addr.arpa", "x.1.0.10.in-addr.arpa", "5.1.0.10.ip6.arpa", ""):
        assert message.reverse_address(name) is None


def test_resolv_conf() -> None:
    """The first three IPv4 servers count; comments, other words and IPv6 servers do not."""
    text = "search a b\n# nameserver 9.9.9.9\nnameserver 10.0.0.1 ; x\nnameserver fe80::1\n"
    assert parse_resolv_conf(text) == ("10.0.0.1",)
    assert parse_resolv_conf("nameserver 10.0.0.1\n" * 5) == ("10.0.0.1",) * 3
    assert parse_resolv_conf("nameserver") == ()


def _service(name: str, *addresses: str, alias: str = "shared") -> Service:
    endpoints = tuple(Endpoint(f"{name}{n}", n, address, (f"{name}-{n}",)) for n, address in enumerate(addresses, 1))
    return Service(f"id-{name}", name, (alias,), "", endpoints)


def test_an_alias_of_two_services_means_both_until_one_goes() -> None:
    """A name with two owners answers with the addresses of both, and of the one that is left."""
    made = zone.Zone("Front")
    made.put(_service("a", "10.0.1.5"))
    made.put(_service("b", "10.0.1.6"))
    assert made.lookup("shared") == (b"\x0a\0\1\5", b"\x0a\0\1\6")
    assert made.lookup("shared.front") == made.lookup("shared")
    made.remove("id-a")
    assert made.lookup("shared") == (b"\x0a\0\1\6",)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.sampled_from(["10.0.1.5", "10.0.1.6"])), st.booleans())))
def test_a_zone_equals_one_built_from_what_is_left(changes: list[tuple[str, list[str], bool]]) -> None:
    """Whatever was put and removed, the names are those of the services that remain."""
    changed, left = zone.Zone("n"), {}
    for name, addresses, remove in changes:
        if remove:
            changed.remove(f"id-{name}")
            left.pop(name, None)
        else:
            left[name] = _service(name, *addresses)
            changed.put(left[name])
    fresh = zone.Zone("n")
    for service in left.values():
        fresh.put(service)
    for name in ("a", "b", "tasks.a", "1.b", "a-1", "shared"):
        assert set(changed.lookup(name) or ()) == set(fresh.lookup(name) or ())
        assert (changed.lookup(name) is None) == (fresh.lookup(name) is None)
    for address in (b"\x0a\0\1\5", b"\x0a\0\1\6"):
        assert set(changed.reverse(address)) == set(fresh.reverse(address))
