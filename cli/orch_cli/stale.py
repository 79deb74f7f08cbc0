"""``orch --stale``: reads that a manager answers from what it knows, also while there is no leader."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import grpc.aio

STALE_VARIABLE: Final = "ORCH_STALE"
_METADATA: Final = (("orch-stale", "1"),)


def wants_stale() -> bool:
    """Whether ``--stale`` was given, or the environment asks for it."""
    return os.environ.get(STALE_VARIABLE, "") not in ("", "0")


class StaleChannel:
    """A channel whose reads need not be current. Writes are not changed by it.

    Args:
        channel: does the work.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """See `grpc.aio.Channel`."""
        return _marked(self._channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """See `grpc.aio.Channel`."""
        return _marked(self._channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._channel.stream_unary(*arguments, **options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._channel.stream_stream(*arguments, **options)


def _marked(call: Callable[..., Any]) -> Callable[..., Any]:
    def marked(request: Any, **options: Any) -> Any:
        return call(request, metadata=_METADATA, **options)

    return marked
