"""Netlink sockets: framing, attributes, batches of requests with one acknowledgement each, dumps.

Source of the layouts: linux/netlink.h. The kernel handles a netlink request inside the sender's ``sendmsg``, so
its answers are in the receive queue when the call returns: reading never waits, a missing answer is an error.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from orch_network.errors import KernelError
from orch_network.kernel.buffers import enlarge_buffers

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLM_F_ROOT_MATCH = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLM_F_DUMP_INTR = 0x10
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF

_BUFFER_BYTES = 4 << 20
_receive_buffer = bytearray(64 << 10)
"""One for all sockets of this single-threaded process; the kernel fills at most 32 KiB per dump datagram."""
_REQUESTS_PER_SEND = 128
"""An acknowledgement occupies about 800 bytes of receive buffer: this keeps far below its size."""
_DUMP_TRIES = 5
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes. ``struct.error`` above 65,531 bytes: callers split before."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + _PADDING[len(payload) & 3]


def nested(kind: int, *children: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(children))


def text(kind: int, value: str) -> bytes:
    """A string attribute with its terminating zero."""
    return attribute(kind, value.encode() + b"\0")


def parse_attributes(payload: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attributes by type, flags removed; of a repeated type the last one. A torn tail is ignored."""
    return dict(iterate_attributes(payload, offset))


def iterate_attributes(payload: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """All attributes in order, with repetitions."""
    end = len(payload)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if length < 4 or offset + length > end:
            return
        yield kind & _TYPE_MASK, payload[offset + 4 : offset + length]
        offset += (length + 3) & ~3


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the kernel.

    Attributes:
        what: the request in words, for the error.
        kind: nlmsg_type.
        flags: nlmsg_flags without REQUEST and ACK.
        body: family header and attributes.
        tolerated: errnos that count as done (EEXIST of an idempotent add, ESRCH of a removal).
    """

    what: str
    kind: int
    flags: int
    body: bytes
    tolerated: frozenset[int] = field(default=frozenset())


class NetlinkSocket:
    """A netlink socket of the namespace that was current when it was made."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            enlarge_buffers(self._socket, _BUFFER_BYTES)
        except OSError as failure:
            self._socket.close()
            raise KernelError("open a netlink socket", failure.errno or errno.EIO) from failure

    def close(self) -> None:
        """Release the socket and with it its hold on the namespace."""
        self._socket.close()

    def frame(self, request: Request, *, acknowledge: bool = True) -> tuple[int, bytes]:
        """Give ``request`` the next sequence number; returns that and the bytes."""
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        flags = request.flags | NLM_F_REQUEST | (NLM_F_ACK if acknowledge else 0)
        header = _HEADER.pack(16 + len(request.body), request.kind, flags, self._sequence, 0)
        return self._sequence, header + request.body + _PADDING[len(request.body) & 3]

    def execute(self, requests: Sequence[Request]) -> None:
        """Carry out requests in order; all are tried, the first that failed is raised."""
        failure: KernelError | None = None
        for start in range(0, len(requests), _REQUESTS_PER_SEND):
            chunk = requests[start : start + _REQUESTS_PER_SEND]
            framed = [self.frame(request) for request in chunk]
            pending = {sequence: request for (sequence, _), request in zip(framed, chunk, strict=True)}
            self.send(b"".join(data for _, data in framed), chunk[0].what)
            while pending:
                for sequence, number, detail in self.read_acknowledgements(next(iter(pending.values())).what):
                    request = pending.pop(sequence, None)
                    if request is not None and number and number not in request.tolerated and failure is None:
                        failure = KernelError(request.what, number, detail)
        if failure is not None:
            raise failure

    def send(self, data: bytes, what: str) -> None:
        """Hand bytes to the kernel."""
        try:
            self._socket.send(data)
        except OSError as failure:
            raise KernelError(what, failure.errno or errno.EIO) from failure

    def read_acknowledgements(self, what: str) -> list[tuple[int, int, str]]:
        """The acknowledgements of one datagram as (sequence, errno or 0, extended message)."""
        return [
            (sequence, *_acknowledgement(flags, body))
            for kind, flags, sequence, body in self._receive(what)
            if kind == _NLMSG_ERROR
        ]

    def drain(self) -> None:
        """Throw away whatever is queued (answers of a request that was given up)."""
        try:
            while True:
                self._socket.recv_into(_receive_buffer, 0, socket.MSG_DONTWAIT)
        except OSError:
            return

    def _receive(self, what: str) -> list[tuple[int, int, int, bytes]]:
        try:
            size = self._socket.recv_into(_receive_buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError as failure:
            raise KernelError(what, errno.ENODATA, "the kernel did not answer") from failure
        except OSError as failure:
            raise KernelError(what, failure.errno or errno.EIO) from failure
        messages = []
        offset = 0
        while offset + 16 <= size:
            length, kind, flags, sequence, _port = _HEADER.unpack_from(_receive_buffer, offset)
            if length < 16:
                break
            messages.append((kind, flags, sequence, bytes(_receive_buffer[offset + 16 : offset + length])))
            offset += (length + 3) & ~3
        return messages

    def dump(self, request: Request) -> list[bytes]:
        """The bodies of all objects that ``request`` lists; repeated when the table changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            bodies, interrupted = self._dump_once(request)
            if not interrupted:
                return bodies
        raise KernelError(request.what, errno.EINTR, f"the table changed during each of {_DUMP_TRIES} dumps")

    def _dump_once(self, request: Request) -> tuple[list[bytes], bool]:
        wanted, data = self.frame(
            Request(request.what, request.kind, request.flags | NLM_F_ROOT_MATCH, request.body), acknowledge=False
        )
        self.send(data, request.what)
        bodies: list[bytes] = []
        interrupted = False
        while True:
            for kind, flags, sequence, body in self._receive(request.what):
                if sequence != wanted:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_DONE:
                    return bodies, interrupted
                if kind == _NLMSG_ERROR:
                    number, detail = _acknowledgement(flags, body)
                    if number in request.tolerated or number == 0:
                        return bodies, interrupted
                    raise KernelError(request.what, number, detail)
                bodies.append(body)


def _acknowledgement(flags: int, body: bytes) -> tuple[int, str]:
    (number,) = struct.unpack_from("=i", body)
    detail = ""
    if flags & _NLM_F_ACK_TLVS:
        offset = 20
        if not flags & _NLM_F_CAPPED:
            (original_length,) = struct.unpack_from("=I", body, 4)
            offset = 4 + ((original_length + 3) & ~3)
        message = parse_attributes(body, offset).get(_NLMSGERR_ATTR_MSG, b"")
        detail = message.rstrip(b"\0").decode("utf-8", "replace")
    return -number, detail
