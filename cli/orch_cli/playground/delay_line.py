"""Carries the frames of slow nodes between their cables and the switch, each a while later.

Runs as a process of its own inside the switch: ``python -m orch_cli.playground.delay_line NODE=DELAY_MS,JITTER_MS …``.
The kernels of many machines cannot delay packets themselves (netem is an option of theirs), so this is done here, on
all machines alike. It says ``ready`` when its taps stand, and runs until it is killed; its taps go with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final

#: Frames in flight one way; more are lost, as in a switch whose memory is full.
MOST_FRAMES: Final = 20_000
_LARGEST_FRAME_BYTES: Final = 66 * 1024
_FRAMES_PER_TURN: Final = 64

# include/uapi/linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
# include/uapi/linux/if_packet.h, if_ether.h
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_VNET_HDR: Final = 15
_PACKET_IGNORE_OUTGOING: Final = 23
_PACKET_MR_PROMISC: Final = 1
_SOL_PACKET: Final = 263
_ETH_P_ALL: Final = 3


def tap_name(node: str) -> str:
    """The interface by which a slow node's frames reach the bridge."""
    return f"late-{node}"


class Way:
    """One direction of a node's cable: frames leave in the order they came, each when it is due.

    Args:
        send: carries a frame on.
        delay_s: how late each is, at least.
        jitter_s: and at most so much later still.
        chance: where the jitter comes from.
    """

    def __init__(self, send: Callable[[bytes], object], delay_s: float, jitter_s: float, chance: random.Random) -> None:
        self._send = send
        self._delay_s = delay_s
        self._jitter_s = jitter_s
        self._chance = chance
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._last_due_s = 0.0

    def take(self, frame: bytes, now_s: float) -> None:
        """A frame came in."""
        if len(self._waiting) < MOST_FRAMES:
            due_s = now_s + self._delay_s + self._jitter_s * self._chance.random()
            self._last_due_s = max(due_s, self._last_due_s)
            self._waiting.append((self._last_due_s, frame))

    def let_go(self, now_s: float) -> None:
        """Sends what is due; what the other end cannot take is lost."""
        while self._waiting and self._waiting[0][0] <= now_s:
            with contextlib.suppress(OSError):
                self._send(self._waiting.popleft()[1])

    @property
    def next_due_s(self) -> float | None:
        """When the next frame is due."""
        return self._waiting[0][0] if self._waiting else None


def open_tap(name: str) -> int:
    """A tap whose frames carry the kernel's notes on unfinished checksums, as those of the cable do."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    return tap


def open_cable(port: str) -> socket.socket:
    """A socket that sends and receives the frames of a node's cable."""
    cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    cable.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    cable.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    cable.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    request = struct.pack("iHH8s", socket.if_nametoindex(port), _PACKET_MR_PROMISC, 0, b"")
    cable.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
    cable.bind((port, _ETH_P_ALL))
    return cable


def serve(nodes: dict[str, tuple[float, float]]) -> None:
    """Carries frames until the process is ended.

    Args:
        nodes: delay and jitter in seconds, by the name of the node's port.
    """
    chance = random.Random()  # noqa: S311 - delays are no secret
    poll = select.epoll()
    inputs: dict[int, tuple[Callable[[], bytes], Way]] = {}
    kept: list[socket.socket] = []
    for port, (delay_s, jitter_s) in nodes.items():
        tap, cable = open_tap(tap_name(port)), open_cable(port)
        kept.append(cable)
        outward = Way(lambda frame, tap=tap: os.write(tap, frame), delay_s, jitter_s, chance)  # type: ignore[misc]
        inward = Way(cable.send, delay_s, jitter_s, chance)
        inputs[cable.fileno()] = (lambda cable=cable: cable.recv(_LARGEST_FRAME_BYTES), outward)  # type: ignore[misc]
        inputs[tap] = (lambda tap=tap: os.read(tap, _LARGEST_FRAME_BYTES), inward)  # type: ignore[misc]
    for number in inputs:
        poll.register(number, select.EPOLLIN)
    print("ready", flush=True)
    ways = [way for _, way in inputs.values()]
    while True:
        due = [way.next_due_s for way in ways if way.next_due_s is not None]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else -1.0
        for number, event in poll.poll(wait_s):
            receive, way = inputs[number]
            if not _take_some(receive, way) or event & (select.EPOLLERR | select.EPOLLHUP):
                poll.unregister(number)  # the node was switched off, and its cable with it
        now_s = time.monotonic()
        for way in ways:
            way.let_go(now_s)


def _take_some(receive: Callable[[], bytes], way: Way) -> bool:
    """Takes what is there, but not for ever; False when the interface is gone."""
    try:
        for _ in range(_FRAMES_PER_TURN):
            way.take(receive(), time.monotonic())
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def main() -> None:
    """The entry point of the process."""
    nodes = {}
    for word in sys.argv[1:]:
        port, _, times = word.partition("=")
        delay_ms, jitter_ms = (float(part) for part in times.split(","))
        nodes[port] = (delay_ms / 1000, jitter_ms / 1000)
    serve(nodes)


if __name__ == "__main__":
    main()
