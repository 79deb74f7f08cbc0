"""BuildKit's own Dockerfile parser, which the PyPI package `dockerfile` wraps, in a process of its own.

The wrapper corrupts the memory of the interpreter after some tens of thousands of calls: a new process comes before.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

_CALLS_PER_PROCESS = 1000


class Command(NamedTuple):
    """One instruction as BuildKit reads it."""

    cmd: str
    start_line: int
    json: bool
    flags: tuple[str, ...]
    value: tuple[str, ...]


def _parse(text: str) -> list[Command]:
    import dockerfile  # noqa: PLC0415 -- in the other process alone

    return [
        Command(str(one.cmd), int(one.start_line), bool(one.json), tuple(one.flags), tuple(one.value))
        for one in dockerfile.parse_string(text)
    ]


class Oracle:
    """Parses; see the module."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def parse(self, text: str) -> list[Command]:
        """The instructions of a Dockerfile."""
        return self._pool.submit(_parse, text).result(timeout=30)


@contextmanager
def oracle() -> Iterator[Oracle]:
    """An oracle with its process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=_CALLS_PER_PROCESS) as pool:
        yield Oracle(pool)
