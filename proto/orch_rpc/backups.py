"""A backup of a cluster as a file: a mark, then the parts that a manager sent, each after its length in four bytes."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from google.protobuf.message import DecodeError

from orch_proto import control_pb2 as control
from orch_proto import defaults
from orch_rpc.errors import InvalidArgument

MARK: Final = b"orch backup 1\n"
FORMAT: Final = 1
_LENGTH: Final = struct.Struct(">I")
_LONGEST_PART: Final = 2 * 1024 * 1024
_TODO: Final = "name a whole file that orch cluster backup made"


@dataclass(frozen=True, slots=True)
class Backup:
    """A whole backup, checked.

    Attributes:
        header: what it says of itself.
        data: a snapshot of the store.
    """

    header: control.BackupHeader
    data: bytes


def write_part(stream: BinaryIO, part: control.BackupPart) -> None:
    """Appends a part; the mark comes before the first."""
    if stream.tell() == 0:
        stream.write(MARK)
    data = part.SerializeToString()
    stream.write(_LENGTH.pack(len(data)) + data)


def read_backup(stream: BinaryIO) -> Backup:
    """Reads a backup and checks that it is whole.

    Raises:
        InvalidArgument: it is none, of another format, cut or damaged.
    """
    if stream.read(len(MARK)) != MARK:
        raise _unusable("it is no backup of an orch cluster")
    header: control.BackupHeader | None = None
    pieces: list[bytes] = []
    size = 0
    while True:
        part = _next_part(stream)
        kind = part.WhichOneof("part")
        if kind == "header" and header is None:
            header = part.header
            if header.format != FORMAT:
                raise _unusable(f"it has format {header.format}, and this version of orch reads {FORMAT}")
        elif kind == "data" and header is not None:
            size += len(part.data)
            if size > defaults.BACKUP_BYTES:
                raise _unusable(f"it has more than {defaults.BACKUP_BYTES} bytes")
            pieces.append(part.data)
        elif kind == "trailer" and header is not None:
            break
        else:
            raise _unusable("its parts are not in order")
    data = b"".join(pieces)
    if part.trailer.size_bytes != len(data) or part.trailer.digest != hashlib.sha256(data).digest():
        raise _unusable("its content is not what was backed up (the digest differs)")
    if stream.read(1):
        raise _unusable("something follows its end")
    return Backup(header, data)


def _next_part(stream: BinaryIO) -> control.BackupPart:
    prefix = stream.read(_LENGTH.size)
    if len(prefix) != _LENGTH.size:
        raise _unusable("it is cut short")
    (length,) = _LENGTH.unpack(prefix)
    if length > _LONGEST_PART:
        raise _unusable("it is damaged")
    data = stream.read(length)
    if len(data) != length:
        raise _unusable("it is cut short")
    try:
        return control.BackupPart.FromString(data)
    except DecodeError as error:
        raise _unusable("it is damaged") from error


def _unusable(why: str) -> InvalidArgument:
    return InvalidArgument("cannot use the backup", why, _TODO)
