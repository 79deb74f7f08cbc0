"""The part of docker's ``--format`` that orch understands: ``table``, ``json``, and templates of ``{{.Field}}``."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from orch_cli.compose.report import nearest
from orch_cli.errors import UsageError

_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_FIELD = re.compile(r"\.([A-Za-z][A-Za-z0-9]*)")
_ESCAPES: Final = {r"\t": "\t", r"\n": "\n", r"\\": "\\"}
JSON: Final = "json ."


class Template:
    """A parsed template: text and fields in turn."""

    def __init__(self, text: str, fields: Collection[str]) -> None:
        for escape, character in _ESCAPES.items():
            text = text.replace(escape, character)
        self.parts: list[tuple[bool, str]] = []
        position = 0
        for match in _PLACEHOLDER.finditer(text):
            self.parts.append((False, text[position : match.start()]))
            self.parts.append((True, _field(match.group(1), fields)))
            position = match.end()
        rest = text[position:]
        if "{{" in rest or "}}" in rest:
            raise UsageError(f"cannot read the format {text!r}", "braces do not match", "write {{.Name}}")
        self.parts.append((False, rest))

    def fields(self) -> list[str]:
        """The fields in their order."""
        return [value for is_field, value in self.parts if is_field]

    def render(self, row: dict[str, str], as_json: str = "") -> str:
        """The text for one row."""
        return "".join(
            (as_json if value == JSON else row[value]) if is_field else value for is_field, value in self.parts
        )


def _field(expression: str, fields: Collection[str]) -> str:
    if expression == JSON:
        return JSON
    match = _FIELD.fullmatch(expression)
    if match is None:
        raise UsageError(
            f"cannot read the format {{{{{expression}}}}}",
            "orch knows fields such as {{.Name}}, and {{json .}}, not the whole of Go's templates",
            "use --format json and a tool such as jq",
        )
    name = match.group(1)
    if name not in fields:
        hint = nearest(name, fields) or f"fields: {', '.join(sorted(fields))}"
        raise UsageError(f"cannot show the field {name!r}", "this list has no such field", hint)
    return name
