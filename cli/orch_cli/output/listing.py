"""Lists of objects in the forms that ``--format`` and ``-q`` ask for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from orch_cli.output.template import Template

if TYPE_CHECKING:
    import argparse


@dataclass(frozen=True, slots=True)
class Listing:
    """One kind of list.

    Args:
        columns: field and header of the default table, in order.
        quiet: the field that ``-q`` prints.
        extra: further fields with the headers that ``table {{.Field}}`` gives them.
    """

    columns: tuple[tuple[str, str], ...]
    quiet: str
    extra: tuple[tuple[str, str], ...] = ()

    def headers(self) -> dict[str, str]:
        """Header of each field."""
        return dict((*self.columns, *self.extra))


def add_list_options(parser: argparse.ArgumentParser, *, no_trunc: bool = False, filters: bool = False) -> None:
    """Adds the options that all lists share."""
    parser.add_argument(
        "--format", metavar="FORMAT", default="table", help='table, json, "table {{.Name}}" or "{{.Name}}"'
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    if no_trunc:
        parser.add_argument("--no-trunc", action="store_true", help="show ids and errors in full")
    if filters:
        parser.add_argument(
            "-f",
            "--filter",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="show what matches; repeat a key for alternatives",
        )


def print_listing(
    listing: Listing, rows: Sequence[Mapping[str, str]], arguments: argparse.Namespace, stream: TextIO | None = None
) -> None:
    """Prints the rows. An empty table is its header alone.

    Raises:
        UsageError: for a format that is not understood.
    """
    stream = stream or sys.stdout
    if getattr(arguments, "quiet", False):
        for row in rows:
            print(row[listing.quiet], file=stream)
        return
    style = arguments.format
    headers = listing.headers()
    if style == "table":
        _print_table(
            [header for _, header in listing.columns],
            [[row[field] for field, _ in listing.columns] for row in rows],
            stream,
        )
    elif style == "json":
        for row in rows:
            print(
                json.dumps({field: row[field] for field in sorted(headers) if field in row}, ensure_ascii=False),
                file=stream,
            )
    elif style.startswith("table "):
        template = Template(style.removeprefix("table ").strip(), headers)
        lines = [template.render(headers), *(template.render(dict(row)) for row in rows)]
        cells = [line.split("\t") for line in lines]
        _print_table(cells[0], cells[1:], stream)
    else:
        template = Template(style, headers)
        for row in rows:
            print(template.render(dict(row), json.dumps(dict(row), ensure_ascii=False)), file=stream)


def _print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    widths = [max(map(len, cells)) for cells in zip(headers, *rows, strict=True)]
    for cells in (headers, *rows):
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        print("   ".join(padded).rstrip(), file=stream)


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines, for places that are no list of objects."""
    widths = [max(map(len, cells)) for cells in zip(headers, *rows, strict=True)]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (headers, *rows)
    ]


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts ``a2`` before ``a10``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def short_id(identifier: str, *, full: bool = False) -> str:
    """The first twelve characters of an id, or all."""
    return identifier if full else identifier.removeprefix("sha256:")[:12]


def cut(text: str, length: int) -> str:
    """At most ``length`` characters, with an ellipsis where something was cut."""
    return text if len(text) <= length else text[: length - 1] + "…"
