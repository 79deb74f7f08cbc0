"""Variables in a stack file: ``$NAME``, ``${NAME}``, ``${NAME:-default}`` and the rest of Compose's forms.

Values are replaced, keys never; it happens after YAML is read and before files are merged, in every part of a file.
Nesting works (``${A:-${B:-c}}``); ``$$`` is a dollar sign; a dollar sign before anything that is no name stays as it
is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from orch_cli.compose.nodes import ListNode, MapNode, Node, ScalarNode
from orch_cli.compose.report import Report

MAX_NESTING: Final = 16
MAX_TEXT: Final = 1024 * 1024

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS: Final = (":-", ":?", ":+", "-", "?", "+")


class InterpolationError(Exception):
    """A variable cannot be replaced; raised by ``substitute``. ``hint`` says what to do."""

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.hint = what, why, hint


@dataclass(slots=True)
class Variables:
    """Where values come from, and which names had none. ``enforce``: a required one without a value is an error."""

    values: Mapping[str, str]
    unset: list[str] = field(default_factory=list)
    enforce: bool = True


def substitute(text: str, variables: Variables) -> str:
    """``text`` with its variables replaced.

    Raises:
        InterpolationError: a form that Compose does not know, or ``${NAME:?message}`` without a value.
    """
    if "$" not in text:
        return text
    result, end = _expand(text, 0, variables, 0, nested=False)
    assert end == len(text)
    return result


def _expand(text: str, start: int, variables: Variables, depth: int, *, nested: bool) -> tuple[str, int]:
    """Expands up to the end, or to the ``}`` that closes a nested part; returns the text and where it stopped."""
    if depth > MAX_NESTING:
        raise InterpolationError("variables are nested too deeply", f"more than {MAX_NESTING} levels")
    parts: list[str] = []
    position = start
    while position < len(text):
        character = text[position]
        if nested and character == "}":
            return "".join(parts), position
        if character != "$":
            parts.append(character)
            position += 1
            continue
        following = text[position + 1 : position + 2]
        if following == "$":
            parts.append("$")
            position += 2
        elif following == "{":
            value, position = _braced(text, position + 2, variables, depth)
            parts.append(value)
        elif match := _NAME.match(text, position + 1):
            parts.append(_value(match.group(), variables))
            position = match.end()
        else:
            parts.append("$")
            position += 1
        if sum(map(len, parts[-1:])) > MAX_TEXT:
            raise InterpolationError("the text is too long once variables are replaced")
    if nested:
        raise InterpolationError(
            f"a closing brace is missing in {text!r}", "", "close ${ with }, or write $$ for a dollar sign"
        )
    return "".join(parts), position


def _value(name: str, variables: Variables) -> str:
    value = variables.values.get(name)
    if value is None:
        if name not in variables.unset:
            variables.unset.append(name)
        return ""
    return value


def _braced(text: str, start: int, variables: Variables, depth: int) -> tuple[str, int]:
    """Reads what stands behind ``${``; returns its value and the position behind the closing brace."""
    match = _NAME.match(text, start)
    shown = text[start - 2 : start + 30]
    if match is None:
        raise InterpolationError(
            f"{shown!r} names no variable", "a name has letters, digits and _", "write $$ for a dollar sign"
        )
    name, position = match.group(), match.end()
    if text[position : position + 1] == "}":
        return _value(name, variables), position + 1
    operator = next((item for item in _OPERATORS if text.startswith(item, position)), None)
    if operator is None:
        why = "known forms: ${V}, ${V:-default}, ${V-default}, ${V:?message}, ${V?message}, ${V:+other}, ${V+other}"
        raise InterpolationError(f"the form {shown!r} is unknown", why, "write $$ for a dollar sign")
    # The unused branch must not warn about its variables, nor fail on them.
    scratch = Variables(variables.values, enforce=False)
    value = variables.values.get(name)
    missing = value is None or (operator[0] == ":" and value == "")
    used = missing != (operator[-1] == "+")
    argument, end = _expand(text, position + len(operator), variables if used else scratch, depth + 1, nested=True)
    if operator[-1] == "-":
        return (argument if missing else value or ""), end + 1
    if operator[-1] == "+":
        return ("" if missing else argument), end + 1
    if missing and variables.enforce:
        state = "is not set" if value is None else "is empty"
        raise InterpolationError(
            f"the variable {name} {state}",
            argument or "the file requires it",
            f"set it in the environment or in .env: {name}=…",
        )
    return value or "", end + 1


def interpolate(node: Node, values: Mapping[str, str], path: str, report: Report, warned: set[str]) -> Node:
    """``node`` with all variables replaced; names without a value are reported once (``warned`` remembers them)."""
    if isinstance(node, ScalarNode):
        return _interpolate_scalar(node, values, path, report, warned)
    if isinstance(node, ListNode):
        items = [interpolate(item, values, f"{path}[{index}]", report, warned) for index, item in enumerate(node.items)]
        return ListNode(items, node.mark, node.tag)
    entries = {
        key: interpolate(value, values, f"{path}.{key}" if path else key, report, warned)
        for key, value in node.entries.items()
    }
    return MapNode(entries, node.mark, node.key_marks, node.tag)


def _interpolate_scalar(
    node: ScalarNode, values: Mapping[str, str], path: str, report: Report, warned: set[str]
) -> ScalarNode:
    if not isinstance(node.value, str) or "$" not in node.value:
        return node
    variables = Variables(values)
    try:
        text = substitute(node.value, variables)
    except InterpolationError as error:
        report.error(node.mark, path, error.what, error.why, error.hint)
        return ScalarNode(node.value, node.text, node.mark, node.tag)
    for name in variables.unset:
        if name not in warned:
            warned.add(name)
            report.warn(
                node.mark,
                path,
                f"the variable {name} is not set",
                "it is replaced by nothing",
                f"set it, or write ${{{name}:-default}}",
            )
    empty = tuple(
        dict.fromkeys([*variables.unset, *(name for name in _NAME.findall(node.value) if values.get(name) == "")])
    )
    return ScalarNode(text, text, node.mark, node.tag, empty)
