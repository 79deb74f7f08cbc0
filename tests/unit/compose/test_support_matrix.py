"""The table of attributes, and the page that is made from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orch_cli.compose.attributes import TOP, Attribute, Shape, Support, Table
from orch_cli.compose.matrix import replace

PAGE = Path(__file__).resolve().parents[3] / "docs" / "compose.md"


def rows(table: Table, prefix: str = "") -> Iterator[tuple[str, Attribute]]:
    for key, attribute in table.items():
        yield prefix + key, attribute
        if attribute.children is not None:
            yield from rows(attribute.children, f"{prefix}{key}.")


def test_the_page_is_fresh() -> None:
    """docs/compose.md shows the loader's own table: python -m orch_cli.compose.matrix docs/compose.md makes it so."""
    page = PAGE.read_text()
    assert replace(page) == page


@pytest.mark.parametrize(("path", "attribute"), list(rows(TOP)))
def test_every_row_makes_sense(path: str, attribute: Attribute) -> None:
    """What is ignored or refused for good says why; what holds a table has its rows."""
    if attribute.support in (Support.ACCEPTED, Support.WARNED, Support.REFUSED):
        assert attribute.note, path
    if attribute.shape & (Shape.TABLE | Shape.NAMED | Shape.ENTRIES) and attribute.support is Support.SUPPORTED:
        assert attribute.children, path
