"""A transaction: reads that see its own writes, over the committed state and the transactions before it in its batch.

The objects it puts down are copies marked with `PENDING_VERSION`: their true version is the index of the entry
that will carry them, which is not known yet. An update that is based on such an object carries the mark, and
applies only if the same entry made that version (`changes.py`).
"""

from dataclasses import dataclass, field
from typing import cast

from orch_manager.store.errors import AlreadyExists, NameTaken, ObjectMutated, ObjectNotFound, OutOfDate
from orch_manager.store.schema import KINDS, SCHEMA, AnyKind, StoreObject, T, copy_of, label, wrap
from orch_manager.store.tables import State, Table
from orch_proto.objects_pb2 import (
    CHANGE_ACTION_CREATE,
    CHANGE_ACTION_DELETE,
    CHANGE_ACTION_UPDATE,
    ChangeAction,
    StoreChange,
    StoreChanges,
)

#: Stands in an object's version while the entry that writes it has no index.
PENDING_VERSION = 2**64 - 1


class Overlay:
    """Uncommitted objects over the committed state. Every change can be taken back."""

    def __init__(self, base: State) -> None:
        self._base = base
        self._tables: dict[AnyKind, Table] = {}
        #: Ids whose truth is in the overlay; absent from its table means removed.
        self._covered: dict[AnyKind, set[str]] = {kind: set() for kind in KINDS}

    def get(self, kind: type[T], object_id: str) -> T | None:
        """See `Reader.get`."""
        if object_id in self._covered[kind]:
            return cast("T | None", self._tables[kind].objects.get(object_id))
        return self._base.get(kind, object_id)

    def find(self, kind: type[T], **keys: object) -> list[T]:
        """See `Reader.find`."""
        covered = self._covered[kind]
        found = self._base.find(kind, **keys)
        if not covered:
            return found
        table = self._tables[kind]
        pending = table.find(keys) if keys else list(table.objects.values())
        return [item for item in found if item.id not in covered] + pending

    def all(self, kind: type[T]) -> list[T]:
        """See `Reader.all`."""
        return self.find(kind)

    def set(self, kind: AnyKind, object_id: str, item: StoreObject | None) -> "Undo":
        """Put an object down, or None to remove it; return what takes this back."""
        table = self._tables.setdefault(kind, Table(kind))
        covered = self._covered[kind]
        undo = Undo(kind, object_id, object_id in covered, table.objects.get(object_id))
        covered.add(object_id)
        if item is None:
            table.remove(object_id)
        else:
            table.put(item)
        return undo

    def take_back(self, undo: "Undo") -> None:
        """Undo the latest `set` that was not taken back."""
        table = self._tables[undo.kind]
        if undo.item is None:
            table.remove(undo.object_id)
        else:
            table.put(undo.item)
        if not undo.was_covered:
            self._covered[undo.kind].discard(undo.object_id)


@dataclass(frozen=True, slots=True)
class Undo:
    """What an overlay held before a change."""

    kind: AnyKind
    object_id: str
    was_covered: bool
    item: StoreObject | None


@dataclass(slots=True)
class Transaction:
    """What a function given to `Store.update` reads and writes through. Not to be used after that function returned."""

    _overlay: Overlay
    _now_unix_ms: int
    changes: StoreChanges = field(default_factory=StoreChanges)
    _undo: list[Undo] = field(default_factory=list)

    @property
    def now_unix_ms(self) -> int:
        """The time that this transaction's writes carry."""
        return self._now_unix_ms

    def get(self, kind: type[T], object_id: str) -> T | None:
        """The object with an id, own writes included. Shared with all readers: not to be edited."""
        return self._overlay.get(kind, object_id)

    def find(self, kind: type[T], **keys: object) -> list[T]:
        """The objects that stand under every key, own writes included. Not to be edited.

        Raises:
            UnknownIndex: the kind has no index of that name.
        """
        return self._overlay.find(kind, **keys)

    def all(self, kind: type[T]) -> list[T]:
        """Every object of a kind, own writes included. Not to be edited."""
        return self._overlay.all(kind)

    def edit(self, kind: type[T], object_id: str) -> T:
        """A copy of an object, to be edited and handed to `update`.

        Raises:
            ObjectNotFound: there is none.
        """
        current = self._overlay.get(kind, object_id)
        if current is None:
            raise ObjectNotFound(label(kind), object_id)
        return copy_of(current)

    def create(self, item: StoreObject) -> None:
        """Add an object. Its `meta` is set by the store.

        Raises:
            ValueError: it has no id.
            AlreadyExists: its id is in use.
            NameTaken: its name is in use.
        """
        kind = type(item)
        if not item.id:
            raise ValueError(f"cannot create a {label(kind)} without an id: give it one first")
        if self._overlay.get(kind, item.id) is not None:
            raise AlreadyExists(label(kind), item.id)
        self._check_unique(kind, item)
        fresh = copy_of(item)
        fresh.meta.Clear()
        fresh.meta.created_at_unix_ms = self._now_unix_ms
        self._put(kind, fresh, CHANGE_ACTION_CREATE, base_version=0)

    def update(self, item: StoreObject) -> None:
        """Replace an object by an edited copy of it, based on the version in the copy's `meta`.

        Raises:
            ObjectNotFound: there is no object with its id.
            OutOfDate: the object was changed since that version.
            NameTaken: its new name is in use.
            ObjectMutated: it is the store's own object, not a copy.
        """
        kind = type(item)
        current = self._overlay.get(kind, item.id)
        if current is None:
            raise ObjectNotFound(label(kind), item.id)
        if current is item:
            raise ObjectMutated(label(kind), item.id)
        base_version = item.meta.version_index
        if base_version != current.meta.version_index:
            raise OutOfDate(label(kind), item.id)
        self._check_unique(kind, item)
        fresh = copy_of(item)
        fresh.meta.CopyFrom(current.meta)
        self._put(kind, fresh, CHANGE_ACTION_UPDATE, base_version=base_version)

    def delete(self, kind: type[T], object_id: str) -> None:
        """Remove an object.

        Raises:
            ObjectNotFound: there is none with this id.
        """
        if self._overlay.get(kind, object_id) is None:
            raise ObjectNotFound(label(kind), object_id)
        self._undo.append(self._overlay.set(kind, object_id, None))
        self.changes.changes.add(action=CHANGE_ACTION_DELETE, kind=SCHEMA[kind].number, id=object_id)

    def roll_back(self) -> None:
        """Take every write back. Called by the store."""
        while self._undo:
            self._overlay.take_back(self._undo.pop())

    def _put(self, kind: AnyKind, fresh: StoreObject, action: ChangeAction.ValueType, *, base_version: int) -> None:
        fresh.meta.updated_at_unix_ms = self._now_unix_ms
        fresh.meta.version_index = base_version
        change: StoreChange = self.changes.changes.add(action=action)
        wrap(fresh, change.object)
        fresh.meta.version_index = PENDING_VERSION
        self._undo.append(self._overlay.set(kind, fresh.id, fresh))

    def _check_unique(self, kind: type[T], item: T) -> None:
        schema = SCHEMA[kind]
        for index in schema.unique:
            for key in schema.indexes[index](item):
                for holder in self._overlay.find(kind, **{index: key}):
                    if holder.id != item.id:
                        raise NameTaken(schema.label, str(key), holder.id)
