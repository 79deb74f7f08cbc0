"""Decompression of archives: the kind is told by the first bytes, never by a name."""

import bz2
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from orch_agent.images.digests import CHUNK_BYTES, ByteSource
from orch_agent.images.errors import ArchiveRefused
from orch_agent.images.limits import XZ_MEMORY_BYTES

_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\x00"
_BZIP2 = b"BZh"
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC_BYTES = 6


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_igzip = _optional("isal.igzip")
_zstandard = _optional("zstandard")


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


class _DecoderReader:
    """Reads concatenated streams through an incremental decoder of the standard library, in bounded memory."""

    def __init__(self, source: ByteSource, make: Callable[[], _Decoder]) -> None:
        self._source = source
        self._make = make
        self._decoder = make()

    def read(self, size: int, /) -> bytes:
        while True:
            data = b""
            if self._decoder.eof:
                data = self._decoder.unused_data.lstrip(b"\0") or self._source.read(CHUNK_BYTES).lstrip(b"\0")
                if not data:
                    return b""
                self._decoder = self._make()
            elif self._decoder.needs_input:
                data = self._source.read(CHUNK_BYTES)
                if not data:
                    raise EOFError("the compressed stream ends early")
            output = self._decoder.decompress(data, size)
            if output:
                return output


class _Guarded:
    """Turns each library's own failure into `ArchiveRefused`."""

    def __init__(self, source: ByteSource, kind: str) -> None:
        self._source = source
        self._kind = kind
        self._failures: tuple[type[BaseException], ...] = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
        if _igzip is not None:
            self._failures += (_igzip.isal_zlib.error,)
        if _zstandard is not None:
            self._failures += (_zstandard.ZstdError,)

    def read(self, size: int, /) -> bytes:
        try:
            return self._source.read(size)
        except self._failures as error:
            raise self._refusal(error) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._refusal(error) from error  # bz2 reports bad data as an OSError without a number

    def _refusal(self, error: BaseException) -> ArchiveRefused:
        return ArchiveRefused(f"the archive's {self._kind} data is damaged ({error}); copy or make the archive again")


class _Prefixed(io.RawIOBase):
    """Gives back the bytes that were read to tell the kind, then the rest."""

    def __init__(self, prefix: bytes, source: ByteSource) -> None:
        super().__init__()
        self._prefix = prefix
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        if self._prefix:
            data, self._prefix = self._prefix[:size], self._prefix[size:]
            return data
        return self._source.read(size)


def opened(source: ByteSource) -> tuple[str, ByteSource]:
    """Tell the compression by the first bytes and return its name and the decompressed stream.

    Names are `none`, `gzip`, `xz`, `bzip2` and `zstd`. Reading may raise `ArchiveRefused` for damaged data.

    Raises:
        ArchiveRefused: the data is compressed by zstd and no module for it is installed.
    """
    magic = b""
    while len(magic) < _MAGIC_BYTES:
        more = source.read(_MAGIC_BYTES - len(magic))
        if not more:
            break
        magic += more
    whole = _Prefixed(magic, source)
    if magic.startswith(_GZIP):
        if _igzip is not None:
            return "gzip", _Guarded(_igzip.IGzipFile(fileobj=io.BufferedReader(whole, CHUNK_BYTES)), "gzip")
        return "gzip", _Guarded(gzip.GzipFile(fileobj=io.BufferedReader(whole, CHUNK_BYTES)), "gzip")
    if magic.startswith(_XZ):
        make_xz = lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)  # noqa: E731 - one of two
        return "xz", _Guarded(_DecoderReader(whole, make_xz), "xz")
    if magic.startswith(_BZIP2):
        return "bzip2", _Guarded(_DecoderReader(whole, bz2.BZ2Decompressor), "bzip2")
    if magic.startswith(_ZSTD):
        if _zstandard is None:
            raise ArchiveRefused(
                "the archive is compressed by zstd, and Python's zstandard module is not installed; "
                "install it (pip install zstandard) or compress the archive by gzip"
            )
        reader = _zstandard.ZstdDecompressor().stream_reader(whole, read_across_frames=True)
        return "zstd", _Guarded(reader, "zstd")
    return "none", whole
