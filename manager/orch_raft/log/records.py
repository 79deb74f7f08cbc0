"""What the log holds: the hard state, the entries and marks of received snapshots, and their form inside a frame.

A batch is what is written and synced together. The hard state stands before the entries in it, so that
no reader of a prefix sees an entry of a term it does not know of. A mark stands between the two: it discards every
entry before it.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

_HARD_STATE = struct.Struct(">BQQQ")
_ENTRY = struct.Struct(">BQQBI")
_RECEIVED = struct.Struct(">BQQ")
_TAG_HARD_STATE = 1
_TAG_ENTRY = 2
_TAG_RECEIVED = 3


class EntryKind(IntEnum):
    """What an entry is for; the numbers are those of the wire's RaftEntryType."""

    COMMAND = 1
    MEMBERSHIP = 2
    #: Written by a new leader, to commit what earlier terms left (Raft paper, section 8).
    NEW_TERM = 3


@dataclass(frozen=True, slots=True)
class HardState:
    """What a member must not forget (Raft paper, figure 2).

    Attributes:
        term: the latest term it has seen.
        vote: raft id it voted for in that term, 0 for none.
        commit: an index known to be committed; a hint, never ahead of the truth.
    """

    term: int = 0
    vote: int = 0
    commit: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log."""

    index: int
    term: int
    kind: EntryKind
    data: bytes


@dataclass(frozen=True, slots=True)
class ReceivedMark:
    """Says that the log begins anew after a snapshot that the leader sent; entries written before are void.

    It is the moment at which the snapshot counts: the snapshot lies synced beside the others by then, and gets its
    name after.
    """

    index: int
    term: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What is written with one sync."""

    hard_state: HardState | None
    entries: tuple[Entry, ...]
    received: ReceivedMark | None = None


class BatchFormatError(ValueError):
    """Decrypted bytes are not a batch."""


def encode_batch(batch: Batch) -> bytes:
    """The plain bytes of a batch."""
    parts: list[bytes] = []
    if (state := batch.hard_state) is not None:
        parts.append(_HARD_STATE.pack(_TAG_HARD_STATE, state.term, state.vote, state.commit))
    if (mark := batch.received) is not None:
        parts.append(_RECEIVED.pack(_TAG_RECEIVED, mark.index, mark.term))
    for entry in batch.entries:
        parts.append(_ENTRY.pack(_TAG_ENTRY, entry.index, entry.term, entry.kind, len(entry.data)))
        parts.append(entry.data)
    return b"".join(parts)


def decode_batch(plain: bytes) -> Batch:
    """The batch in plain bytes.

    Raises:
        BatchFormatError: they are not one.
    """
    hard_state: HardState | None = None
    received: ReceivedMark | None = None
    entries: list[Entry] = []
    offset = 0
    try:
        while offset < len(plain):
            tag = plain[offset]
            if tag == _TAG_HARD_STATE and hard_state is None and received is None and not entries:
                _, term, vote, commit = _HARD_STATE.unpack_from(plain, offset)
                hard_state = HardState(term, vote, commit)
                offset += _HARD_STATE.size
            elif tag == _TAG_RECEIVED and received is None and not entries:
                _, index, term = _RECEIVED.unpack_from(plain, offset)
                received = ReceivedMark(index, term)
                offset += _RECEIVED.size
            elif tag == _TAG_ENTRY:
                _, index, term, kind, size = _ENTRY.unpack_from(plain, offset)
                offset += _ENTRY.size
                data = plain[offset : offset + size]
                if len(data) != size:
                    raise BatchFormatError(f"entry {index} ends early")
                entries.append(Entry(index, term, EntryKind(kind), data))
                offset += size
            else:
                raise BatchFormatError(f"unexpected record of type {tag}")
    except (struct.error, ValueError) as error:
        raise BatchFormatError(str(error)) from error
    return Batch(hard_state, tuple(entries), received)


def encoded_bytes(batch: Batch) -> int:
    """An upper bound of the size of `encode_batch`, hard state and mark included."""
    return _HARD_STATE.size + _RECEIVED.size + sum(_ENTRY.size + len(entry.data) for entry in batch.entries)
