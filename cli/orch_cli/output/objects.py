"""Objects of the cluster as JSON, and as indented text for ``inspect --pretty``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.message import Message


def to_json(message: Message) -> dict[str, object]:
    """A message in protobuf's JSON form, with the field names of the contract."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def print_inspected(messages: Sequence[Message], *, pretty: bool) -> None:
    """Prints a JSON array, or with ``pretty`` indented text."""
    values = [to_json(message) for message in messages]
    if not pretty:
        print(json.dumps(values, indent=4, ensure_ascii=False))
        return
    for index, value in enumerate(values):
        if index:
            print()
        print("\n".join(_pretty(value, 0)))


def _pretty(value: object, depth: int) -> list[str]:
    lines = []
    indent = "  " * depth
    if isinstance(value, dict):
        width = max((len(str(key)) for key, item in value.items() if not isinstance(item, dict | list)), default=0)
        for key, item in value.items():
            label = str(key).replace("_", " ") if depth < 2 else str(key)
            if isinstance(item, dict | list) and item:
                lines.append(f"{indent}{label}:")
                lines.extend(_pretty(item, depth + 1))
            else:
                lines.append(f"{indent}{label + ':':<{width + 1}} {'' if item in ({}, []) else item}".rstrip())
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                inner = _pretty(item, depth + 1)
                lines.append(f"{indent}- {inner[0].strip()}" if inner else f"{indent}-")
                lines.extend(inner[1:])
            else:
                lines.append(f"{indent}- {item}")
    else:
        lines.append(f"{indent}{value}")
    return lines
