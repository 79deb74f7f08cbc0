"""DNS messages: reading queries, writing answers. Pure; never raises anything but ``MalformedMessage``.

Source: RFC 1035, RFC 6891 (EDNS), RFC 2782 (SRV is answered as "no such data").
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

TYPE_A, TYPE_PTR, TYPE_AAAA, TYPE_OPT, TYPE_ANY = 1, 12, 28, 41, 255
CLASS_IN, CLASS_ANY = 1, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
MIN_UDP_BYTES = 512
OUR_UDP_BYTES = 1232
"""What we announce to accept: fits every path without fragments."""
_MAX_UDP_BYTES = 65_507
_MAX_MESSAGE_BYTES = 65_535
_FLAG_QR, _FLAG_AA, _FLAG_TC, _FLAG_RD, _FLAG_RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_HEADER = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_POINTER_TO_QUESTION = b"\xc0\x0c"


class MalformedMessage(Exception):  # noqa: N818 - a reading's outcome, not a failure of ours
    """Raised by the codec alone: the bytes are not a DNS message that can be answered."""


@dataclass(frozen=True, slots=True)
class Query:
    """A question.

    Attributes:
        id: of the message.
        name: in lower case, without the last dot.
        kind: QTYPE.
        question: the question section as it came, so that the answer repeats its spelling.
        recursion_desired: the RD bit.
        opcode: 0 for a standard query.
        udp_limit_bytes: how large an answer by UDP may be.
        edns_version: None without EDNS.
    """

    id: int
    name: str
    kind: int
    klass: int
    question: bytes
    recursion_desired: bool
    opcode: int
    udp_limit_bytes: int
    edns_version: int | None


def parse_query(data: bytes) -> Query:
    """Read a query; MalformedMessage if it is none."""
    if len(data) < 12:
        raise MalformedMessage("shorter than a header")
    number, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    if flags & _FLAG_QR:
        raise MalformedMessage("a response, not a query")
    if questions != 1:
        raise MalformedMessage("not exactly one question")
    labels, offset = _read_plain_name(data, 12)
    if offset + 4 > len(data):
        raise MalformedMessage("the question is cut short")
    kind, klass = struct.unpack_from(">HH", data, offset)
    limit, version = MIN_UDP_BYTES, None
    end = offset + 4
    if answers or authorities or additional:
        limit, version = _find_edns(data, end, answers + authorities + additional)
    return Query(
        id=number,
        name=b".".join(labels).decode("latin-1").lower(),
        kind=kind,
        klass=klass,
        question=bytes(data[12:end]),
        recursion_desired=bool(flags & _FLAG_RD),
        opcode=flags >> 11 & 15,
        udp_limit_bytes=limit,
        edns_version=version,
    )


def _read_plain_name(data: bytes, offset: int) -> tuple[list[bytes], int]:
    """The labels of an uncompressed name (as questions have) and the offset behind it."""
    labels: list[bytes] = []
    start = offset
    while True:
        if offset >= len(data):
            raise MalformedMessage("a name is cut short")
        length = data[offset]
        if length == 0:
            return labels, offset + 1
        if length > 63:
            raise MalformedMessage("a question's name must not be compressed")
        label = bytes(data[offset + 1 : offset + 1 + length])
        if len(label) < length or b"." in label:
            raise MalformedMessage("a label is cut short or holds a dot")
        offset += 1 + length
        if offset - start > 254:
            raise MalformedMessage("a name is longer than 255 bytes")
        labels.append(label)


def _find_edns(data: bytes, offset: int, records: int) -> tuple[int, int | None]:
    """The EDNS payload size and version among the records behind the question."""
    for _ in range(records):
        offset = _skip_name(data, offset)
        if offset + 10 > len(data):
            raise MalformedMessage("a record is cut short")
        kind, klass, ttl, length = _RECORD.unpack_from(data, offset)
        offset += 10 + length
        if offset > len(data):
            raise MalformedMessage("a record's data is cut short")
        if kind == TYPE_OPT:
            return max(MIN_UDP_BYTES, min(klass, _MAX_UDP_BYTES)), ttl >> 16 & 0xFF
    return MIN_UDP_BYTES, None


def _skip_name(data: bytes, offset: int) -> int:
    while offset < len(data):
        length = data[offset]
        if length == 0:
            return offset + 1
        if length >= 0xC0:
            return offset + 2
        if length > 63:
            break
        offset += 1 + length
    raise MalformedMessage("a record's name is cut short")


@dataclass(frozen=True, slots=True)
class Records:
    """What an answer says: records of one type, all for the question's name."""

    kind: int
    data: Sequence[bytes]
    ttl_s: int


def build_answer(query: Query, rcode: int, records: Records | None = None, *, limit_bytes: int | None = None) -> bytes:
    """A response to ``query``.

    Args:
        query: what was asked.
        rcode: NOERROR, NXDOMAIN …
        records: the answer section; None for an empty one.
        limit_bytes: size allowed; None takes the query's UDP limit. Records that do not fit are left out and TC is set.
    """
    limit = query.udp_limit_bytes if limit_bytes is None else limit_bytes
    tail = b""
    if query.edns_version is not None:
        tail = b"\0" + struct.pack(">HHBBHH", TYPE_OPT, OUR_UDP_BYTES, rcode >> 4, 0, 0, 0)
    parts: list[bytes] = []
    truncated = False
    if records is not None:
        room = limit - 12 - len(query.question) - len(tail)
        for data in records.data:
            record = _POINTER_TO_QUESTION + _RECORD.pack(records.kind, CLASS_IN, records.ttl_s, len(data)) + data
            room -= len(record)
            if room < 0:
                truncated = True
                break
            parts.append(record)
    flags = _FLAG_QR | _FLAG_AA | _FLAG_RA | query.opcode << 11 | (rcode & 15)
    flags |= (_FLAG_RD if query.recursion_desired else 0) | (_FLAG_TC if truncated else 0)
    header = _HEADER.pack(query.id, flags, 1, len(parts), 0, 1 if tail else 0)
    return header + query.question + b"".join(parts) + tail


def answers_query(data: bytes, query_id: int, question: bytes) -> bool:
    """Whether ``data`` is a response to the question that was sent upstream under ``query_id``."""
    if len(data) < 12 + len(question):
        return False
    number, flags, questions, *_ = _HEADER.unpack_from(data)
    echoed = bytes(data[12 : 12 + len(question)])
    same = echoed.lower() == question.lower()
    return number == query_id and bool(flags & _FLAG_QR) and questions == 1 and same


def rcode_of(data: bytes) -> int:
    """The (basic) response code of a message of at least 12 bytes."""
    return data[3] & 15


def is_truncated(data: bytes) -> bool:
    """Whether TC is set in a message of at least 12 bytes."""
    return bool(data[2] & 2)


def with_id(data: bytes, number: int) -> bytes:
    """The message under another id."""
    return number.to_bytes(2, "big") + data[2:]


def encode_name(name: str) -> bytes:
    """A name in wire form; ValueError if a label is empty or too long."""
    wire = bytearray()
    for label in name.split("."):
        raw = label.encode("latin-1")
        if not 0 < len(raw) < 64:
            raise ValueError(f"{name!r} has a label of {len(raw)} bytes")
        wire.append(len(raw))
        wire += raw
    return bytes(wire) + b"\0"


def reverse_address(name: str) -> bytes | None:
    """The address that a name under in-addr.arpa stands for; None for any other name."""
    labels = name.split(".")
    if len(labels) != 6 or labels[4:] != ["in-addr", "arpa"]:
        return None
    octets = []
    for label in reversed(labels[:4]):
        if not (label.isascii() and label.isdigit()) or len(label) > 3 or int(label) > 255:
            return None
        octets.append(int(label))
    return bytes(octets)
