"""Tells whoever answers a call whether the store was written for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Writes:
    """Of one call.

    Attributes:
        any: something was committed for it.
    """

    any: bool = False


_of_this_call: ContextVar[Writes | None] = ContextVar("writes", default=None)


@contextmanager
def observed_writes() -> Iterator[Writes]:
    """Notices what is written in this context, and in the tasks that are made from it."""
    writes = Writes()
    token = _of_this_call.set(writes)
    try:
        yield writes
    finally:
        _of_this_call.reset(token)


def note_write() -> None:
    """The store was written in this context."""
    writes = _of_this_call.get()
    if writes is not None:
        writes.any = True
