"""The page of defaults says what the table says."""

from __future__ import annotations

import pytest

from orch_proto.defaults import TABLE, Entry, Unit
from orch_proto.defaults_page import PAGE, page, shown_value


def test_the_page_is_fresh() -> None:
    """docs/defaults.md is what the table generates."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_entry_is_on_the_page_once() -> None:
    """No default or limit is missing from the page, and no name stands twice in one group."""
    assert len({(entry.group, entry.name) for entry in TABLE}) == len(TABLE)
    text = page()
    for entry in TABLE:
        assert f"| {entry.name} | {shown_value(entry)} | {entry.kind} | {entry.reason} |" in text


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (5000, "ms", "5 s"),
        (1500, "ms", "1,500 ms"),
        (0, "ms", "0 ms"),
        (10 * 1024 * 1024, "bytes", "10 MiB"),
        (4096, "bytes", "4 KiB"),
        (1450, "bytes", "1,450 bytes"),
        (1_000_000, "nano CPUs", "0.001 CPU"),
        (24, "prefix length", "/24"),
        (9323, "port", "9323"),
        (5, "s", "5 s"),
        (10_000, "count", "10,000"),
        ("json-file", "", "`json-file`"),
    ],
)
def test_values_are_shown_in_peoples_units(value: int | str, unit: Unit, shown: str) -> None:
    """Milliseconds, bytes and billionths of a CPU are shown in the unit in which a person would say them."""
    assert shown_value(Entry("g", "n", value, unit, "default", "r")) == shown


def test_every_reason_is_given() -> None:
    """No default stands without saying why it is what it is."""
    assert all(entry.reason for entry in TABLE)
