"""Snapshots on disk: written aside in encrypted chunks, synced, then renamed.

    header: magic 8 | version 4 | key id 8 | salt 16 | index 8 | term 8 | checksum 4
    chunk 0 holds the membership, the others the state: length 4 | checksum 4 | ciphertext and tag
    the last chunk has the top bit of its length set

A chunk's number is its nonce; number, index, term and whether it is the last are authenticated with it, so that
chunks can be neither moved nor dropped unseen.
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from zlib import crc32

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orch_raft.engine import SnapshotWriter
from orch_raft.errors import DurabilityLost, SnapshotCorrupt
from orch_raft.log.files import Files, WritableFile
from orch_raft.log.keys import Keyring, new_salt
from orch_raft.membership import Membership

_HEADER = struct.Struct(">8sI8s16sQQ")
_HEADER_BYTES = _HEADER.size + 4
_MAGIC = b"ORCHSNP\n"
_VERSION = 1
_PURPOSE = b"orch raft snapshot"
_CHUNK = struct.Struct(">II")
_LAST = 1 << 31
_NONCE = struct.Struct(">4xQ")
_CONTEXT = struct.Struct(">QQQB")
_SUFFIX = ".snap"
_ASIDE_SUFFIX = ".tmp"
#: Bounds what a damaged length can make a reader allocate.
_MAX_CHUNK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """What a snapshot covers: every entry up to `index`, which is of `term`."""

    index: int
    term: int
    membership: Membership


def _name(term: int, index: int) -> str:
    return f"{term:016x}-{index:016x}{_SUFFIX}"


def _context(index: int, term: int, number: int, *, last: bool) -> bytes:
    return _CONTEXT.pack(index, term, number, last)


class _ChunkWriter(io.RawIOBase):
    """A stream that encrypts what is written to it into chunks of a file."""

    def __init__(self, file: WritableFile, cipher: AESGCM, meta: SnapshotMeta, offset: int, chunk_bytes: int) -> None:
        super().__init__()
        self._file = file
        self._cipher = cipher
        self._meta = meta
        self._chunk_bytes = chunk_bytes
        self._pending = bytearray()
        self._number = 0
        self.offset = offset

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # the base class takes any buffer
        self._pending += data
        while len(self._pending) > self._chunk_bytes:
            self.put(bytes(self._pending[: self._chunk_bytes]), last=False)
            del self._pending[: self._chunk_bytes]
        return len(data)

    def put(self, plain: bytes, *, last: bool) -> None:
        """Write one chunk."""
        context = _context(self._meta.index, self._meta.term, self._number, last=last)
        sealed = self._cipher.encrypt(_NONCE.pack(self._number), plain, context)
        length = len(sealed) | (_LAST if last else 0)
        self._file.write(self.offset, _CHUNK.pack(length, crc32(sealed, length)) + sealed)
        self.offset += _CHUNK.size + len(sealed)
        self._number += 1

    def finish(self) -> None:
        """Write the last chunk, which may be empty."""
        self.put(bytes(self._pending), last=True)
        self._pending.clear()


class _ChunkReader(io.RawIOBase):
    """A stream of the state in a snapshot. Raises SnapshotCorrupt in the middle of reading."""

    def __init__(self, files: Files, path: Path, cipher: AESGCM, index: int, term: int) -> None:
        super().__init__()
        self._files = files
        self._path = path
        self._cipher = cipher
        self._index = index
        self._term = term
        self._number = 0
        self._offset = _HEADER_BYTES
        self._ready = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # the base class takes any buffer
        while not self._ready and not self._ended:
            self._ready = memoryview(self.take())
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def take(self) -> bytes:
        """The plain bytes of the next chunk."""
        head = self._files.read(self._path, self._offset, _CHUNK.size)
        if len(head) < _CHUNK.size:
            raise SnapshotCorrupt(self._path, self._offset, "the file ends before its last chunk")
        length, checksum = _CHUNK.unpack(head)
        last, size = bool(length & _LAST), length & ~_LAST
        sealed = b"" if size > _MAX_CHUNK_BYTES else self._files.read(self._path, self._offset + _CHUNK.size, size)
        if len(sealed) != size or crc32(sealed, length) != checksum:
            raise SnapshotCorrupt(self._path, self._offset, f"chunk {self._number} does not match its checksum")
        context = _context(self._index, self._term, self._number, last=last)
        try:
            plain = self._cipher.decrypt(_NONCE.pack(self._number), sealed, context)
        except InvalidTag:
            raise SnapshotCorrupt(self._path, self._offset, f"chunk {self._number} was altered or moved") from None
        self._offset += _CHUNK.size + size
        self._number += 1
        self._ended = last
        return plain


class SnapshotFolder:
    """The snapshots in one folder, of which the newest counts."""

    def __init__(self, files: Files, folder: Path, keyring: Keyring, chunk_bytes: int) -> None:
        self._files = files
        self._folder = folder
        self._keyring = keyring
        self._chunk_bytes = chunk_bytes

    def is_empty(self) -> bool:
        """Whether there is no snapshot."""
        return not self._names()

    def save(self, meta: SnapshotMeta, write_state: SnapshotWriter) -> int:
        """Write a snapshot, and when it is safe on disk remove the older ones; return its size in bytes.

        Raises:
            DurabilityLost: the disk refused.
        """
        path = self._folder / _name(meta.term, meta.index)
        aside = path.with_suffix(_ASIDE_SUFFIX)
        try:
            if aside.name in self._files.list(self._folder):
                self._files.remove(aside)
            size_bytes = self._write(aside, path, meta, write_state)
            self._files.rename(aside, path)
            self._files.sync_folder(self._folder)
            for name in self._names():
                if name < path.name:
                    self._files.remove(self._folder / name)
        except OSError as error:
            raise DurabilityLost(f"write the snapshot {path}", error) from error
        return size_bytes

    def open_latest(self) -> tuple[SnapshotMeta, BinaryIO]:
        """The newest snapshot, of which there must be one: what it covers, and a stream of its state.

        Raises:
            SnapshotCorrupt: it cannot be read; reading the stream may raise it too.
            DataKeyError: a key is missing.
            OSError: the disk refused.
        """
        names = self._names()
        path = self._folder / names[-1]
        raw = self._files.read(path, 0, _HEADER_BYTES)
        if len(raw) < _HEADER_BYTES or crc32(raw[: _HEADER.size]) != int.from_bytes(raw[_HEADER.size :], "big"):
            raise SnapshotCorrupt(path, 0, "its header does not match its checksum")
        magic, version, key_id, salt, index, term = _HEADER.unpack_from(raw)
        if magic != _MAGIC or version != _VERSION:
            raise SnapshotCorrupt(path, 0, f"it is of format {version}; this version of orch reads format {_VERSION}")
        if names[-1] != _name(term, index):
            raise SnapshotCorrupt(path, 0, "it is another snapshot under this name")
        reader = _ChunkReader(self._files, path, self._keyring.cipher(key_id, salt, _PURPOSE, path), index, term)
        try:
            membership = Membership.from_bytes(reader.take())
        except ValueError as error:
            raise SnapshotCorrupt(path, _HEADER_BYTES, str(error)) from error
        return SnapshotMeta(index, term, membership), cast("BinaryIO", io.BufferedReader(reader, self._chunk_bytes))

    def remove_leftovers(self) -> None:
        """Remove snapshots that never got their name, and all but the newest."""
        for name in self._files.list(self._folder):
            if name.endswith(_ASIDE_SUFFIX):
                self._files.remove(self._folder / name)
        for name in self._names()[:-1]:
            self._files.remove(self._folder / name)

    def _names(self) -> list[str]:
        return [name for name in self._files.list(self._folder) if name.endswith(_SUFFIX)]

    def _write(self, aside: Path, path: Path, meta: SnapshotMeta, write_state: SnapshotWriter) -> int:
        membership = meta.membership.to_bytes()
        salt = new_salt()
        key_id = self._keyring.current_id
        header = _HEADER.pack(_MAGIC, _VERSION, key_id, salt, meta.index, meta.term)
        file = self._files.create(aside)
        try:
            file.write(0, header + crc32(header).to_bytes(4, "big"))
            cipher = self._keyring.cipher(key_id, salt, _PURPOSE, path)
            chunks = _ChunkWriter(file, cipher, meta, _HEADER_BYTES, self._chunk_bytes)
            chunks.put(membership, last=False)
            write_state(cast("BinaryIO", chunks))
            chunks.finish()
            file.sync_data()
        finally:
            file.close()
        return chunks.offset
