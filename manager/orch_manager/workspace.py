"""What the control loops read and write through in one step: a transaction with the step's own writes on top.

Several loops touch the same object in one step (a task is made, given addresses, given a node); the log gets its last
version only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orch_manager.clock import IdSource
from orch_manager.store.schema import Kind, StoreObject, T, copy_of
from orch_manager.store.tables import Reader, Table
from orch_manager.store.transaction import Transaction

#: Told of every write of a step: kind, id, object before, object after.
WriteListener = Callable[[Kind, str, StoreObject | None, StoreObject | None], None]


class Workspace:
    """Reads see the step's own writes. What it hands out is not to be edited: `edit` gives a copy, `put` takes it.

    Args:
        transaction: where the writes go in the end.
        term: of the leader; stands in the statuses that it writes.
        ids: for new objects.
        room: how many objects the step may still touch.
        on_write: told of every write at once.
    """

    def __init__(
        self, transaction: Transaction, *, term: int, ids: IdSource, room: int, on_write: WriteListener
    ) -> None:
        self._transaction = transaction
        self._room = room
        self._on_write = on_write
        self._tables: dict[Kind, Table] = {}
        self._removed: dict[Kind, set[str]] = {}
        self._created: set[tuple[Kind, str]] = set()
        self.touched: dict[tuple[Kind, str], None] = {}
        self.term = term
        self.ids = ids
        self.now_ms = transaction.now_unix_ms

    def has_room(self, objects: int = 1) -> bool:
        """True when so many more objects may be touched in this step; the rest waits for the next."""
        return len(self.touched) + objects <= self._room

    def may_touch(self, kind: Kind, object_id: str) -> bool:
        """True when this object may be written in this step."""
        return (kind, object_id) in self.touched or self.has_room()

    def get(self, kind: type[T], object_id: str) -> T | None:
        """The object with an id."""
        key: Any = kind
        if object_id in self._removed.get(key, ()):
            return None
        table = self._tables.get(key)
        mine: Any = table.objects.get(object_id) if table is not None else None
        return mine if mine is not None else self._transaction.get(kind, object_id)

    def find(self, kind: type[T], **keys: object) -> list[T]:
        """The objects that stand under every key."""
        found = self._transaction.find(kind, **keys)
        key: Any = kind
        table, removed = self._tables.get(key), self._removed.get(key, ())
        if table is None and not removed:
            return found
        covered = table.objects if table is not None else {}
        kept = [item for item in found if item.id not in covered and item.id not in removed]
        if table is not None:
            kept += table.find(keys) if keys else list(table.objects.values())
        return kept

    def all(self, kind: type[T]) -> list[T]:
        """Every object of a kind."""
        return self.find(kind)

    def edit(self, item: T) -> T:
        """A copy to be changed and `put`."""
        return copy_of(item)

    def put(self, item: StoreObject) -> None:
        """Makes or replaces an object. It belongs to the workspace afterwards."""
        kind: Kind = type(item)
        before: Any = self.get(kind, item.id)
        if before is None:
            self._created.add((kind, item.id))
        self.touched[(kind, item.id)] = None
        self._tables.setdefault(kind, Table(kind)).put(item)
        self._on_write(kind, item.id, before, item)

    def delete(self, kind: Kind, object_id: str) -> None:
        """Removes an object that exists."""
        before: Any = self.get(kind, object_id)
        self.touched[(kind, object_id)] = None
        if kind in self._tables:
            self._tables[kind].remove(object_id)
        self._removed.setdefault(kind, set()).add(object_id)
        self._on_write(kind, object_id, before, None)

    def flush(self) -> None:
        """Hands the last version of everything touched to the transaction."""
        for kind, object_id in self.touched:
            created = (kind, object_id) in self._created
            if object_id in self._removed.get(kind, ()):
                if not created:
                    self._transaction.delete(kind, object_id)
                continue
            item = self._tables[kind].objects[object_id]
            if created:
                self._transaction.create(item)
            else:
                self._transaction.update(item)


#: What decisions that only read take: the store, a transaction or a workspace.
__all__ = ["Reader", "Workspace", "WriteListener"]
