"""Env files: Compose's dialect (quotes, comments, variables) and Docker's raw one.

The difference matters for files that come from ``docker stack``: there quotes and comments are part of the value;
``format: raw`` keeps that meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from orch_cli.compose.interpolation import InterpolationError, Variables, substitute

MAX_BYTES: Final = 1024 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.\-]*)[ \t]*(?:([=:])[ \t]*)?")
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "$": "$$"}


class EnvFileError(Exception):
    """A line that cannot be read; ``line`` counts from 1."""

    def __init__(self, line: int, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.line, self.what, self.hint = line, what, hint


def parse_env_file(text: str, outside: Mapping[str, str]) -> dict[str, str | None]:
    """Reads Compose's dialect.

    Args:
        text: the file.
        outside: variables for ``$NAME`` in values, before those of the file itself.

    Returns:
        The values; None for a bare name, which takes the value of the client's environment.

    Raises:
        EnvFileError: for a line that is no assignment.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    result: dict[str, str | None] = {}
    position = 0
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        line_number = text.count("\n", 0, position) + 1
        stripped = text[position:end].strip()
        if not stripped or stripped.startswith("#"):
            position = end + 1
            continue
        match = _ASSIGNMENT.match(text, position)
        if match is None:
            raise EnvFileError(line_number, f"{stripped[:40]!r} is no assignment", "write NAME=value")
        name = match.group(1)
        if match.group(2) is None:
            if text[match.end() : end].split("#")[0].strip():
                raise EnvFileError(line_number, f"{stripped[:40]!r} is no assignment", "write NAME=value")
            result[name] = None
            position = end + 1
            continue
        value, position = _read_value(text, match.end(), line_number)
        if value.kind != "single":
            known = {**{key: item for key, item in result.items() if item is not None}, **outside}
            try:
                result[name] = substitute(value.text, Variables(known))
            except InterpolationError as error:
                raise EnvFileError(line_number, error.what, error.hint) from error
        else:
            result[name] = value.text
    return result


@dataclass(frozen=True, slots=True)
class _Value:
    text: str
    kind: str


def _read_value(text: str, position: int, line_number: int) -> tuple[_Value, int]:
    """The value that begins at ``position``, and where the next line begins."""
    quote = text[position : position + 1]
    if quote in ("'", '"'):
        characters: list[str] = []
        index = position + 1
        while index < len(text) and text[index] != quote:
            if text[index] == "\\" and quote == '"' and index + 1 < len(text):
                characters.append(_ESCAPES.get(text[index + 1], "\\" + text[index + 1]))
                index += 2
                continue
            characters.append(text[index])
            index += 1
        if index >= len(text):
            raise EnvFileError(line_number, "the closing quote is missing", f"end the value with {quote}")
        end = text.find("\n", index)
        end = len(text) if end < 0 else end
        rest = text[index + 1 : end].strip()
        if rest and not rest.startswith("#"):
            raise EnvFileError(
                line_number, f"{rest[:40]!r} stands behind the closing quote", "remove it, or quote the whole value"
            )
        return _Value("".join(characters), "single" if quote == "'" else "double"), end + 1
    end = text.find("\n", position)
    end = len(text) if end < 0 else end
    raw = text[position:end]
    comment = re.search(r"(?:^|[ \t])#", raw)
    return _Value((raw[: comment.start()] if comment else raw).strip(), "bare"), end + 1


def parse_raw_env_file(text: str, outside: Mapping[str, str]) -> dict[str, str | None]:
    """Reads Docker's raw dialect: all behind ``=`` is the value; an empty one takes the client's where there is one."""
    result: dict[str, str | None] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        stripped = line.lstrip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        if not name or name != name.strip() or " " in name:
            raise EnvFileError(
                number, f"{stripped[:40]!r} is no assignment", "write NAME=value without spaces around the name"
            )
        result[name] = (value or outside.get(name, "")) if equals else None
    return result
