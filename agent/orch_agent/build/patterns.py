"""Patterns of file names: wildcards of COPY and ADD, and the lines of `.dockerignore`.

Source: docker's references for both, which use the rules of Go's filepath.Match, and `**` in `.dockerignore`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

PATTERNS_MAX = 10_000
_WILD = re.compile(r"[*?\[\\]")


class PatternError(ValueError):
    """Raised for a pattern that is malformed."""


def has_wildcard(path: str) -> bool:
    """Whether a source of COPY is a pattern."""
    return bool(_WILD.search(path))


def component_regex(pattern: str) -> re.Pattern[str]:
    """The regular expression of one path component.

    Raises:
        PatternError: a bracket is open or empty.
    """
    return re.compile(_translated(pattern) + r"\Z", re.DOTALL)


def _translated(pattern: str) -> str:
    out = ""
    index = 0
    while index < len(pattern):
        character = pattern[index]
        index += 1
        if character == "*":
            out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif character == "[":
            text, index = _bracket(pattern, index)
            out += text
        elif character == "\\" and index < len(pattern):
            out += re.escape(pattern[index])
            index += 1
        else:
            out += re.escape(character)
    return out


def _bracket(pattern: str, index: int) -> tuple[str, int]:
    negated = pattern[index : index + 1] == "^"
    index += negated
    items = ""
    first = True
    while first or pattern[index : index + 1] != "]":
        first = False
        low, index = _bracket_character(pattern, index)
        high = low
        if pattern[index : index + 1] == "-":
            high, index = _bracket_character(pattern, index + 1)
        if high < low:
            raise PatternError(f"the pattern {pattern!r} has a range that runs backwards")
        items += f"{re.escape(low)}-{re.escape(high)}"
    return f"(?!/)[{'^' if negated else ''}{items}]", index + 1


def _bracket_character(pattern: str, index: int) -> tuple[str, int]:
    character = pattern[index : index + 1]
    if character == "\\":
        index += 1
        character = pattern[index : index + 1]
        if character:
            return character, index + 1
    if character in ("", "]", "-"):
        raise PatternError(f"the pattern {pattern!r} has an open or empty [ ]")
    return character, index + 1


@dataclass(frozen=True, slots=True)
class _Rule:
    regex: re.Pattern[str]
    excludes: bool


class IgnoreRules:
    """The lines of a `.dockerignore`: the last one that matches a path, or a folder above it, decides."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Compile the lines.

        Raises:
            PatternError: a line is malformed, or there are too many.
        """
        self._rules: list[_Rule] = []
        for line in lines:
            text = line.strip()
            if not text or line.startswith("#"):
                continue
            if len(self._rules) >= PATTERNS_MAX:
                raise PatternError(f"there are more than {PATTERNS_MAX} patterns")
            negated = text.startswith("!")
            parts = _clean(text[1:].strip() if negated else text)
            if parts:
                self._rules.append(_Rule(_path_regex(parts), excludes=not negated))
        self.has_exceptions = any(not rule.excludes for rule in self._rules)

    def ignores(self, path: str) -> bool:
        """Whether `path`, relative to the build's folder, is left out."""
        parts = path.split("/")
        prefixes = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        ignored = False
        for rule in self._rules:
            if ignored != rule.excludes and any(rule.regex.match(prefix) for prefix in prefixes):
                ignored = rule.excludes
        return ignored


def _clean(text: str) -> list[str]:
    parts: list[str] = []
    for part in text.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return parts


def _path_regex(parts: list[str]) -> re.Pattern[str]:
    out = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            out += ".*" if last else "(?:.*/)?"
        else:
            # Within a component `**` also crosses slashes, as in docker's matcher.
            out += ".*".join(_translated(piece) for piece in part.split("**")) + ("" if last else "/")
    return re.compile(out + r"\Z", re.DOTALL)
