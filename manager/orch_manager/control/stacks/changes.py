"""Comparing specifications: which fields differ, and whether that replaces tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from orch_proto.control_pb2 import FieldChange

#: Fields of a service that tasks are made from; placement alone keeps tasks whose node still fits.
_TASK_FIELDS: Final = ("task.", "endpoint.ports", "endpoint.mode")
_NO_RESTART: Final = ("task.placement",)
#: Values that must not be shown: an environment often holds passwords.
_HIDDEN: Final = ("task.container.env", "data")
_LONGEST_VALUE: Final = 200


def restarts_tasks(path: str) -> bool:
    """True when a change of this field of a service replaces its tasks."""
    return path.startswith(_TASK_FIELDS) and not path.startswith(_NO_RESTART)


def field_changes(old: Message, new: Message) -> list[FieldChange]:
    """Every field that differs, by its path; values are shortened, and hidden where they may be secret."""
    return [
        FieldChange(
            path=path,
            old_value=_shown(path, before),
            new_value=_shown(path, after),
            restarts_tasks=restarts_tasks(path),
        )
        for path, before, after in _differences("", old, new)
    ]


def _shown(path: str, value: object) -> str:
    text = str(value).strip().replace("\n", " ")
    if text and path.startswith(_HIDDEN):
        return "(hidden)"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _differences(prefix: str, old: Message, new: Message) -> Iterator[tuple[str, object, object]]:
    for field in old.DESCRIPTOR.fields:
        path = f"{prefix}{field.name}"
        before, after = getattr(old, field.name), getattr(new, field.name)
        if _is_map(field):
            yield from _map_differences(path, dict(before), dict(after))
        elif field.is_repeated:
            yield from _list_differences(path, list(before), list(after))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if old.HasField(field.name) or new.HasField(field.name):
                yield from _differences(f"{path}.", before, after)
        elif before != after:
            yield path, _word(field, before), _word(field, after)


def _is_map(field: Any) -> bool:
    return bool(field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry)


def _word(field: Any, value: Any) -> object:
    if field.type == FieldDescriptor.TYPE_ENUM and field.enum_type is not None:
        return field.enum_type.values_by_number[value].name.lower()
    return value


def _map_differences(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, object, object]]:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{path}[{key}]", old.get(key, ""), new.get(key, "")


def _list_differences(path: str, old: list[Any], new: list[Any]) -> Iterator[tuple[str, object, object]]:
    if path.endswith(".env"):
        yield from _map_differences(path, _pairs(old), _pairs(new))
        return
    for index in range(max(len(old), len(new))):
        before = old[index] if index < len(old) else ""
        after = new[index] if index < len(new) else ""
        if before != after:
            yield f"{path}[{index}]", before, after


def _pairs(entries: list[str]) -> dict[str, str]:
    return {entry.partition("=")[0]: entry.partition("=")[2] for entry in entries}
