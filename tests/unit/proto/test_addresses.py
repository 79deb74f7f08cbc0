"""How addresses of managers are read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_rpc.addresses import Address, parse_address
from orch_rpc.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.5", Address("10.0.0.5", 2377)),
        ("10.0.0.5:4000", Address("10.0.0.5", 4000)),
        ("db-1.example.org", Address("db-1.example.org", 2377)),
        ("fd00::1", Address("fd00::1", 2377)),
        ("[fd00::1]:4000", Address("fd00::1", 4000)),
        ("[fd00::1]", Address("fd00::1", 2377)),
    ],
)
def test_what_people_write_is_understood(text: str, expected: Address) -> None:
    """Hosts, names and both families are read, with the default port where none is named."""
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":2377",
        "10.0.0.5:",
        "10.0.0.5:0",
        "10.0.0.5:65535",
        "10.0.0.5:http",
        "10.0.0",
        "a b",
        "-a",
        "[::1",
        "x" * 300,
        "[::1]2377",
        "http://a",
        "10.0.0.5:²",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """A mistyped address is an error that shows the form, not a connection that never comes."""
    with pytest.raises(InvalidArgument, match="HOST:PORT"):
        parse_address(text)


@given(st.ip_addresses(), st.integers(1, 65534))
def test_what_is_written_is_read_again(host: object, port: int) -> None:
    """An address survives being written down."""
    address = Address(str(host), port)
    assert parse_address(str(address)) == address


def test_joining_has_a_port_of_its_own() -> None:
    """Who has no certificate asks one port further up."""
    assert str(parse_address("10.0.0.5").for_joining) == "10.0.0.5:2378"


def test_an_address_that_means_any_is_known() -> None:
    """0.0.0.0 and :: are recognised, so that nobody advertises them."""
    assert parse_address("0.0.0.0").is_unspecified
    assert parse_address("::").is_unspecified
    assert not parse_address("10.0.0.1").is_unspecified
