"""Reading JSON values with errors that name where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orch_runtime.errors import InvalidConfig

_MISSING = object()


class Reader:
    """One JSON object, at a known path; every key has to be asked for, so that unknown ones are found by `finish`."""

    def __init__(self, value: object, path: str, unknown: list[str] | None = None) -> None:
        if not isinstance(value, Mapping):
            raise InvalidConfig(path or "config", f"must be an object, not {type(value).__name__}")
        self._value: Mapping[str, Any] = value
        self._path = path
        self._asked: set[str] = set()
        # Where unknown keys are noted when they are no error: OCI config.md, "Extensibility".
        self._unknown = unknown

    @property
    def raw(self) -> Mapping[str, Any]:
        """The object itself."""
        return self._value

    def where(self, key: str) -> str:
        """Return the JSON path of a key."""
        return f"{self._path}.{key}" if self._path else key

    def fail(self, key: str, why: str) -> InvalidConfig:
        """Make the error for a key."""
        return InvalidConfig(self.where(key), why)

    def has(self, key: str) -> bool:
        """Tell whether the key is given and not null."""
        self._asked.add(key)
        return self._value.get(key) is not None

    def _get(self, key: str, kind: type | tuple[type, ...], name: str, otherwise: Any) -> Any:
        self._asked.add(key)
        value = self._value.get(key)
        if value is None:
            if otherwise is _MISSING:
                raise self.fail(key, "is required")
            return otherwise
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise self.fail(key, f"must be {name}, not {type(value).__name__}")
        return value

    def text(self, key: str, otherwise: Any = _MISSING) -> str:
        """Return a string without NUL."""
        value: str = self._get(key, str, "a string", otherwise)
        if "\0" in value:
            raise self.fail(key, "must not contain a NUL character")
        return value

    def integer(self, key: str, low: int, high: int, otherwise: Any = _MISSING) -> int:
        """Return an integer within bounds."""
        value: int = self._get(key, int, "an integer", otherwise)
        if value is not otherwise and not low <= value <= high:
            raise self.fail(key, f"must be between {low} and {high}, not {value}")
        return value

    def boolean(self, key: str, *, otherwise: bool = False) -> bool:
        """Return true or false."""
        return bool(self._get(key, bool, "true or false", otherwise))

    def texts(self, key: str, limit: int = 4096) -> list[str]:
        """Return a list of strings, empty when absent."""
        value: list[Any] = self._get(key, (list, tuple), "a list", [])
        if len(value) > limit:
            raise self.fail(key, f"has {len(value)} entries; the limit is {limit}")
        for position, entry in enumerate(value):
            if not isinstance(entry, str) or "\0" in entry:
                raise InvalidConfig(f"{self.where(key)}[{position}]", "must be a string without NUL")
        return list(value)

    def integers(self, key: str, low: int, high: int, limit: int = 65536) -> list[int]:
        """Return a list of integers within bounds, empty when absent."""
        value: list[Any] = self._get(key, (list, tuple), "a list", [])
        if len(value) > limit:
            raise self.fail(key, f"has {len(value)} entries; the limit is {limit}")
        for position, entry in enumerate(value):
            if not isinstance(entry, int) or isinstance(entry, bool) or not low <= entry <= high:
                raise self.fail(f"{key}[{position}]", f"must be a number between {low} and {high}, not {entry!r}")
        return list(value)

    def text_map(self, key: str) -> dict[str, str]:
        """Return a map of strings, empty when absent."""
        value: Mapping[str, Any] = self._get(key, Mapping, "an object", {})
        for name, entry in value.items():
            if not isinstance(entry, str):
                raise self.fail(f"{key}.{name}", "must be a string")
        return dict(value)

    def reader(self, key: str) -> Reader:
        """Return the object under key (empty when absent)."""
        return Reader(self._get(key, Mapping, "an object", {}), self.where(key), self._unknown)

    def readers(self, key: str, limit: int = 1024) -> list[Reader]:
        """Return the list of objects under key (empty when absent)."""
        value: list[Any] = self._get(key, (list, tuple), "a list", [])
        if len(value) > limit:
            raise self.fail(key, f"has {len(value)} entries; the limit is {limit}")
        return [Reader(entry, f"{self.where(key)}[{position}]", self._unknown) for position, entry in enumerate(value)]

    def ignore(self, *keys: str) -> None:
        """Accept keys that have no meaning for a runtime of this kind."""
        self._asked.update(keys)

    def note(self, key: str, what: str) -> bool:
        """Note a value that is ignored; False where such values are errors."""
        if self._unknown is None:
            return False
        self._unknown.append(f"{self.where(key)} {what}")
        return True

    def finish(self) -> None:
        """Refuse (or note) whatever was not asked for: nothing is accepted in silence."""
        for key, value in self._value.items():
            if key not in self._asked and value not in (None, [], {}, "", False):
                if self._unknown is not None:
                    self._unknown.append(self.where(key))
                    continue
                raise self.fail(key, "is not supported by this runtime")
