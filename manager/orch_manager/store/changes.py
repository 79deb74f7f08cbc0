"""Log entries of the store: several transactions each, applied the same way on every member.

An entry is a sequence of StoreChanges messages, each after its length in four bytes. Every transaction is checked
again as it is applied, against the state at that point of the log: should an earlier write whose outcome was
unknown have come in between, the transaction is refused as a whole, on every member alike.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from orch_manager.store.errors import AlreadyExists, NameTaken, ObjectNotFound, OutOfDate, TransactionError
from orch_manager.store.schema import SCHEMA, Kind, StoreObject, kind_of_number, label, unwrap
from orch_manager.store.tables import State
from orch_manager.store.transaction import PENDING_VERSION
from orch_proto.objects_pb2 import (
    CHANGE_ACTION_CREATE,
    CHANGE_ACTION_DELETE,
    CHANGE_ACTION_UPDATE,
    StoreChange,
    StoreChanges,
)

_LENGTH = struct.Struct(">I")
#: What a transaction costs in an entry besides its message.
FRAME_BYTES = _LENGTH.size


class Action(Enum):
    """What happened to an object."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Event:
    """One committed change of one object.

    Attributes:
        kind: the message class.
        object_id: of the object.
        action: what happened.
        old: the object before, None when created.
        new: the object now, None when deleted.
        index: of the write.
    """

    kind: Kind
    object_id: str
    action: Action
    old: StoreObject | None
    new: StoreObject | None
    index: int


def encode_entry(transactions: Sequence[bytes]) -> bytes:
    """The log entry of serialised StoreChanges."""
    return b"".join(_LENGTH.pack(len(each)) + each for each in transactions)


def decode_entry(data: bytes) -> list[StoreChanges]:
    """The transactions of a log entry. Raises ValueError or DecodeError when it is not one."""
    transactions: list[StoreChanges] = []
    offset = 0
    while offset < len(data):
        (size,) = _LENGTH.unpack_from(data, offset)
        offset += FRAME_BYTES
        if offset + size > len(data):
            raise ValueError(f"the log entry ends inside transaction {len(transactions) + 1}")
        transactions.append(StoreChanges.FromString(data[offset : offset + size]))
        offset += size
    return transactions


def apply_transaction(state: State, changes: StoreChanges, index: int) -> list[Event] | TransactionError:
    """Make all changes of a transaction, or none; return the events, or why it was refused."""
    events: list[Event] = []
    try:
        for change in changes.changes:
            events.append(_apply_change(state, change, index))  # noqa: PERF401  # what is done already must be undone
    except TransactionError as refusal:
        _undo(state, events)
        return refusal
    return events


def _apply_change(state: State, change: StoreChange, index: int) -> Event:
    if change.action == CHANGE_ACTION_DELETE:
        kind = kind_of_number(change.kind)
        old = state.remove(kind, change.id)
        if old is None:
            raise ObjectNotFound(label(kind), change.id)
        return Event(kind, change.id, Action.DELETED, old, None, index)
    item = unwrap(change.object)
    kind = type(item)
    current: StoreObject | None = state.get(kind, item.id)
    if change.action == CHANGE_ACTION_CREATE:
        if current is not None:
            raise AlreadyExists(label(kind), item.id)
    elif change.action == CHANGE_ACTION_UPDATE:
        if current is None:
            raise ObjectNotFound(label(kind), item.id)
        base_version = index if item.meta.version_index == PENDING_VERSION else item.meta.version_index
        if current.meta.version_index != base_version:
            raise OutOfDate(label(kind), item.id)
    else:
        raise ValueError(
            f"change of {label(kind)} {item.id} has action {change.action}, which this version does not know"
        )
    _check_unique(state, kind, item)
    item.meta.version_index = index
    state.put(item)
    return Event(kind, item.id, Action.CREATED if current is None else Action.UPDATED, current, item, index)


def _check_unique(state: State, kind: Kind, item: StoreObject) -> None:
    schema = SCHEMA[kind]
    table = state.tables[kind]
    for name in schema.unique:
        for key in schema.indexes[name](item):
            for holder_id in table.under(name, key):
                if holder_id != item.id:
                    raise NameTaken(schema.label, str(key), holder_id)


def _undo(state: State, events: list[Event]) -> None:
    for event in reversed(events):
        if event.old is None:
            state.remove(event.kind, event.object_id)
        else:
            state.put(event.old)
