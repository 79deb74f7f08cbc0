"""File descriptors kept by the keeper while this process is restarted.

Fd 3 is then one end of a SOCK_SEQPACKET pair (``ORCH_KEEPER_FD`` says so). The keeper first sends every fd that it
holds for us as ``{"name": N}`` with the fd, then ``{"end": true}``; we send ``put`` with an fd and ``drop``. Without a
keeper (tests, stand-alone use) nothing is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable

_WAIT_S = 5.0
_MESSAGE_BYTES = 4096


class KeeperStore:
    """Our side of the fd store."""

    def __init__(self, channel: socket.socket | None, on_loss: Callable[[Exception], None]) -> None:
        self._channel = channel
        self._on_loss = on_loss
        self._names: set[str] = set()

    @classmethod
    def from_environment(cls, on_loss: Callable[[Exception], None]) -> KeeperStore:
        """The store that the environment announces, or one that keeps nothing."""
        number = os.environ.pop("ORCH_KEEPER_FD", "")
        if not number:
            return cls(None, on_loss)
        channel = socket.socket(fileno=int(number))
        channel.set_inheritable(False)
        channel.settimeout(_WAIT_S)
        return cls(channel, on_loss)

    def receive_all(self) -> dict[str, int]:
        """The fds kept from before, by name; the caller owns them. What came before a failure is still used."""
        kept: dict[str, int] = {}
        if self._channel is None:
            return kept
        try:
            while True:
                data, fds, _flags, _address = socket.recv_fds(self._channel, _MESSAGE_BYTES, 4)
                if not data:
                    raise ConnectionResetError("the keeper closed its channel")
                message = json.loads(data)
                if message.get("end"):
                    break
                for extra in fds[1:]:
                    os.close(extra)
                if fds:
                    os.set_inheritable(fds[0], False)  # noqa: FBT003 -- the standard library's signature
                    kept[str(message["name"])] = fds[0]
        except (OSError, ValueError, KeyError) as failure:
            self._on_loss(failure)
        self._names = set(kept)
        return kept

    def fileno(self) -> int:
        """The channel's fd, which becomes readable when the keeper has died; -1 without a keeper."""
        return -1 if self._channel is None else self._channel.fileno()

    def put(self, name: str, fd: int) -> None:
        """Have a duplicate of ``fd`` kept under ``name``."""
        if self._channel is None:
            return
        self._names.add(name)
        self._send({"op": "put", "name": name}, [fd])

    def drop(self, name: str) -> None:
        """Let go of what is kept under ``name``; nothing is fine."""
        if self._channel is None or name not in self._names:
            return
        self._names.discard(name)
        self._send({"op": "drop", "name": name}, [])

    def names(self) -> set[str]:
        """What is kept at present."""
        return set(self._names)

    def _send(self, message: dict[str, str], fds: list[int]) -> None:
        assert self._channel is not None
        try:
            socket.send_fds(self._channel, [json.dumps(message).encode()], fds)
        except OSError as failure:
            # Without the keeper's copies a restart makes new sockets: slower, not wrong.
            self._on_loss(failure)
            with contextlib.suppress(OSError):
                self._channel.close()
            self._channel = None
