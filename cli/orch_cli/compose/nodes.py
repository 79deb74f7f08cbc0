"""The tree that a stack file is read into: values that know the file and line they stand at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Mark(NamedTuple):
    """A place in a file; lines count from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        """The form that editors and terminals recognise."""
        return f"{self.file}:{self.line}"


@dataclass(slots=True)
class ScalarNode:
    """One value.

    ``value`` is the value by YAML 1.2's rules, ``text`` what stands in the file (so that ``1.10`` can be read as text).
    ``empty_variables`` names the variables that were replaced by nothing, for messages.
    """

    value: str | int | float | bool | None
    text: str
    mark: Mark
    tag: str = ""
    empty_variables: tuple[str, ...] = ()


@dataclass(slots=True)
class ListNode:
    """A sequence."""

    items: list[Node]
    mark: Mark
    tag: str = ""


@dataclass(slots=True)
class MapNode:
    """A mapping; ``key_marks`` has the place of each key."""

    entries: dict[str, Node]
    mark: Mark
    key_marks: dict[str, Mark] = field(default_factory=dict)
    tag: str = ""

    def mark_of(self, key: str) -> Mark:
        """Where ``key`` stands, else where the mapping begins."""
        return self.key_marks.get(key, self.mark)


Node = ScalarNode | ListNode | MapNode


def is_null(node: Node | None) -> bool:
    """Whether there is no value: the key is missing, or nothing or ``null`` stands behind it."""
    return node is None or (isinstance(node, ScalarNode) and node.value is None)


def describe(node: Node) -> str:
    """What a node is, in words for messages: ``a list``, ``a mapping``, ``the number 3``."""
    if isinstance(node, ListNode):
        return "a list"
    if isinstance(node, MapNode):
        return "a mapping"
    if node.value is None:
        return "nothing"
    if isinstance(node.value, bool):
        return f"the truth value {node.text}"
    if isinstance(node.value, int | float):
        return f"the number {node.text}"
    return f"the text {node.text!r}"


def scalars_of(node: Node) -> Iterator[ScalarNode]:
    """Every scalar below ``node``."""
    if isinstance(node, ScalarNode):
        yield node
    elif isinstance(node, ListNode):
        for item in node.items:
            yield from scalars_of(item)
    else:
        for item in node.entries.values():
            yield from scalars_of(item)


def to_plain(node: Node) -> object:
    """The node as Python values; a number in another notation (``1.10``, ``0440``) stays as it is written."""
    if isinstance(node, ScalarNode):
        number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
        return node.text if number and str(node.value) != node.text else node.value
    if isinstance(node, ListNode):
        return [to_plain(item) for item in node.items]
    return {key: to_plain(value) for key, value in node.entries.items()}
