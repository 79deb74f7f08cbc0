"""The wanted state on disk: one small JSON file per object, so that a change costs the same however much is wanted.

The folder lies on a tmpfs, as namespaces and kernel tables do not survive a reboot either: a rename makes a change
atomic, and nothing is synced.
"""

# pathlib is not loaded in this small process
# ruff: noqa: PTH103, PTH104, PTH106, PTH108, PTH123, PTH208

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator

_SUFFIX = ".json"


class WantedStore:
    """Objects by kind and key. Keys are ids joined by ``+``, which no id contains."""

    def __init__(self, folder: str, on_bad_file: Callable[[str, Exception], None]) -> None:
        self._folder = folder
        self._on_bad_file = on_bad_file
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def _path(self, kind: str, key: str) -> str:
        return f"{self._folder}/{kind}+{key}{_SUFFIX}"

    def save(self, kind: str, key: str, value: object) -> None:
        """Write or replace an object."""
        path = self._path(kind, key)
        data = json.dumps(value, separators=(",", ":")).encode()
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        os.rename(f"{path}.new", path)

    def remove(self, kind: str, key: str) -> None:
        """Forget an object; one that is gone is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(kind, key))

    def load(self, kind: str) -> Iterator[object]:
        """All objects of a kind. A file that cannot be read is reported, set aside as ``*.bad`` and left out."""
        for name in sorted(os.listdir(self._folder)):
            if not (name.startswith(f"{kind}+") and name.endswith(_SUFFIX)):
                continue
            path = f"{self._folder}/{name}"
            try:
                with open(path, "rb") as file:
                    value = json.load(file)
            except (OSError, ValueError) as failure:
                self._on_bad_file(path, failure)
                with contextlib.suppress(OSError):
                    os.rename(path, f"{path}.bad")
                continue
            yield value

    def clear(self) -> None:
        """Forget everything."""
        for name in os.listdir(self._folder):
            os.unlink(f"{self._folder}/{name}")
        os.rmdir(self._folder)
