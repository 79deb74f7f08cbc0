"""Frames: how one batch stands in a segment, and how a torn one is told from a damaged one.

A frame is a header of 16 bytes, an encrypted body and padding, and begins at a multiple of 16 bytes:

    magic 4 | body length 4 | checksum of the rest 4 | checksum of the header 4
    ciphertext and tag ... | zeros, then 0xEE, up to the next multiple of 16

Space that was not written yet reads as zeros, and a disk writes whole sectors of 512 bytes, in any order.
So a frame whose write was cut short has a sector of zeros in it, or ends in a zero, or runs past the end of
the file; ciphertext has no sector of zeros. Anything else that does not add up was written once and has
changed since. And as a frame is written only after the one before it was synced, a frame that is followed by
a good one was whole once. The header's checksum covers the salt of the segment and the place of the frame,
so that bytes of another file, or moved ones, are no frame.
"""

import struct
from dataclasses import dataclass
from enum import Enum
from zlib import crc32

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ALIGNMENT_BYTES = 16
SECTOR_BYTES = 512
HEADER_BYTES = 16
_HEADER = struct.Struct(">4sIII")
_MAGIC = b"\xd7orL"
_END_MARK = 0xEE
_BOUND_TO = struct.Struct(">16sQ")
_NONCE = struct.Struct(">4xQ")
_SEQUENCE = struct.Struct(">Q")


class Fault(Enum):
    """Why there is no frame at an offset."""

    #: Zeros from here to the end of the file: nothing was ever written.
    END = "end"
    #: The write was cut short; it was never acknowledged.
    TORN = "torn"
    #: It was written whole, and has changed since.
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Frame:
    """A good frame.

    Attributes:
        plain: the decrypted body.
        end_offset: where the next frame begins.
    """

    plain: bytes
    end_offset: int


@dataclass(frozen=True, slots=True)
class NoFrame:
    """There is no good frame; `why` completes the sentence 'the record ...'."""

    fault: Fault
    why: str


class FrameCodec:
    """Seals and reads the frames of one segment."""

    def __init__(self, cipher: AESGCM, salt: bytes) -> None:
        self._cipher = cipher
        self._salt = salt

    def seal(self, plain: bytes, offset: int, sequence: int) -> bytes:
        """The frame of a batch.

        Args:
            plain: the batch.
            offset: where in the segment it will stand; serves as the nonce, so no two frames may share one.
            sequence: its number in the log, authenticated with it.
        """
        body = self._cipher.encrypt(_NONCE.pack(offset), plain, _SEQUENCE.pack(sequence))
        pad_bytes = ALIGNMENT_BYTES - len(body) % ALIGNMENT_BYTES
        rest = body + bytes(pad_bytes - 1) + bytes((_END_MARK,))
        return self._header(len(body), crc32(rest), offset) + rest

    def read(self, segment: bytes, written_end: int, offset: int, sequence: int) -> Frame | NoFrame:
        """The frame at an offset of a segment's bytes.

        Args:
            segment: all of them.
            written_end: offset after the last byte that is not zero.
            offset: where the frame begins.
            sequence: its number in the log.
        """
        body_bytes = self._body_length(segment, offset)
        if body_bytes is None:
            return _no_header(segment, written_end, offset)
        end = _end_offset(offset, body_bytes)
        rest = segment[offset + HEADER_BYTES : end]
        if crc32(rest) != _HEADER.unpack_from(segment, offset)[2] or len(rest) != end - offset - HEADER_BYTES:
            if _was_torn(segment, offset, end):
                return NoFrame(Fault.TORN, "was not written to its end")
            return NoFrame(Fault.DAMAGED, "does not match its checksum")
        try:
            plain = self._cipher.decrypt(_NONCE.pack(offset), rest[:body_bytes], _SEQUENCE.pack(sequence))
        except InvalidTag:
            return NoFrame(Fault.DAMAGED, f"is not record {sequence} of this log, or was altered on purpose")
        return Frame(plain, end)

    def find_good_after(self, segment: bytes, offset: int) -> int | None:
        """Offset of the next frame whose checksums match, if there is one."""
        at = segment.find(_MAGIC, offset + 1)
        while at >= 0:
            if at % ALIGNMENT_BYTES == 0 and (body_bytes := self._body_length(segment, at)) is not None:
                rest = segment[at + HEADER_BYTES : _end_offset(at, body_bytes)]
                if crc32(rest) == _HEADER.unpack_from(segment, at)[2]:
                    return at
            at = segment.find(_MAGIC, at + 1)
        return None

    def _header(self, body_bytes: int, rest_checksum: int, offset: int) -> bytes:
        bound_to = crc32(_BOUND_TO.pack(self._salt, offset))
        checksum = crc32(_HEADER.pack(_MAGIC, body_bytes, rest_checksum, 0)[:12], bound_to)
        return _HEADER.pack(_MAGIC, body_bytes, rest_checksum, checksum)

    def _body_length(self, segment: bytes, offset: int) -> int | None:
        """Length of the body when the header at an offset is good."""
        header = segment[offset : offset + HEADER_BYTES]
        if len(header) < HEADER_BYTES:
            return None
        magic, body_bytes, rest_checksum, _ = _HEADER.unpack(header)
        if magic != _MAGIC or header != self._header(body_bytes, rest_checksum, offset):
            return None
        return int(body_bytes)


def sealed_bytes(plain_bytes: int) -> int:
    """Size of the frame of a batch of a size."""
    tag_bytes = 16
    return _end_offset(0, plain_bytes + tag_bytes)


def _end_offset(offset: int, body_bytes: int) -> int:
    pad_bytes = ALIGNMENT_BYTES - body_bytes % ALIGNMENT_BYTES
    return offset + HEADER_BYTES + body_bytes + pad_bytes


def _no_header(segment: bytes, written_end: int, offset: int) -> NoFrame:
    """Why there is no good header at an offset."""
    if written_end <= offset:
        return NoFrame(Fault.END, "was never written")
    if written_end <= offset + HEADER_BYTES:
        return NoFrame(Fault.TORN, "ends in its header")
    if segment[offset : offset + HEADER_BYTES] == bytes(HEADER_BYTES):
        return NoFrame(Fault.TORN, "has no header, though bytes follow")
    return NoFrame(Fault.DAMAGED, "has a header that does not match its checksum")


def _was_torn(segment: bytes, offset: int, end: int) -> bool:
    """Whether a frame with a good header shows that its write was cut short."""
    if end > len(segment) or segment[end - 1] == 0:
        return True
    first_sector = (offset // SECTOR_BYTES + 1) * SECTOR_BYTES
    zeros = bytes(SECTOR_BYTES)
    return any(
        segment[sector : sector + SECTOR_BYTES] == zeros
        for sector in range(first_sector, end - SECTOR_BYTES + 1, SECTOR_BYTES)
    )
