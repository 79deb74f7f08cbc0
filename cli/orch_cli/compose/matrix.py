"""Writes the support matrix of ``docs/compose.md`` from the table in ``attributes``.

Usage: ``python -m orch_cli.compose.matrix docs/compose.md`` replaces what stands between the two marker lines.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from orch_cli.compose.attributes import SERVICE, TOP, Attribute, Support, Table

BEGIN: Final = "<!-- generated from the loader's table: begin -->"
END: Final = "<!-- generated from the loader's table: end -->"

_MARKS: Final = {
    Support.SUPPORTED: "yes",
    Support.ACCEPTED: "accepted, no effect",
    Support.WARNED: "warning, no effect",
    Support.NOT_YET: "**not yet**: error",
    Support.REFUSED: "**no**: error",
}


def render() -> str:
    """The matrix as Markdown, with the marker lines."""
    lines = [BEGIN, ""]
    counts: dict[Support, int] = {}
    sections = (
        ("Top level", "", {key: value for key, value in TOP.items() if key != "services"}),
        ("Services", "services.*.", SERVICE),
    )
    for title, prefix, table in sections:
        lines += [f"### {title}", "", "| attribute | orch | remarks |", "|---|---|---|"]
        for path, attribute in _rows(table, prefix):
            counts[attribute.support] = counts.get(attribute.support, 0) + 1
            note = attribute.note.replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| `{path}` | {_MARKS[attribute.support]} | {note} |".replace("|  |", "| |"))
        lines.append("")
    summary = ", ".join(f"{counts[support]} {support.value}" for support in Support if support in counts)
    lines += [f"In all: {summary}.", "", END]
    return "\n".join(lines)


def _rows(table: Table, prefix: str) -> Iterator[tuple[str, Attribute]]:
    for key in sorted(table, key=lambda name: (name.startswith("x-"), name)):
        attribute = table[key]
        path = f"{prefix}{key}{'*' if key == 'x-' else ''}"
        yield path, attribute
        if attribute.children is not None:
            yield from _rows(attribute.children, f"{path}.")


def replace(page: str) -> str:
    """The page with a fresh matrix.

    Raises:
        ValueError: the page lacks the marker lines.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{render()}{after}"


def main() -> None:
    """Rewrites the page that is named on the command line."""
    with open(sys.argv[1], encoding="utf-8") as stream:
        fresh = replace(stream.read())
    with open(sys.argv[1], "w", encoding="utf-8") as stream:
        stream.write(fresh)


if __name__ == "__main__":
    main()
