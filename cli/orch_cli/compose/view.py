"""Typed access to one mapping of a stack file; what cannot be read is reported with its place, and reads as absent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from orch_cli.compose.nodes import ListNode, MapNode, Mark, Node, ScalarNode, describe, is_null
from orch_cli.compose.report import Report, nearest
from orch_cli.compose.units import MAX_INT64, parse_duration_ms, parse_nano_cpus, parse_size_bytes

_TRUE_WORDS: Final = frozenset({"true", "yes", "on", "y", "1"})
_FALSE_WORDS: Final = frozenset({"false", "no", "off", "n", "0"})
_INTEGER = re.compile(r"[-+]?[0-9]+")


def variable_hint(node: ScalarNode) -> str:
    """What to say when a value is wrong because a variable was empty."""
    if node.empty_variables:
        return f"the variable {', '.join(node.empty_variables)} is not set or empty"
    return ""


class View:
    """A mapping with its path. Null and missing are the same: the getters return None, or an empty collection."""

    def __init__(self, node: Node | None, path: str, report: Report) -> None:
        self.node: Final = (
            node if isinstance(node, MapNode) else MapNode({}, node.mark if node is not None else Mark("", 0))
        )
        self.path: Final = path
        self.report: Final = report

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.node.entries)

    def get(self, key: str) -> Node | None:
        """The node behind ``key``, None when it is missing or null."""
        node = self.node.entries.get(key)
        return None if is_null(node) else node

    def has(self, key: str) -> bool:
        """Whether ``key`` is there with a value."""
        return self.get(key) is not None

    def where(self, key: str) -> str:
        """The path of ``key``."""
        return f"{self.path}.{key}" if self.path and key else self.path or key

    def mark(self, key: str) -> Mark:
        """The place of ``key``."""
        return self.node.mark_of(key)

    def error(self, key: str, what: str, why: str = "", hint: str = "") -> None:
        """Reports a problem of ``key``."""
        node = self.node.entries.get(key)
        if not hint and isinstance(node, ScalarNode):
            hint = variable_hint(node)
        self.report.error(self.mark(key), self.where(key), what, why, hint)

    def warn(self, key: str, what: str, why: str = "", hint: str = "") -> None:
        """Reports a warning about ``key``."""
        self.report.warn(self.mark(key), self.where(key), what, why, hint)

    def view(self, key: str) -> View:
        """The mapping behind ``key``, empty when there is none."""
        node = self.get(key)
        return View(node if node is not None else MapNode({}, self.mark(key)), self.where(key), self.report)

    def named(self, key: str) -> Iterator[tuple[str, View]]:
        """The named tables behind ``key``: a mapping of mappings, or a list of names."""
        node = self.get(key)
        if isinstance(node, ListNode):
            for index, item in enumerate(node.items):
                if isinstance(item, ScalarNode):
                    yield item.text, View(MapNode({}, item.mark), f"{self.where(key)}[{index}]", self.report)
        elif isinstance(node, MapNode):
            for name, item in node.entries.items():
                child = item if isinstance(item, MapNode) else MapNode({}, node.mark_of(name))
                yield name, View(child, f"{self.where(key)}.{name}", self.report)

    def items(self, key: str) -> Iterator[tuple[Node, str]]:
        """The entries of the list behind ``key`` (a single value counts as a list of one), each with its path."""
        node = self.get(key)
        if isinstance(node, ListNode):
            for index, item in enumerate(node.items):
                yield item, f"{self.where(key)}[{index}]"
        elif isinstance(node, ScalarNode):
            yield node, self.where(key)

    # ---- single values -------------------------------------------------------------------------------

    def scalar(self, key: str) -> ScalarNode | None:
        """The single value behind ``key``."""
        node = self.get(key)
        return node if isinstance(node, ScalarNode) else None

    def text(self, key: str, *, empty: bool = False) -> str | None:
        """Text, or a number as it is written. An empty text is a problem unless ``empty``."""
        node = self.scalar(key)
        if node is None:
            return None
        if isinstance(node.value, bool):
            self.error(key, "text is needed", f"this is {describe(node)}", f'write "{node.text}"')
            return None
        if node.text == "" and not empty:
            self.error(key, "the value is empty")
            return None
        return node.text

    def choice(self, key: str, words: tuple[str, ...], what: str = "") -> str | None:
        """One of ``words``."""
        node = self.scalar(key)
        if node is None:
            return None
        text = node.text if not isinstance(node.value, bool) else node.text.lower()
        if text in words:
            return text
        self.error(
            key,
            f"{text!r} is not known{what}",
            f"known: {', '.join(words)}",
            nearest(text, words) or variable_hint(node),
        )
        return None

    def integer(self, key: str, minimum: int = 0, maximum: int = MAX_INT64) -> int | None:
        """A whole number between ``minimum`` and ``maximum``, also as text."""
        node = self.scalar(key)
        if node is None:
            return None
        value = node.value
        if isinstance(value, str) and _INTEGER.fullmatch(value.strip()) and len(value) <= 20:
            value = int(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.error(key, "a whole number is needed", f"this is {describe(node)}")
            return None
        if not minimum <= value <= maximum:
            limits = f"at least {minimum}" if value < minimum else f"at most {maximum}"
            self.error(key, f"{value} is out of range", f"it has to be {limits}")
            return None
        return value

    def octal(self, key: str) -> int | None:
        """File permissions: a number (YAML's octal), or text in octal."""
        node = self.scalar(key)
        if node is None:
            return None
        value = node.value
        if isinstance(value, str):
            digits = value.removeprefix("0o")
            value = int(digits, 8) if digits and set(digits) <= set("01234567") and len(digits) <= 6 else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o7777:
            self.error(key, f"{node.text!r} are no file permissions", "they are octal, from 0 to 07777", 'write "0440"')
            return None
        return value

    def real(self, key: str, minimum: float, maximum: float) -> float | None:
        """A number between ``minimum`` and ``maximum``."""
        node = self.scalar(key)
        if node is None:
            return None
        try:
            value = float(node.text) if not isinstance(node.value, bool) else None
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            self.error(key, f"{node.text!r} does not fit", f"a number from {minimum:g} to {maximum:g} is needed")
            return None
        return value

    def boolean(self, key: str) -> bool | None:
        """A truth value; text such as ``"yes"`` counts, as it may come from a variable."""
        node = self.scalar(key)
        if node is None:
            return None
        if isinstance(node.value, bool):
            return node.value
        word = node.text.lower()
        if word in _TRUE_WORDS or word in _FALSE_WORDS:
            return word in _TRUE_WORDS
        self.error(key, "true or false is needed", f"this is {describe(node)}")
        return None

    def duration_ms(self, key: str, minimum: int = 0) -> int | None:
        """A duration in milliseconds."""
        return self._parsed(key, "a duration is needed", parse_duration_ms, minimum)

    def size_bytes(self, key: str, minimum: int = 0) -> int | None:
        """A size in bytes."""
        return self._parsed(key, "a size is needed", parse_size_bytes, minimum)

    def nano_cpus(self, key: str, minimum: int = 0) -> int | None:
        """CPUs in billionths."""
        return self._parsed(key, "a number of CPUs is needed", parse_nano_cpus, minimum)

    def _parsed(self, key: str, what: str, parse: Callable[[str], int], minimum: int) -> int | None:
        node = self.scalar(key)
        if node is None:
            return None
        if isinstance(node.value, bool):
            self.error(key, what, f"this is {describe(node)}")
            return None
        try:
            value = parse(node.text)
        except ValueError as error:
            self.error(key, f"{what}, {node.text!r} is none", str(error))
            return None
        if value < minimum:
            self.error(key, f"{node.text!r} is too little", f"the least is {minimum}")
            return None
        return value

    # ---- collections ---------------------------------------------------------------------------------

    def words(self, key: str) -> list[str]:
        """A list of texts, or a single one; doubles are kept."""
        result = []
        for node, path in self.items(key):
            if not isinstance(node, ScalarNode) or isinstance(node.value, bool) or node.value is None:
                self.report.error(node.mark, path, "text is needed", f"this is {describe(node)}", "put it in quotes")
            else:
                result.append(node.text)
        return result

    def unique_words(self, key: str) -> list[str]:
        """As ``words``, without doubles."""
        return list(dict.fromkeys(self.words(key)))

    def pairs(self, key: str, *, separators: str = "=") -> dict[str, str | None]:
        """A mapping of names to text, or a list of ``NAME=value``; a name without a value has None."""
        node = self.get(key)
        result: dict[str, str | None] = {}
        if isinstance(node, MapNode):
            for name, item in node.entries.items():
                if isinstance(item, ScalarNode):
                    result[name] = None if item.value is None else pair_text(item)
        elif isinstance(node, ListNode):
            for item, path in self.items(key):
                if not isinstance(item, ScalarNode) or not isinstance(item.value, str):
                    self.report.error(item.mark, path, "NAME=value is needed", f"this is {describe(item)}")
                    continue
                cut = min((item.text.find(mark) for mark in separators if mark in item.text), default=-1)
                name, value = (item.text, None) if cut < 0 else (item.text[:cut], item.text[cut + 1 :])
                if not name:
                    self.report.error(
                        item.mark, path, "the name is missing", f"{item.text!r} begins with =", variable_hint(item)
                    )
                    continue
                result[name] = value
        return result

    def label_pairs(self, key: str) -> dict[str, str]:
        """Labels: as ``pairs``, a name without a value has the empty text."""
        return {name: value or "" for name, value in self.pairs(key).items()}


def pair_text(node: ScalarNode) -> str:
    """A value of a variable or label as text: as it is written, truth values in lower case."""
    return node.text.lower() if isinstance(node.value, bool) else node.text
