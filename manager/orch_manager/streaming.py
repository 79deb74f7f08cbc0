"""What the library's type information lacks."""

from __future__ import annotations

from typing import Any, Final

import grpc.aio

#: What `context.read()` gives when the other side has said its last word.
END_OF_STREAM: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
