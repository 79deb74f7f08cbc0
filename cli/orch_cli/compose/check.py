"""Whether a file's keys are known and its values have the right form, by the table in ``attributes``.

Runs on each file before files are merged, so that every message names the line that the user wrote.
"""

from __future__ import annotations

from orch_cli.compose.attributes import TOP, Attribute, Shape, Support, Table, find
from orch_cli.compose.nodes import ListNode, MapNode, Mark, Node, ScalarNode, describe, is_null
from orch_cli.compose.report import Report, nearest

_WORDS = {
    Shape.SCALAR: "a single value",
    Shape.LIST: "a list",
    Shape.PAIRS: "a mapping of names to values",
    Shape.TABLE: "a mapping",
    Shape.NAMED: "a mapping of names",
    Shape.ENTRIES: "a list of mappings",
}


def check_file(root: MapNode, report: Report) -> None:
    """Reports every unknown or unsupported key and every value of a wrong form."""
    if "services" not in root.entries:
        services = [
            key
            for key, value in root.entries.items()
            if isinstance(value, MapNode) and {"image", "build"} & value.entries.keys()
        ]
        why = "this looks like the old form without `services:`" if services else "a stack is made of services"
        report.error(root.mark, "", "`services:` is missing", why, "put the services below `services:`")
        if services:
            return
    check_table(root, TOP, "", report)


def check_table(node: MapNode, table: Table, path: str, report: Report) -> None:
    """Checks the keys of one mapping and what stands below them."""
    for key, value in node.entries.items():
        where = f"{path}.{key}" if path else key
        attribute = find(table, key)
        mark = node.mark_of(key)
        if attribute is None:
            known = [name for name in table if name != "x-"]
            hint = nearest(key, known) or ("remove it" if len(known) > 12 else f"known keys: {', '.join(known)}")
            report.error(mark, where, "the key is unknown", "Compose has no such attribute here", hint)
            continue
        if _decide(attribute, value, where, mark, report) and not is_null(value):
            check_shape(value, attribute, where, mark, report)


def _decide(attribute: Attribute, value: Node, path: str, mark: Mark, report: Report) -> bool:
    """Applies the row's decision; returns whether the value is to be looked at."""
    harmless = isinstance(value, ScalarNode) and value.value in (None, False)
    if attribute.support is Support.NOT_YET:
        if not harmless:
            report.error(
                mark,
                path,
                "not supported yet",
                "orch would have to ignore it, and does not do so in silence",
                attribute.note or "remove it",
            )
        return False
    if attribute.support is Support.REFUSED:
        if not harmless:
            report.error(mark, path, "not supported", "", attribute.note)
        return False
    if attribute.support is Support.WARNED:
        report.warn(mark, path, "has no effect", attribute.note)
    return attribute.shape is not Shape.ANY


def check_shape(node: Node, attribute: Attribute, path: str, mark: Mark, report: Report) -> None:
    """Checks the form of one value that is not null."""
    shape = attribute.shape
    if Shape.ANY in shape:
        return
    if isinstance(node, ScalarNode):
        if Shape.SCALAR not in shape:
            _wrong(node, shape, path, mark, report)
    elif isinstance(node, ListNode):
        _check_list(node, attribute, path, mark, report)
    else:
        _check_mapping(node, attribute, path, mark, report)


def _check_list(node: ListNode, attribute: Attribute, path: str, mark: Mark, report: Report) -> None:
    shape = attribute.shape
    if not shape & (Shape.LIST | Shape.ENTRIES):
        _wrong(node, shape, path, mark, report)
        return
    for index, item in enumerate(node.items):
        where = f"{path}[{index}]"
        if isinstance(item, MapNode) and Shape.ENTRIES in shape and attribute.children is not None:
            check_table(item, attribute.children, where, report)
        elif not isinstance(item, ScalarNode) or Shape.LIST not in shape or item.value is None:
            hint = "quote it when it holds `: `" if isinstance(item, MapNode) else ""
            wanted = "a single value" if Shape.LIST in shape else "a mapping"
            report.error(item.mark, where, f"{wanted} is needed", f"this is {describe(item)}", hint)


def _check_mapping(node: MapNode, attribute: Attribute, path: str, mark: Mark, report: Report) -> None:
    shape, children = attribute.shape, attribute.children
    if Shape.TABLE in shape and children is not None:
        check_table(node, children, path, report)
        return
    if not shape & (Shape.PAIRS | Shape.NAMED):
        _wrong(node, shape, path, mark, report)
        return
    for key, value in node.entries.items():
        where = f"{path}.{key}"
        if isinstance(value, MapNode) and Shape.NAMED in shape and children is not None:
            check_table(value, children, where, report)
        elif (isinstance(value, ScalarNode) and (Shape.PAIRS in shape or value.value is None)) or key.startswith("x-"):
            continue
        else:
            wanted = "a single value" if Shape.PAIRS in shape else "a mapping"
            report.error(node.mark_of(key), where, f"{wanted} is needed", f"this is {describe(value)}")


def _wrong(node: Node, shape: Shape, path: str, mark: Mark, report: Report) -> None:
    wanted = " or ".join(_WORDS[single] for single in Shape if single in shape and single in _WORDS)
    report.error(mark, path, f"{wanted} is needed", f"this is {describe(node)}", _empty_hint(node))


def _empty_hint(node: Node) -> str:
    if isinstance(node, ScalarNode) and node.empty_variables:
        return f"the variable {node.empty_variables[0]} is not set"
    return ""
