"""A plan as text: what would be made, changed, replaced, removed, and where tasks would run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orch_cli.output.listing import cut
from orch_proto.control_pb2 import (
    CHANGE_KIND_CREATE,
    CHANGE_KIND_NONE,
    CHANGE_KIND_REMOVE,
    CHANGE_KIND_REPLACE,
    CHANGE_KIND_UPDATE,
)
from orch_proto.types_pb2 import ObjectKind

if TYPE_CHECKING:
    from orch_proto.control_pb2 import PlanStackResponse

_MARKS: Final = {
    CHANGE_KIND_CREATE: ("+", "create"),
    CHANGE_KIND_UPDATE: ("~", "change in place"),
    CHANGE_KIND_REPLACE: ("±", "replace the tasks"),
    CHANGE_KIND_REMOVE: ("-", "remove"),
}
_VALUE_LENGTH: Final = 60


def format_plan(name: str, answer: PlanStackResponse) -> list[str]:
    """The plan's lines."""
    lines = []
    changes = [change for change in answer.changes if change.change != CHANGE_KIND_NONE]
    for change in changes:
        mark, word = _MARKS.get(change.change, ("?", "change"))
        kind = ObjectKind.Name(change.kind).removeprefix("OBJECT_KIND_").lower()
        lines.append(f"{mark} {kind} {change.name}: {word}")
        for field in change.fields:
            old, new = cut(field.old_value, _VALUE_LENGTH), cut(field.new_value, _VALUE_LENGTH)
            suffix = "  (restarts tasks)" if field.restarts_tasks else ""
            lines.append(f"    {field.path}: {old or '(none)'} -> {new or '(none)'}{suffix}")
    if not changes:
        lines.append(f"Nothing would change in stack {name}")
    for placement in answer.placements:
        where = ", ".join(f"{node} {count}" for node, count in sorted(placement.by_node.items()))
        line = f"  {placement.service_name}: {placement.placed} placed{f' ({where})' if where else ''}"
        if placement.unplaced:
            line += f", {placement.unplaced} without a place: {placement.explanation}"
        lines.append(line)
    return lines
