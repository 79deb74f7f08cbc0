"""The store's part of a snapshot: a StoreSnapshotHeader, then every object, each after its length in four bytes."""

import struct
from collections.abc import Callable, Sequence
from typing import BinaryIO

from google.protobuf.message import DecodeError

from orch_manager.store.errors import SnapshotUnreadable
from orch_manager.store.schema import SCHEMA_VERSION, StoreObject, unwrap, wrap
from orch_manager.store.tables import State
from orch_proto.objects_pb2 import Object, StoreSnapshotHeader

_LENGTH = struct.Struct(">I")
#: An object is at most one transaction, which is bounded far below this.
_MAX_OBJECT_BYTES = 16 * 1024 * 1024


def snapshot_writer(state: State, applied_index: int) -> Callable[[BinaryIO], None]:
    """Take a view of the state now; return what writes it out, which may run in another thread.

    Objects are never edited, so a list of them is a consistent view.
    """
    items: list[StoreObject] = [item for table in state.tables.values() for item in table.objects.values()]

    def write(stream: BinaryIO) -> None:
        header = StoreSnapshotHeader(
            schema_version=SCHEMA_VERSION, applied_index=applied_index, object_count=len(items)
        )
        _put(stream, header.SerializeToString())
        for item in items:
            wrapper = Object()
            wrap(item, wrapper)
            _put(stream, wrapper.SerializeToString())

    return write


def read_snapshot(stream: BinaryIO) -> tuple[int, Sequence[StoreObject]]:
    """Read a snapshot: the index it was taken at, and its objects.

    Raises:
        SnapshotUnreadable: it is of a newer version, or incomplete.
    """
    try:
        header = StoreSnapshotHeader.FromString(_take(stream))
        if header.schema_version > SCHEMA_VERSION:
            raise SnapshotUnreadable(
                f"it is of schema version {header.schema_version}, and this version of orch reads {SCHEMA_VERSION}"
            )
        items = [unwrap(Object.FromString(_take(stream))) for _ in range(header.object_count)]
    except (DecodeError, ValueError) as error:
        raise SnapshotUnreadable(str(error)) from error
    if stream.read(1):
        raise SnapshotUnreadable(f"bytes follow its {header.object_count} objects")
    return header.applied_index, items


def _put(stream: BinaryIO, data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)) + data)


def _take(stream: BinaryIO) -> bytes:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise ValueError("it ends early")
    (size,) = _LENGTH.unpack(head)
    data = stream.read(size) if size <= _MAX_OBJECT_BYTES else b""
    if len(data) != size:
        raise ValueError("it ends early, or an object's length is absurd")
    return data
