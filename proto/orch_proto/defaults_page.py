"""Writes docs/defaults.md from the table of defaults and limits, or checks that the page is fresh.

Usage: ``python proto/orch_proto/defaults_page.py [--check]``; with ``--check`` nothing is written and the exit
status is 1 when the page differs from the table.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from orch_proto.defaults import KIB, MIB, TABLE, Entry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "defaults.md"

HEAD = """\
# Defaults and limits

Generated from `proto/orch_proto/defaults.py` by `python proto/orch_proto/defaults_page.py`; do not edit it by hand.
A *default* is what holds when a stack file or an option says nothing; a *limit* is refused when it is passed.
Where orch differs from Docker Swarm, the last column says why.
"""


def _shown_bytes(value: float) -> str:
    for size, name in ((MIB, "MiB"), (KIB, "KiB")):
        if value >= size and value % size == 0:
            return f"{value / size:,g} {name}"
    return f"{value:,} bytes"


def shown_value(entry: Entry) -> str:
    """The value as a person would write it: ``5 s`` for 5000 ms, ``10 MiB`` for its bytes, a count as it is."""
    value = entry.value
    if isinstance(value, str):
        return f"`{value}`"
    shown = f"{value:,g}" if isinstance(value, float) else f"{value:,}"
    match entry.unit:
        case "ms" if value and value % 1000 == 0:
            shown = f"{value / 1000:,g} s"
        case "bytes":
            shown = _shown_bytes(value)
        case "nano CPUs":
            shown = f"{value / 1e9:g} CPU"
        case "prefix length":
            shown = f"/{value}"
        case "port":
            shown = str(value)
        case "ms" | "s" | "ticks":
            shown = f"{shown} {entry.unit}"
        case _:
            pass
    return shown


def page() -> str:
    """The whole page, in the order of the table."""
    lines = [HEAD]
    for group, entries in groupby(TABLE, key=lambda entry: entry.group):
        lines += [f"## {group}", "", "| what | value | kind | why |", "| --- | --- | --- | --- |"]
        lines += [f"| {entry.name} | {shown_value(entry)} | {entry.kind} | {entry.reason} |" for entry in entries]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Writes the page, or with --check compares it."""
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(f"defaults_page: unknown arguments {sys.argv[1:]}: only --check is known")
    fresh = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != fresh:
            sys.exit("defaults_page: docs/defaults.md is not fresh; run python proto/orch_proto/defaults_page.py")
        return
    PAGE.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
