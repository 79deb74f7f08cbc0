"""The keeper's channel: a SOCK_SEQPACKET pair (descriptor 3) on which a ward keeps descriptors over its own death.

Messages are JSON, one per packet. Ward to keeper: {"op":"put","name":N} with one or more descriptors (SCM_RIGHTS) and
{"op":"drop","name":N}. Keeper to ward, at its start: {"name":N} with its descriptors for each stored name, then
{"end":true}. Names belong to the ward; a second put of a name replaces the first.

The runtime's supervisor has three more: keeper to ward {"op":"exits"} (the exit journal grew), ward to keeper
{"op":"consumed","offset":BYTES} and {"op":"shutdown"}.
"""

from __future__ import annotations

import array
import json
import os
import socket

MAX_MESSAGE_BYTES = 4096
MAX_DESCRIPTORS = 8
CHANNEL_FD = 3
CHANNEL_VARIABLE = "ORCH_KEEPER_FD"


def send(
    channel: socket.socket, message: dict[str, object], descriptors: list[int] | None = None, flags: int = 0
) -> None:
    """Send one message with descriptors."""
    data = json.dumps(message).encode()
    if descriptors:
        channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))], flags)
    else:
        channel.send(data, flags)


def receive(channel: socket.socket, flags: int = 0) -> tuple[dict[str, object] | None, list[int]]:
    """Receive one message; (None, []) at end of file. Descriptors are close-on-exec."""
    data, ancillary, _, _ = channel.recvmsg(MAX_MESSAGE_BYTES, 256, socket.MSG_CMSG_CLOEXEC | flags)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % 4])
    return (json.loads(data) if data else None), list(descriptors)


class FdStore:
    """A ward's side of the channel."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.restored: dict[str, list[int]] = {}

    @classmethod
    def inherited(cls) -> FdStore | None:
        """Take over descriptor 3 if the environment says that it is the channel, and read what was stored."""
        number = os.environ.pop(CHANNEL_VARIABLE, "")
        if not number:
            return None
        store = cls(socket.socket(fileno=int(number)))
        os.set_inheritable(store.channel.fileno(), False)
        while True:
            message, descriptors = receive(store.channel)
            if message is None or message.get("end"):
                return store
            store.restored[str(message["name"])] = descriptors

    def put(self, name: str, descriptors: list[int]) -> None:
        """Keep copies of the descriptors under name."""
        send(self.channel, {"op": "put", "name": name}, descriptors)

    def drop(self, name: str) -> None:
        """Forget a name."""
        send(self.channel, {"op": "drop", "name": name})
