"""A segment: one preallocated file of frames, written by one life of one process.

After a restart the log goes on in a new segment, so an offset, which is the nonce of the frame that stands
there, is never written twice under one key. The header is synced before the file gets its name; a segment
with an unreadable header is therefore damaged, never torn.

    magic 8 | version 4 | key id 8 | salt 16 | segment number 8 | first sequence 8 | zeros 8 | checksum 4
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from orch_raft.errors import LogCorrupt
from orch_raft.log.files import Files, WritableFile
from orch_raft.log.frames import Fault, Frame, FrameCodec, sealed_bytes
from orch_raft.log.keys import Keyring, new_salt
from orch_raft.log.records import Batch, BatchFormatError, decode_batch, encode_batch

_HEADER = struct.Struct(">8sI8s16sQQ8xI")
HEADER_BYTES = _HEADER.size
_MAGIC = b"ORCHLOG\n"
_VERSION = 1
_PURPOSE = b"orch raft log segment"
_SUFFIX = ".log"
#: What a file is called until it is whole.
ASIDE_SUFFIX = ".tmp"

assert HEADER_BYTES % 16 == 0


@dataclass(frozen=True, slots=True)
class _Header:
    key_id: bytes
    salt: bytes
    number: int
    first_sequence: int

    def pack(self) -> bytes:
        body = _HEADER.pack(_MAGIC, _VERSION, self.key_id, self.salt, self.number, self.first_sequence, 0)[:-4]
        return body + crc32(body).to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class SegmentContents:
    """What a segment was found to hold.

    Attributes:
        batches: in order.
        end_offset: where its last frame ends.
        size_bytes: of the file, unwritten space included.
        torn: whether a write that was cut short stands after the last frame.
    """

    path: Path
    number: int
    key_id: bytes
    first_sequence: int
    batches: tuple[Batch, ...]
    end_offset: int
    size_bytes: int
    torn: bool

    @property
    def next_sequence(self) -> int:
        """Sequence number that the next frame of the log has."""
        return self.first_sequence + len(self.batches)


def segment_name(number: int) -> str:
    """File name of a segment; names sort as numbers do."""
    return f"{number:016d}{_SUFFIX}"


def segment_number(name: str) -> int | None:
    """Number in a segment's file name; None when it is not one."""
    digits = name.removesuffix(_SUFFIX)
    return int(digits) if name.endswith(_SUFFIX) and len(digits) == 16 and digits.isdigit() else None


def read_segment(files: Files, path: Path, keyring: Keyring) -> SegmentContents:
    """Read and check a whole segment. Changes nothing.

    Raises:
        LogCorrupt: something that was written whole cannot be read.
        DataKeyError: the key that decrypts it is missing.
        OSError: the file cannot be read.
    """
    raw = files.read(path)
    header = _read_header(raw, path)
    codec = FrameCodec(keyring.cipher(header.key_id, header.salt, _PURPOSE, path), header.salt)
    batches: list[Batch] = []
    offset = HEADER_BYTES
    written_end = len(raw.rstrip(b"\0"))
    while True:
        found = codec.read(raw, written_end, offset, header.first_sequence + len(batches))
        if not isinstance(found, Frame):
            break
        try:
            batches.append(decode_batch(found.plain))
        except BatchFormatError as error:
            raise LogCorrupt(path, offset, f"the record is authentic but not understood: {error}") from error
        offset = found.end_offset
    if found.fault is Fault.DAMAGED:
        raise LogCorrupt(path, offset, f"the record {found.why}")
    if found.fault is Fault.TORN and (later := codec.find_good_after(raw, offset)) is not None:
        raise LogCorrupt(path, offset, f"the record {found.why}, but a good one follows at byte {later}")
    torn = found.fault is Fault.TORN
    return SegmentContents(
        path, header.number, header.key_id, header.first_sequence, tuple(batches), offset, len(raw), torn
    )


def _read_header(raw: bytes, path: Path) -> _Header:
    if len(raw) < HEADER_BYTES:
        raise LogCorrupt(path, len(raw), "the file ends inside its header")
    magic, version, key_id, salt, number, first_sequence, checksum = _HEADER.unpack_from(raw)
    if crc32(raw[: HEADER_BYTES - 4]) != checksum or magic != _MAGIC:
        raise LogCorrupt(path, 0, "the header of the file does not match its checksum")
    if version != _VERSION:
        raise LogCorrupt(path, 8, f"it is of format {version} and this version of orch reads format {_VERSION}")
    if number != segment_number(path.name):
        raise LogCorrupt(path, 0, f"the file is segment {number} under another name")
    return _Header(key_id, salt, number, first_sequence)


class SegmentWriter:
    """Appends frames to a new segment. Every method may raise OSError, after which it must not be used."""

    def __init__(
        self, files: Files, folder: Path, keyring: Keyring, *, number: int, sequence: int, size_bytes: int
    ) -> None:
        self.number = number
        self.path = folder / segment_name(number)
        self.sequence = sequence
        self._size_bytes = size_bytes
        header = _Header(keyring.current_id, new_salt(), number, sequence)
        self._codec = FrameCodec(keyring.cipher(header.key_id, header.salt, _PURPOSE, self.path), header.salt)
        self._offset = HEADER_BYTES
        aside = self.path.with_suffix(ASIDE_SUFFIX)
        self._file: WritableFile = files.create(aside, size_bytes)
        self._file.write(0, header.pack())
        self._file.sync_data()
        files.rename(aside, self.path)
        files.sync_folder(folder)

    def has_room(self, plain_bytes: int) -> bool:
        """Whether a batch of a size fits."""
        return self._offset + sealed_bytes(plain_bytes) <= self._size_bytes

    def append(self, batch: Batch) -> int:
        """Write one batch and sync it; return its size on disk."""
        frame = self._codec.seal(encode_batch(batch), self._offset, self.sequence)
        self._file.write(self._offset, frame)
        self._file.sync_data()
        self._offset += len(frame)
        self.sequence += 1
        return len(frame)

    def finish(self) -> None:
        """Give unwritten space back and close. Not synced: reading does not depend on it."""
        self._file.truncate(self._offset)
        self._file.close()
