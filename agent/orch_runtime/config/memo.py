"""Remembers what equal parts of configs were compiled to: the tasks of a service differ in little but their names."""

from __future__ import annotations

import marshal
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_MOST = 256
_known: dict[tuple[str, bytes], bytes] = {}


def remembered(part: str, value: object, compile_it: Callable[[], _T]) -> _T:
    """Return what `compile_it` makes of `value`, or a fresh copy of what it made of an equal one before.

    `part` names the kind of value. What `compile_it` raises is not remembered, nor is a value that is not plain JSON;
    the result must depend on the value alone, and be plain JSON as well. Types count: True is not 1 here.
    """
    try:
        key = (part, marshal.dumps(value, 2))  # type: ignore[arg-type]  # what cannot be written raises
    except ValueError:
        return compile_it()
    known = _known.get(key)
    if known is None:
        made = compile_it()
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = marshal.dumps(made, 2)  # type: ignore[arg-type]  # as promised above
        return made
    copy: _T = marshal.loads(known)  # noqa: S302 -- written by this process a moment ago
    return copy
