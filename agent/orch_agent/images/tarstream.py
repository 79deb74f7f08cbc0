"""A streaming reader of tar archives: ustar, GNU long names, pax; nothing is trusted.

Sources: POSIX.1-2017 pax (ustar and extended headers), the GNU tar manual (long names, base-256 numbers).
Own code because layers need the digest in the same pass and an extraction that `tarfile` cannot promise.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from orch_agent.images.digests import CHUNK_BYTES, ByteSource
from orch_agent.images.errors import ArchiveRefused, LimitExceeded
from orch_agent.images.limits import UnpackLimits

BLOCK_BYTES = 512
_ID_MAX = 2**32 - 2  # the kernel reserves -1
_SIZE_MAX = 2**62
_TIME_MAX_S = 2**40
_XATTR_PREFIX = "SCHILY.xattr."
_ZERO_BLOCK = bytes(BLOCK_BYTES)


class EntryKind(enum.Enum):
    """What an entry of an archive is."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMLINK = "symbolic link"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    DIRECTORY = "directory"
    FIFO = "FIFO"


_KINDS = {
    b"0": EntryKind.FILE,
    b"\0": EntryKind.FILE,
    b"7": EntryKind.FILE,
    b"1": EntryKind.HARD_LINK,
    b"2": EntryKind.SYMLINK,
    b"3": EntryKind.CHARACTER_DEVICE,
    b"4": EntryKind.BLOCK_DEVICE,
    b"5": EntryKind.DIRECTORY,
    b"6": EntryKind.FIFO,
}


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry; `name` and `target` are as in the archive (surrogate escapes for bytes that are not UTF-8)."""

    name: str
    kind: EntryKind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


class TarStream:
    """Iterates over the entries of a tar stream; `read` gives the content of the current one."""

    def __init__(self, source: ByteSource, limits: UnpackLimits, *, require_end: bool = False) -> None:
        """Read from `source`, which is already decompressed.

        With `require_end` an archive that stops without its end mark is refused; use it where no digest tells.
        """
        self._source = source
        self._limits = limits
        self._require_end = require_end
        self._buffer = b""
        self._position = 0
        self._content_left = 0
        self._padding = 0
        self._entries = 0
        self._bytes = 0
        self._pax_global: dict[str, bytes] = {}

    @property
    def entries(self) -> int:
        """Entries seen so far."""
        return self._entries

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield each entry; unread content of the last one is skipped.

        Raises:
            ArchiveRefused: the archive is malformed or ends early.
            LimitExceeded: it has more entries, longer headers or more bytes than allowed.
        """
        pax: dict[str, bytes] = {}
        long_name: bytes | None = None
        long_target: bytes | None = None
        while True:
            self._skip_content()
            header = self._header()
            if header is None:
                if pax or long_name is not None or long_target is not None:
                    raise _malformed("it ends after an extended header")
                return
            flag = header[156:157]
            if flag in b"xgLK" and flag != b"":
                body = self._extended(header)
                if flag == b"x":
                    pax = _pax_records(body)
                elif flag == b"g":
                    self._pax_global |= _global_records(body)
                elif flag == b"L":
                    long_name = body.partition(b"\0")[0]
                else:
                    long_target = body.partition(b"\0")[0]
                continue
            entry = self._entry(header, self._pax_global | pax, long_name, long_target)
            pax, long_name, long_target = {}, None, None
            self._content_left = entry.size
            self._padding = -entry.size % BLOCK_BYTES
            yield entry

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes of the current entry's content; empty at its end."""
        if self._content_left == 0 or size == 0:
            return b""
        if self._position == len(self._buffer):
            self._fill()
            if not self._buffer:
                raise _malformed("it ends within a file")
        take = min(size, self._content_left, len(self._buffer) - self._position)
        data = self._buffer[self._position : self._position + take]
        self._position += take
        self._content_left -= take
        return data

    def _fill(self) -> None:
        self._buffer = self._source.read(CHUNK_BYTES)
        self._position = 0
        self._bytes += len(self._buffer)
        if self._bytes > self._limits.unpacked_bytes:
            raise LimitExceeded(
                f"the archive unpacks to more than {self._limits.unpacked_bytes} bytes, "
                "which this node does not accept; if it is no compression bomb, split it into smaller layers"
            )

    def _exactly(self, size: int) -> bytes:
        """`size` bytes, or fewer only at the end of the stream."""
        parts = []
        while size:
            if self._position == len(self._buffer):
                self._fill()
                if not self._buffer:
                    break
            part = self._buffer[self._position : self._position + size]
            self._position += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _skip_content(self) -> None:
        while self._content_left:
            self.read(CHUNK_BYTES)
        if self._padding and len(self._exactly(self._padding)) < self._padding:
            raise _malformed("it ends within a file's padding")
        self._padding = 0

    def _header(self) -> bytes | None:
        block = self._exactly(BLOCK_BYTES)
        if not block:
            if self._require_end:
                raise _malformed("it ends without its end mark; the file is probably cut off")
            return None
        if len(block) < BLOCK_BYTES:
            raise _malformed("it ends within a header")
        if block == _ZERO_BLOCK:
            self._drain()
            return None
        _check_sum(block)
        self._entries += 1
        if self._entries > self._limits.entries:
            most = self._limits.entries
            raise LimitExceeded(f"the archive has more than {most} entries; split it into smaller layers")
        return block

    def _drain(self) -> None:
        """Read what follows the end mark (padding), so that a digest covers it."""
        self._position = len(self._buffer)
        while True:
            self._fill()
            self._position = len(self._buffer)
            if not self._buffer:
                return

    def _extended(self, header: bytes) -> bytes:
        size = _number(header[124:136], "size")
        if size > self._limits.extended_header_bytes:
            raise LimitExceeded(
                f"an extended header of the archive has {size} bytes, more than {self._limits.extended_header_bytes}; "
                "make the archive with shorter names or attributes"
            )
        body = self._exactly(size + -size % BLOCK_BYTES)
        if len(body) < size:
            raise _malformed("it ends within an extended header")
        return body[:size]

    def _entry(
        self, header: bytes, pax: Mapping[str, bytes], long_name: bytes | None, long_target: bytes | None
    ) -> TarEntry:
        flag = header[156:157]
        if flag not in _KINDS:
            what = "a sparse file" if flag == b"S" else f"an entry of the unknown type {flag!r}"
            raise ArchiveRefused(f"the archive has {what}, which orch does not read; make it with tar --format=posix")
        if any(key.startswith("GNU.sparse.") for key in pax):
            raise ArchiveRefused("the archive has a sparse file, which orch does not read; make it without --sparse")
        raw_name = pax.get("path", long_name if long_name is not None else _ustar_name(header))
        raw_target = pax.get("linkpath", long_target if long_target is not None else _text(header[157:257]))
        kind = _KINDS[flag]
        if kind is EntryKind.FILE and raw_name.endswith(b"/") and flag != b"7":
            kind = EntryKind.DIRECTORY  # how archives older than ustar write directories
        size = _pax_int(pax, "size", _number(header[124:136], "size"), _SIZE_MAX)
        for raw in (raw_name, raw_target):
            if b"\0" in raw or len(raw) > self._limits.path_bytes:
                raise _malformed(f"a path is longer than {self._limits.path_bytes} bytes or holds a zero byte")
        device = (0, 0)
        if kind in (EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE):
            device = (_number(header[329:337], "device"), _number(header[337:345], "device"))
        return TarEntry(
            name=_decode(raw_name),
            kind=kind,
            mode=_number(header[100:108], "mode") & 0o7777,
            uid=_pax_int(pax, "uid", _number(header[108:116], "uid"), _ID_MAX),
            gid=_pax_int(pax, "gid", _number(header[116:124], "gid"), _ID_MAX),
            size=size if kind is EntryKind.FILE else 0,
            mtime_ns=_mtime_ns(header, pax),
            target=_decode(raw_target),
            device=device,
            xattrs={
                key.removeprefix(_XATTR_PREFIX): value for key, value in pax.items() if key.startswith(_XATTR_PREFIX)
            },
        )


def _malformed(why: str) -> ArchiveRefused:
    return ArchiveRefused(f"the tar archive is malformed: {why}; copy or make it again")


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _ustar_name(header: bytes) -> bytes:
    name = _text(header[:100])
    # GNU's older format has other fields where POSIX ustar has the prefix.
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _check_sum(block: bytes) -> None:
    stored = _number(block[148:156], "checksum")
    blank = block[:148] + b" " * 8 + block[156:]
    if stored == sum(blank):
        return
    # Some old writers summed signed characters.
    if stored != sum(byte - 256 if byte > 127 else byte for byte in blank):
        raise _malformed("a header's checksum is wrong")


def _number(raw: bytes, what: str) -> int:
    """An octal field, or GNU's base-256 form when the first bit is set."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
    else:
        digits = raw.strip(b" \0").partition(b"\0")[0].strip()
        try:
            value = int(digits, 8) if digits else 0
        except ValueError:
            raise _malformed(f"a header's {what} is not a number") from None
    if what != "mtime" and not 0 <= value <= _SIZE_MAX:
        raise _malformed(f"a header's {what} is out of range")
    return value


def _pax_records(body: bytes) -> dict[str, bytes]:
    """The records of an extended header: a length, a space, key=value, a line feed."""
    records: dict[str, bytes] = {}
    while body:
        digits, space, _ = body.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 9:
            raise _malformed("a pax record has no length")
        length = int(digits)
        record = body[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length > len(body) or not record.endswith(b"\n") or not equals or not key:
            raise _malformed("a pax record is cut off")
        records[_decode(key)] = value[:-1]
        body = body[length:]
    return records


def _global_records(body: bytes) -> dict[str, bytes]:
    records = _pax_records(body)
    if {"path", "linkpath", "size"} & records.keys():
        raise _malformed("a global header gives every file the same name or size")
    return records


def _pax_int(pax: Mapping[str, bytes], key: str, otherwise: int, maximum: int) -> int:
    raw = pax.get(key)
    if not raw:
        value = otherwise
    elif raw.isdigit() and len(raw) < 20:
        value = int(raw)
    else:
        raise _malformed(f"a pax record's {key} is not a number")
    if value > maximum:
        raise _malformed(f"an entry's {key} is out of range")
    return value


def _mtime_ns(header: bytes, pax: Mapping[str, bytes]) -> int:
    raw = pax.get("mtime")
    try:
        seconds = Decimal(raw.decode("ascii")) if raw else Decimal(_number(header[136:148], "mtime"))
    except (InvalidOperation, UnicodeDecodeError):
        raise _malformed("a pax record's mtime is not a number") from None
    if not seconds.is_finite() or abs(seconds) > _TIME_MAX_S:
        raise _malformed("an entry's time is out of range")
    return int(seconds * 1_000_000_000)
