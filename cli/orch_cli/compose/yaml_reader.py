"""YAML text into nodes with places, by YAML 1.2's rules for scalars.

PyYAML's composer (the C one where it exists) does the syntax; the meaning of scalars, mappings and aliases is decided
here, because PyYAML follows YAML 1.1: ``22:22`` would be a number in base 60, ``no`` a truth value, and the last of
two equal keys would win in silence.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import yaml

from orch_cli.compose.nodes import ListNode, MapNode, Mark, Node, ScalarNode
from orch_cli.compose.report import Report

if TYPE_CHECKING:
    from yaml.parser import Parser as _YamlParser

    _Base = _YamlParser
else:
    try:
        from yaml.cyaml import CParser as _Base
    except ImportError:  # built without libyaml: the same nodes, ten times slower
        from yaml.composer import Composer
        from yaml.parser import Parser
        from yaml.reader import Reader
        from yaml.scanner import Scanner

        class _Base(Reader, Scanner, Parser, Composer):
            def __init__(self, stream: str) -> None:
                Reader.__init__(self, stream)
                Scanner.__init__(self)
                Parser.__init__(self)
                Composer.__init__(self)


MAX_NODES: Final = 100_000  # aliases that multiply ("billion laughs") end here
MAX_DEPTH: Final = 64
RESET: Final = "!reset"
OVERRIDE: Final = "!override"

_PLAIN: Final = "plain"
_QUOTED: Final = "quoted"
_CORE: Final = "tag:yaml.org,2002:"

_INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o[0-7_]+|[0-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_TRUE: Final = frozenset({"true", "True", "TRUE"})
_FALSE: Final = frozenset({"false", "False", "FALSE"})
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})


class _Composer(_Base):
    """Composes without resolving: a scalar's tag only says whether it was plain or quoted."""

    def resolve(self, kind: type[yaml.Node], _value: object, implicit: object) -> str:
        """Called by PyYAML for every node without a tag of its own."""
        if kind is yaml.ScalarNode:
            return _PLAIN if isinstance(implicit, tuple) and implicit[0] else _QUOTED
        return ""

    def descend_resolver(self, *_arguments: object) -> None:
        """Path resolvers are not used."""

    def ascend_resolver(self) -> None:
        """Path resolvers are not used."""


def resolve_scalar(text: str) -> str | int | float | bool | None:  # noqa: PLR0911 - one return per kind of scalar
    """The value of a plain scalar: YAML 1.2's core schema, and octal as ``0440`` too, as Docker reads it."""
    if text in _NULL:
        return None
    first = text[0]
    if first in "tTfF":
        return True if text in _TRUE else False if text in _FALSE else text
    if first not in "0123456789+-.":
        return text
    if _INTEGER.fullmatch(text):
        digits = text.replace("_", "").lstrip("+-")
        sign = -1 if text[0] == "-" else 1
        if digits[:2] in ("0x", "0o", "0b"):
            return sign * int(digits, 0)
        if len(digits) > 1 and digits[0] == "0":
            return sign * int(digits, 8) if not set(digits) & {"8", "9"} else text
        return sign * int(digits) if len(digits) <= 20 else text
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return float(text.lower().replace(".", "")) if _NOT_FINITE.fullmatch(text) else text


def read_yaml(text: str, file: str, report: Report) -> MapNode | None:
    """Reads the first document of ``text``.

    Returns:
        Its mapping; None when the file has no usable mapping, in which case the report says why.
    """
    try:
        composer = _Composer(text)  # type: ignore[call-arg]
        root = composer.get_node() if composer.check_node() else None  # type: ignore[attr-defined]
        more = composer.check_node()  # type: ignore[attr-defined]
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is nested too deeply"
        column = f" in column {mark.column + 1}" if mark is not None else ""
        report.error(Mark(file, line), "", "this is not YAML", f"{why}{column}", _syntax_hint(text, line))
        return None
    if more:
        report.warn(Mark(file, 1), "", "the file holds several documents", "only the first is read")
    if root is None:
        report.error(Mark(file, 1), "", "the file is empty", "", "a stack file needs `services:`")
        return None
    node = _Builder(file, report).build(root, "", 0)
    if isinstance(node, MapNode):
        return node
    if not report.problems:
        report.error(
            Mark(file, 1), "", "the file is no mapping", "", "a stack file begins with keys such as `services:`"
        )
    return None


def _syntax_hint(text: str, line: int) -> str:
    lines = text.splitlines()
    if 0 < line <= len(lines) and "\t" in lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]:
        return "indent with spaces, YAML allows no tabs"
    return "look at the indentation and quotes of this line and the one before"


class _Builder:
    """Turns composed nodes into ours."""

    def __init__(self, file: str, report: Report) -> None:
        self._file = file
        self._report = report
        self._count = 0
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: str, depth: int) -> Node:
        mark = Mark(self._file, node.start_mark.line + 1)
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH or id(node) in self._open:
            why = "an alias contains itself" if id(node) in self._open else "aliases are expanded, and this is too much"
            self._report.error(mark, path, "the file is too large once it is expanded", why, "use fewer aliases")
            return ScalarNode(None, "", mark)
        tag = node.tag if node.tag in (RESET, OVERRIDE) else ""
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, mark, tag)
        self._check_tag(node, path, mark, ("seq", "map"))
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                items = [self.build(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(node.value)]
                return ListNode(items, mark, tag)
            return self._mapping(node, path, mark, depth, tag)
        finally:
            self._open.discard(id(node))

    def _check_tag(self, node: yaml.Node, path: str, mark: Mark, allowed: tuple[str, ...]) -> None:
        tag = node.tag
        if tag not in ("", "!", RESET, OVERRIDE) and tag.removeprefix(_CORE) not in allowed:
            self._report.error(
                mark, path, f"the tag {tag} is unknown", "", f"only {RESET} and {OVERRIDE} have a meaning here"
            )

    def _scalar(self, node: yaml.ScalarNode, path: str, mark: Mark, tag: str) -> ScalarNode:
        text = node.value
        if node.tag == _PLAIN:
            value = resolve_scalar(text)
            if isinstance(value, float) and not math.isfinite(value):
                self._report.error(mark, path, f"{text} is no usable number", "no attribute takes an infinite value")
            return ScalarNode(value, text, mark)
        if node.tag in (_QUOTED, "!", _CORE + "str"):
            return ScalarNode(text, text, mark)
        if tag:
            return ScalarNode(resolve_scalar(text) if node.style is None else text, text, mark, tag)
        self._check_tag(node, path, mark, ("int", "float", "bool", "null"))
        return ScalarNode(resolve_scalar(text), text, mark)

    def _mapping(self, node: yaml.Node, path: str, mark: Mark, depth: int, tag: str) -> MapNode:
        entries: dict[str, Node] = {}
        marks: dict[str, Mark] = {}
        merged: list[MapNode] = []
        merge_line = 0
        for key_node, value_node in node.value:
            key_mark = Mark(self._file, key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                self._report.error(key_mark, path, "a key has to be text", "this one is a list or a mapping")
                continue
            key = key_node.value
            if key == "<<" and key_node.tag == _PLAIN:
                if merge_line:
                    self._report.error(
                        key_mark, path, "<< is given twice", f"the first is in line {merge_line}", "write << : [*a, *b]"
                    )
                merge_line = key_mark.line
                merged.extend(self._merge_sources(value_node, path, depth))
                continue
            if key_node.tag == _PLAIN and not isinstance(resolve_scalar(key), str):
                self._report.error(
                    key_mark,
                    f"{path}.{key}" if path else key,
                    "a key has to be text",
                    f"{key or 'nothing'} is read as another type",
                    f'write "{key}"',
                )
            where = f"{path}.{key}" if path else key
            if key in entries:
                first = marks[key].line
                self._report.error(
                    key_mark, where, "the key is given twice", f"the first is in line {first}", "remove one of them"
                )
                continue
            entries[key] = self.build(value_node, where, depth + 1)
            marks[key] = key_mark
        for source in merged:
            for key, value in source.entries.items():
                if key not in entries:
                    entries[key] = value
                    marks[key] = source.mark_of(key)
        return MapNode(entries, mark, marks, tag)

    def _merge_sources(self, node: yaml.Node, path: str, depth: int) -> list[MapNode]:
        """The mappings behind ``<<``; earlier ones win over later ones (YAML merge key)."""
        built = self.build(node, f"{path}.<<", depth + 1)
        sources = built.items if isinstance(built, ListNode) else [built]
        result = [source for source in sources if isinstance(source, MapNode)]
        if len(result) != len(sources):
            self._report.error(built.mark, path, "<< needs a mapping or a list of mappings", "", "write << : *name")
        return result
