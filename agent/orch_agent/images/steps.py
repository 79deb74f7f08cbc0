"""The build cache's table: which layer a build step gave, by the digest of everything that went into the step.

Part of the store, because its layers must outlive a build without being any image's.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from orch_agent.images import files

STEPS_MAX = 1000
"""Remembered steps; the least recently used go first, and their layers with them."""
_KEY = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Step:
    """What a step gave: the stack of layers after it, and the layer it added, if any."""

    chain_id: str
    diff_id: str
    """Empty if the step changed no file; the stack is then its parent's."""
    created: str
    """When it was done, RFC 3339; a build from the cache gives the same image, down to its times."""


class StepCache:
    """One small file for each step; safe for several processes, as files are replaced whole."""

    def __init__(self, root: Path) -> None:
        """Keep the table in the existing folder `root`."""
        self._root = root

    def get(self, key: str) -> Step | None:
        """What the step `key` gave, if it is remembered; marks it as used now."""
        path = self._path(key)
        step = _read(path)
        if step:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
        return step

    def put(self, key: str, step: Step) -> None:
        """Remember a step, forgetting the least recently used beyond the bound."""
        files.write_atomically(self._path(key), json.dumps(asdict(step)).encode(), durable=False)
        by_age = sorted(self._paths(), key=_used_at)
        for path in by_age[: max(0, len(by_age) - STEPS_MAX)]:
            path.unlink(missing_ok=True)

    def records(self) -> Iterator[Step]:
        """All remembered steps."""
        for path in self._paths():
            step = _read(path)
            if step:
                yield step

    def clear(self) -> int:
        """Forget all steps; returns how many there were."""
        paths = list(self._paths())
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def _paths(self) -> Iterator[Path]:
        return (path for path in self._root.iterdir() if _KEY.match(path.name))

    def _path(self, key: str) -> Path:
        if not _KEY.match(key):
            raise ValueError(f"a step's key is 64 hexadecimal digits, not {key[:100]!r}")
        return self._root / key


def _read(path: Path) -> Step | None:
    """A step's file; an unreadable one is as good as none, as the step can be done again."""
    try:
        return Step(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _used_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
