"""Snapshots on disk: written aside in encrypted chunks, synced, then renamed.

    header: magic 8 | version 4 | key id 8 | salt 16 | index 8 | term 8 | checksum 4
    chunk 0 holds the membership, the others the state: length 4 | checksum 4 | ciphertext and tag
    the last chunk has the top bit of its length set

A snapshot that the leader sends is written in the same form under a name of its own (`.received`), whole and synced;
it gets its true name once the log says that it counts (`records.ReceivedMark`).

A chunk's number is its nonce; number, index, term and whether it is the last are authenticated with it, so that
chunks can be neither moved nor dropped unseen.
"""

import io
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from orch_raft.membership import Membership, SnapshotMeta

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
#: Index of the snapshot that founds a cluster; entries follow it.
FOUNDING_INDEX = 1
_ASIDE_SUFFIX = ".tmp"
_RECEIVED_SUFFIX = ".received"
#: Bounds what a damaged length can make a reader allocate.
_MAX_CHUNK_BYTES = 64 * 1024 * 1024


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


class SnapshotReceiver:
    """Takes a snapshot that arrives in pieces. Not safe for use by two threads at once."""

    def __init__(self, files: Files, path: Path, keyring: Keyring, meta: SnapshotMeta, chunk_bytes: int) -> None:
        self.meta = meta
        self._files = files
        self._path = path.with_suffix(_RECEIVED_SUFFIX)
        self._aside = path.with_suffix(_RECEIVED_SUFFIX + _ASIDE_SUFFIX)
        for leftover in (self._aside, self._path):
            if leftover.name in files.list(path.parent):
                files.remove(leftover)
        self._file = files.create(self._aside)
        self._chunks = _begin(self._file, path, keyring, meta, chunk_bytes)

    def write(self, data: bytes) -> None:
        """Take the next piece of the state. Raises OSError."""
        self._chunks.write(data)

    def finish(self) -> int:
        """Make it durable beside the others; return its size in bytes. Raises OSError."""
        self._chunks.finish()
        self._file.sync_data()
        self._file.close()
        self._files.rename(self._aside, self._path)
        self._files.sync_folder(self._path.parent)
        return self._chunks.offset

    def abandon(self) -> None:
        """Forget an unfinished one. What cannot be removed now goes at the next start."""
        self._file.close()
        with suppress(OSError):
            self._files.remove(self._aside)


class SnapshotFolder:
    """The snapshots in one folder, of which the newest counts. `save`, `pinned` and `install` may run at once."""

    def __init__(self, files: Files, folder: Path, keyring: Keyring, chunk_bytes: int) -> None:
        self._files = files
        self._folder = folder
        self._keyring = keyring
        self._chunk_bytes = chunk_bytes
        self._guard = threading.Lock()
        self._pins: Counter[str] = Counter()

    def is_empty(self) -> bool:
        """Whether there is no snapshot."""
        return not self._names()

    def change_key(self, keyring: Keyring) -> None:
        """Encrypt what comes from now on with the current key of another keyring."""
        self._keyring = keyring

    def key_ids(self) -> frozenset[bytes]:
        """The data keys that the snapshots need. Raises OSError."""
        return frozenset(_Header.read(self._files, self._folder / name).key_id for name in self._names())

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
            self._remove_before(path.name)
        except OSError as error:
            raise DurabilityLost(f"write the snapshot {path}", error) from error
        return size_bytes

    def receive(self, meta: SnapshotMeta) -> SnapshotReceiver:
        """Begin to take a snapshot that the leader sends.

        Raises:
            OSError: the disk refused.
        """
        path = self._folder / _name(meta.term, meta.index)
        return SnapshotReceiver(self._files, path, self._keyring, meta, self._chunk_bytes)

    def has_received(self, index: int, term: int) -> bool:
        """Whether a received snapshot lies there whole, without its name yet."""
        name = _name(term, index)
        return Path(name).with_suffix(_RECEIVED_SUFFIX).name in self._files.list(self._folder)

    def install(self, index: int, term: int) -> None:
        """Give a received snapshot its name, and remove the older ones. The log must say already that it counts.

        Raises:
            DurabilityLost: the disk refused.
        """
        path = self._folder / _name(term, index)
        try:
            self._files.rename(path.with_suffix(_RECEIVED_SUFFIX), path)
            self._files.sync_folder(self._folder)
            self._remove_before(path.name)
        except OSError as error:
            raise DurabilityLost(f"install the snapshot {path}", error) from error

    def discard_received(self, index: int, term: int) -> None:
        """Remove a received snapshot that is not wanted. Raises OSError."""
        if self.has_received(index, term):
            self._files.remove((self._folder / _name(term, index)).with_suffix(_RECEIVED_SUFFIX))

    @staticmethod
    def has_state(meta: SnapshotMeta) -> bool:
        """Whether a snapshot has a state; the one that founded the cluster has only members."""
        return meta.index > FOUNDING_INDEX

    def open_latest(self) -> tuple[SnapshotMeta, BinaryIO]:
        """The newest snapshot, of which there must be one: what it covers, and a stream of its state.

        Raises:
            SnapshotCorrupt: it cannot be read; reading the stream may raise it too.
            DataKeyError: a key is missing.
            OSError: the disk refused.
        """
        return self._open(self._names()[-1])

    @contextmanager
    def pinned(self) -> Iterator[tuple[SnapshotMeta, BinaryIO]]:
        """The newest snapshot, which stays on disk for as long as the context lasts. Raises as `open_latest`."""
        with self._guard:
            name = self._names()[-1]
            self._pins[name] += 1
        try:
            yield self._open(name)
        finally:
            with self._guard:
                self._pins[name] -= 1

    def remove_leftovers(self) -> None:
        """Remove snapshots that never got their name, and all but the newest."""
        for name in self._files.list(self._folder):
            if name.endswith((_ASIDE_SUFFIX, _RECEIVED_SUFFIX)):
                self._files.remove(self._folder / name)
        for name in self._names()[:-1]:
            self._files.remove(self._folder / name)

    def _names(self) -> list[str]:
        return [name for name in self._files.list(self._folder) if name.endswith(_SUFFIX)]

    def _remove_before(self, newest: str) -> None:
        with self._guard:
            for name in self._names():
                if name < newest and not self._pins[name]:
                    self._files.remove(self._folder / name)

    def _open(self, name: str) -> tuple[SnapshotMeta, BinaryIO]:
        path = self._folder / name
        header = _Header.read(self._files, path)
        if name != _name(header.term, header.index):
            raise SnapshotCorrupt(path, 0, "it is another snapshot under this name")
        cipher = self._keyring.cipher(header.key_id, header.salt, _PURPOSE, path)
        reader = _ChunkReader(self._files, path, cipher, header.index, header.term)
        try:
            membership = Membership.from_bytes(reader.take())
        except ValueError as error:
            raise SnapshotCorrupt(path, _HEADER_BYTES, str(error)) from error
        meta = SnapshotMeta(header.index, header.term, membership)
        return meta, cast("BinaryIO", io.BufferedReader(reader, self._chunk_bytes))

    def _write(self, aside: Path, path: Path, meta: SnapshotMeta, write_state: SnapshotWriter) -> int:
        file = self._files.create(aside)
        try:
            chunks = _begin(file, path, self._keyring, meta, self._chunk_bytes)
            write_state(cast("BinaryIO", chunks))
            chunks.finish()
            file.sync_data()
        finally:
            file.close()
        return chunks.offset


@dataclass(frozen=True, slots=True)
class _Header:
    """What stands at the head of a snapshot."""

    key_id: bytes
    salt: bytes
    index: int
    term: int

    @classmethod
    def read(cls, files: Files, path: Path) -> "_Header":
        """The header of a file. Raises SnapshotCorrupt, OSError."""
        raw = files.read(path, 0, _HEADER_BYTES)
        if len(raw) < _HEADER_BYTES or crc32(raw[: _HEADER.size]) != int.from_bytes(raw[_HEADER.size :], "big"):
            raise SnapshotCorrupt(path, 0, "its header does not match its checksum")
        magic, version, key_id, salt, index, term = _HEADER.unpack_from(raw)
        if magic != _MAGIC or version != _VERSION:
            raise SnapshotCorrupt(path, 0, f"it is of format {version}; this version of orch reads format {_VERSION}")
        return cls(key_id, salt, index, term)


def _begin(file: WritableFile, path: Path, keyring: Keyring, meta: SnapshotMeta, chunk_bytes: int) -> _ChunkWriter:
    """Write the head and the membership of a snapshot; the state goes to what is returned."""
    membership = meta.membership.to_bytes()
    salt = new_salt()
    key_id = keyring.current_id
    header = _HEADER.pack(_MAGIC, _VERSION, key_id, salt, meta.index, meta.term)
    file.write(0, header + crc32(header).to_bytes(4, "big"))
    cipher = keyring.cipher(key_id, salt, _PURPOSE, path)
    chunks = _ChunkWriter(file, cipher, meta, _HEADER_BYTES, chunk_bytes)
    chunks.put(membership, last=False)
    return chunks
