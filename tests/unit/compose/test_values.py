"""Units, short forms and env files, by golden tables."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_cli.compose.dotenv import EnvFileError, parse_env_file, parse_raw_env_file
from orch_cli.compose.policies import check_constraint
from orch_cli.compose.short_forms import parse_extra_host, parse_ports, parse_volume
from orch_cli.compose.units import parse_duration_ms, parse_nano_cpus, parse_size_bytes, split_command

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("10s", 10_000),
        ("1m30s", 90_000),
        ("1h", 3_600_000),
        ("500ms", 500),
        ("1.5s", 1500),
        ("2us", 1),
        (".5s", 500),
        ("1d", 86_400_000),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_durations(text: str, ms: int) -> None:
    """Durations are Go's, and days and weeks as in Compose."""
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize("text", ["10", "1h30", "10S", " 10s", "-1s", "", "s", "1 s", "99999999999w"])
def test_wrong_durations(text: str) -> None:
    """A duration without a unit, with blanks, negative or absurd is refused."""
    with pytest.raises(ValueError, match=r"."):
        parse_duration_ms(text)


@given(st.integers(0, 10**9))
def test_milliseconds_come_back(value: int) -> None:
    """Every whole number of milliseconds can be written and read."""
    assert parse_duration_ms(f"{value}ms") == value


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50M", 50 * MIB),
        ("50m", 50 * MIB),
        ("50MB", 50 * MIB),
        ("50MiB", 50 * MIB),
        ("1g", 1024 * MIB),
        ("1.5g", 1536 * MIB),
        ("50 M", 50 * MIB),
        ("50", 50),
        ("1k", 1024),
        ("1b", 1),
        ("1T", 1024 * 1024 * MIB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """Sizes are in powers of 1024 whatever the case."""
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize("text", ["1Gi", "5x", "", "-1M", "M", "99999999999999P"])
def test_wrong_sizes(text: str) -> None:
    """Other units are refused."""
    with pytest.raises(ValueError, match=r"."):
        parse_size_bytes(text)


@pytest.mark.parametrize(("text", "nano"), [("0.5", 5 * 10**8), ("1e-3", 10**6), ("1/2", 5 * 10**8), ("2", 2 * 10**9)])
def test_cpus(text: str, nano: int) -> None:
    """CPUs are decimal numbers or fractions."""
    assert parse_nano_cpus(text) == nano


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a 'b c' \"d e\"", ["a", "b c", "d e"]),
        ("a # b", ["a", "#", "b"]),
        ("a | b > c", ["a", "|", "b", ">", "c"]),
        (r"a\ b", ["a b"]),
        ("", []),
    ],
)
def test_commands(text: str, words: list[str]) -> None:
    """A command as text is split by the shell's quoting, and nothing else of a shell happens."""
    assert split_command(text) == words


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [(80, 0, "tcp", "")]),
        ("8080:80", [(80, 8080, "tcp", "")]),
        ("8080:80/udp", [(80, 8080, "udp", "")]),
        ("53:53/TCP", [(53, 53, "tcp", "")]),
        ("127.0.0.1:8080:80", [(80, 8080, "tcp", "127.0.0.1")]),
        ("127.0.0.1::80", [(80, 0, "tcp", "127.0.0.1")]),
        ("[::1]:80:80", [(80, 80, "tcp", "::1")]),
        ("::1:80:80", [(80, 80, "tcp", "::1")]),
        ("9000-9002:80-82", [(80, 9000, "tcp", ""), (81, 9001, "tcp", ""), (82, 9002, "tcp", "")]),
        ("8000-8001:80", [(80, 8000, "tcp", ""), (80, 8001, "tcp", "")]),
        ("80-81", [(80, 0, "tcp", ""), (81, 0, "tcp", "")]),
        ("0:80", [(80, 0, "tcp", "")]),
        (":80", [(80, 0, "tcp", "")]),
    ],
)
def test_ports(text: str, ports: list[tuple[int, int, str, str]]) -> None:
    """The short form of ports has Compose's meaning; an address is kept, never widened."""
    assert [tuple(port) for port in parse_ports(text)] == ports


@pytest.mark.parametrize(
    "text", ["8080:", "65536:80", "80:90:100", "/foo", "80-82:80-81", "0", "82-80", "80/icmp", "", "a:b", "1-60000"]
)
def test_wrong_ports(text: str) -> None:
    """Ports out of range, unequal ranges and other text are refused."""
    with pytest.raises(ValueError, match=r"."):
        parse_ports(text)


@given(st.text(alphabet="0123456789:-/.[]tcpud", max_size=20))
def test_any_port_text_is_parsed_or_refused(text: str) -> None:
    """Parsing a port gives ports in range, or a reason."""
    with suppress(ValueError):
        ports = parse_ports(text)
        assert all(1 <= port.target <= 65535 and 0 <= port.published <= 65535 for port in ports)


def test_volumes() -> None:
    """The short form of volumes: anonymous, named (one letter too), bound, with options."""
    assert parse_volume("/x").source == ""
    assert parse_volume("v:/d").source == "v"
    form = parse_volume("./h:/x:ro,nocopy,rslave,z,what")
    assert (form.source, form.target, form.read_only, form.no_copy, form.propagation) == (
        "./h",
        "/x",
        True,
        True,
        "rslave",
    )
    assert form.unknown == ("what",)
    for text in (":/d", "vol:", "/h:/d:", "a:b:c:d"):
        with pytest.raises(ValueError, match=r"."):
            parse_volume(text)


def test_extra_hosts() -> None:
    """Host entries take colon or equals sign, IPv6 with or without brackets, and host-gateway."""
    assert parse_extra_host("a:1.2.3.4") == ("a", "1.2.3.4")
    assert parse_extra_host("a=[::1]") == ("a", "::1")
    assert parse_extra_host("a:::1") == ("a", "::1")
    assert parse_extra_host("h:host-gateway") == ("h", "host-gateway")
    for text in ("a", "a:", "a:b"):
        with pytest.raises(ValueError, match=r"."):
            parse_extra_host(text)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('A="1"', "1"),
        ("A='1'", "1"),
        ("A=a # c", "a"),
        ("A=a#c", "a#c"),
        ("A= 1", "1"),
        ("A=1 ", "1"),
        ("A = 1", "1"),
        ("export A=1", "1"),
        ("A: 1", "1"),
        ("A=$HOME", "/h"),
        ("A=${X:-d}", "d"),
        ("A='$HOME'", "$HOME"),
        ('A="a\\nb"', "a\nb"),
        ('A="a\nb"', "a\nb"),
        ("A", None),
        ("A=", ""),
        ("A=1\r", "1"),
        ('A="\\$x"', "$x"),
    ],
)
def test_env_file_dialect_of_compose(line: str, value: str | None) -> None:
    """Env files take quotes off, cut comments, replace variables and know bare names."""
    assert parse_env_file(f"\ufeff# c\n\n{line}\n", {"HOME": "/h"}) == {"A": value}


@pytest.mark.parametrize(
    ("line", "value"),
    [('A="1"', '"1"'), ("A=a # c", "a # c"), ("A= 1", " 1"), ("A=$HOME", "$HOME"), ("A", None), ("A=", "client")],
)
def test_env_file_dialect_of_docker(line: str, value: str | None) -> None:
    """With ``format: raw`` everything behind the equals sign is the value; an empty one takes the client's."""
    assert parse_raw_env_file(f"# c\n  {line}\n", {"HOME": "/h", "A": "client"}) == {"A": value}


def test_env_file_errors_name_the_line() -> None:
    """A line that is no assignment is refused with its number."""
    with pytest.raises(EnvFileError) as info:
        parse_env_file("A=1\n\n=x\n", {})
    assert info.value.line == 3


def test_constraints() -> None:
    """Constraints are checked at once; the fixed part of a key is taken in any case, a label's name as it is."""
    assert check_constraint("node.Role == manager") == (None, "node.role==manager")
    assert check_constraint("node.Labels.Zone!=a b") == (None, "node.labels.Zone!=a b")
    for text in ("node.role=manager", "node.rule==x", "node.role==", "node.labels.==x"):
        problem, _ = check_constraint(text)
        assert problem
