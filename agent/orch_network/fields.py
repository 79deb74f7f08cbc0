"""Reading typed fields out of JSON objects, with errors that name the field."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from orch_network.errors import InvalidRequest

T = TypeVar("T")

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\Z")


class Fields:
    """One JSON object being read; ``done`` refuses the keys that nobody asked for."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise InvalidRequest(f"{where}: must be an object, is {type(value).__name__}")
        self._value: Mapping[str, Any] = value
        self._where = where
        self._seen: set[str] = set()

    def _get(self, key: str, default: object = ...) -> Any:
        self._seen.add(key)
        if key in self._value:
            return self._value[key]
        if default is ...:
            raise InvalidRequest(f"{self._where}: {key} is missing")
        return default

    def text(self, key: str, default: object = ...) -> str:
        """A string of at most 4096 characters."""
        value = self._get(key, default)
        if not isinstance(value, str) or len(value) > 4096:
            raise InvalidRequest(f"{self._where}: {key} must be a string of at most 4096 characters")
        return value

    def identifier(self, key: str) -> str:
        """An id: letters, digits, ``_ . -``, at most 100, not beginning with a dot or dash (it becomes a file name)."""
        value = self.text(key)
        if not _ID.match(value):
            raise InvalidRequest(
                f"{self._where}: {key} {value[:120]!r} is not an id of 1 to 100 letters, digits, _ . -"
            )
        return value

    def optional_identifier(self, key: str) -> str:
        """An id or the empty string."""
        return self.identifier(key) if self.text(key, "") else ""

    def name(self, key: str) -> str:
        """A name that can stand in the DNS."""
        return check_name(self.text(key), f"{self._where}: {key}")

    def names(self, key: str, limit: int) -> tuple[str, ...]:
        """A list of DNS names, possibly missing."""
        return tuple(
            check_name(value, f"{self._where}: {key}[{index}]")
            for index, value in enumerate(self._list(key, limit, ()))
        )

    def integer(self, key: str, low: int, high: int, default: object = ...) -> int:
        """An integer in a range."""
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidRequest(f"{self._where}: {key} must be an integer from {low} to {high}, is {value!r}"[:300])
        return value

    def boolean(self, key: str, default: object = ...) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise InvalidRequest(f"{self._where}: {key} must be true or false")
        return value

    def objects(self, key: str, limit: int, read: Callable[[object, str], T]) -> tuple[T, ...]:
        """A list, each element read by ``read(element, where)``."""
        values = self._list(key, limit)
        return tuple(read(value, f"{self._where}: {key}[{index}]") for index, value in enumerate(values))

    def value(self, key: str, read: Callable[[object, str], T]) -> T:
        """An object read by ``read(value, where)``."""
        return read(self._get(key), f"{self._where}: {key}")

    def _list(self, key: str, limit: int, default: object = ...) -> list[Any]:
        value = self._get(key, default)
        if not isinstance(value, (list, tuple)):
            raise InvalidRequest(f"{self._where}: {key} must be a list")
        if len(value) > limit:
            raise InvalidRequest(f"{self._where}: {key} has {len(value)} elements; at most {limit} are allowed")
        return list(value)

    def done(self) -> None:
        """Refuse unknown keys: nothing is accepted in silence."""
        unknown = sorted(set(self._value) - self._seen)
        if unknown:
            raise InvalidRequest(f"{self._where}: unknown key {str(unknown[0])[:80]!r}")


def check_name(value: object, where: str) -> str:
    """A DNS name of at most 253 characters in labels of at most 63 (underscores allowed, as in stack names)."""
    if not isinstance(value, str) or not _NAME.match(value) or any(not 0 < len(part) < 64 for part in value.split(".")):
        raise InvalidRequest(
            f"{where}: {str(value)[:80]!r} cannot be a DNS name (labels of 1 to 63 letters, digits, - _)"
        )
    return value
