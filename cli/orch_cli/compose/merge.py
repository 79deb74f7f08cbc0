"""Joins several stack files: later ones win, by the merge rules of the Compose Specification (section 13, "Merge").

Two tags change the rule for a value: ``!reset`` removes it, ``!override`` replaces all that came before.
"""

from __future__ import annotations

from orch_cli.compose.attributes import TOP, Attribute, Merge, Shape, Table, find
from orch_cli.compose.nodes import ListNode, MapNode, Node, ScalarNode, is_null
from orch_cli.compose.short_forms import parse_ports, parse_volume
from orch_cli.compose.yaml_reader import OVERRIDE, RESET

_PLAIN = Attribute(next(iter(TOP.values())).support, Shape.ANY)


def merge_files(roots: list[MapNode]) -> MapNode:
    """All files as one; the first has the marks of what nobody overrides."""
    merged = _drop_reset(roots[0])
    for root in roots[1:]:
        merged = _merge_table(merged, root, TOP)
    return merged


def _drop_reset(node: MapNode) -> MapNode:
    """The same mapping without what carries ``!reset``."""
    entries: dict[str, Node] = {}
    for key, value in node.entries.items():
        if value.tag != RESET:
            entries[key] = _drop_reset(value) if isinstance(value, MapNode) else value
    return MapNode(entries, node.mark, node.key_marks)


def _merge_table(base: MapNode, later: MapNode, table: Table | None) -> MapNode:
    entries = dict(base.entries)
    marks = dict(base.key_marks)
    for key, value in later.entries.items():
        if value.tag == RESET:
            entries.pop(key, None)
            continue
        if key in entries and is_null(value) and not value.tag:
            continue
        attribute = (find(table, key) if table is not None else None) or _PLAIN
        if key in entries:
            entries[key] = _merge_value(entries[key], value, attribute, key)
        else:
            entries[key] = _drop_reset(value) if isinstance(value, MapNode) else value
        if value.tag == OVERRIDE or isinstance(value, ScalarNode) or key not in marks:
            marks[key] = later.mark_of(key)
    return MapNode(entries, base.mark, marks)


def _merge_value(base: Node, later: Node, attribute: Attribute, key: str) -> Node:  # noqa: PLR0911 - one return per rule
    if later.tag == OVERRIDE or attribute.merge is Merge.REPLACE or is_null(base):
        return later
    if attribute.merge is Merge.BY_TARGET:
        return _merge_entries(base, later, _target_key)
    if attribute.merge is Merge.BY_PORT:
        return _merge_entries(base, later, _port_key)
    if attribute.merge is Merge.LOGGING and _driver(base) != _driver(later) and _driver(later) is not None:
        return later
    shape = attribute.shape
    if key == "build":
        base, later = _as_context(base), _as_context(later)
    if Shape.PAIRS in shape and Shape.LIST in shape:
        base, later = _as_pairs(base), _as_pairs(later)
    elif Shape.NAMED in shape and Shape.LIST in shape:
        base, later = _as_names(base), _as_names(later)
    if isinstance(base, MapNode) and isinstance(later, MapNode):
        if Shape.NAMED in shape:
            return _merge_named(base, later, attribute.children)
        return _merge_table(base, later, attribute.children)
    if isinstance(base, ListNode) or isinstance(later, ListNode):
        return _join(base, later)
    return later


def _merge_named(base: MapNode, later: MapNode, children: Table | None) -> MapNode:
    entries = dict(base.entries)
    marks = {**later.key_marks, **base.key_marks}
    for name, value in later.entries.items():
        present = entries.get(name)
        if value.tag == RESET:
            entries.pop(name, None)
        elif isinstance(present, MapNode) and isinstance(value, MapNode) and value.tag != OVERRIDE:
            entries[name] = _merge_table(present, value, children)
        elif present is None or not is_null(value):
            entries[name] = _drop_reset(value) if isinstance(value, MapNode) else value
    return MapNode(entries, base.mark, marks)


def _join(base: Node, later: Node) -> ListNode:
    """Both lists without doubles; a single value counts as a list of one."""
    items: list[Node] = []
    seen: set[str] = set()
    for item in [*_items(base), *_items(later)]:
        if isinstance(item, ScalarNode):
            if item.text in seen:
                continue
            seen.add(item.text)
        items.append(item)
    return ListNode(items, base.mark)


def _items(node: Node) -> list[Node]:
    return node.items if isinstance(node, ListNode) else [node]


def _merge_entries(base: Node, later: Node, key_of: object) -> Node:
    assert callable(key_of)
    entries: dict[object, Node] = {}
    for item in [*_items(base), *_items(later)]:
        entries[key_of(item)] = item
    return ListNode(list(entries.values()), base.mark)


def _text(node: MapNode, key: str) -> str:
    value = node.entries.get(key)
    return value.text if isinstance(value, ScalarNode) else ""


def _target_key(item: Node) -> object:
    """Where a volume, secret or config shows up in the container."""
    if isinstance(item, MapNode):
        return _text(item, "target") or _text(item, "source")
    if isinstance(item, ScalarNode):
        try:
            return parse_volume(item.text).target
        except ValueError:
            return item.text
    return id(item)


def _port_key(item: Node) -> object:
    """Address, published port, target and protocol."""
    if isinstance(item, MapNode):
        return (
            _text(item, "host_ip"),
            _text(item, "published"),
            _text(item, "target"),
            _text(item, "protocol") or "tcp",
        )
    if isinstance(item, ScalarNode):
        try:
            ports = parse_ports(item.text)
        except ValueError:
            return item.text
        if len(ports) == 1:
            port = ports[0]
            return (port.host_ip, str(port.published or ""), str(port.target), port.protocol)
        return item.text
    return id(item)


def _driver(node: Node) -> str | None:
    return (_text(node, "driver") or None) if isinstance(node, MapNode) else None


def _as_context(node: Node) -> Node:
    """``build: path`` in its long form."""
    if isinstance(node, ScalarNode):
        return MapNode({"context": node}, node.mark, {"context": node.mark})
    return node


def _as_pairs(node: Node) -> Node:
    """A list of ``NAME=value`` as a mapping."""
    if not isinstance(node, ListNode):
        return node
    entries: dict[str, Node] = {}
    marks = {}
    for item in node.items:
        if isinstance(item, ScalarNode):
            name, equals, value = item.text.partition("=")
            entries[name] = ScalarNode(value if equals else None, value, item.mark, "", item.empty_variables)
            marks[name] = item.mark
    return MapNode(entries, node.mark, marks)


def _as_names(node: Node) -> Node:
    """A list of names as a mapping of empty tables."""
    if not isinstance(node, ListNode):
        return node
    entries: dict[str, Node] = {}
    marks = {}
    for item in node.items:
        if isinstance(item, ScalarNode):
            entries[item.text] = ScalarNode(None, "", item.mark)
            marks[item.text] = item.mark
    return MapNode(entries, node.mark, marks)
