"""Tables of objects with their indexes. An object in a table is never edited, only replaced."""

import hashlib
from collections.abc import Iterable
from typing import Any, Protocol, cast

from orch_manager.store.errors import ObjectMutated, UnknownIndex
from orch_manager.store.schema import KINDS, SCHEMA, AnyKind, Keys, Kind, StoreObject, T, label


class Reader(Protocol):
    """What the store and a transaction have in common: decisions that only read take this."""

    def get(self, kind: type[T], object_id: str) -> T | None:
        """The object with an id."""
        ...

    def find(self, kind: type[T], **keys: object) -> list[T]:
        """The objects that stand under every one of the keys, each in the index of its name."""
        ...

    def all(self, kind: type[T]) -> list[T]:
        """Every object of a kind."""
        ...


class Table:
    """The objects of one kind, by id and by each index."""

    def __init__(self, kind: AnyKind) -> None:
        self.kind = kind
        self.objects: dict[str, Any] = {}
        self._schema = SCHEMA[kind]
        self._indexes: dict[str, dict[object, dict[str, Any]]] = {name: {} for name in self._schema.indexes}
        self._key_functions = tuple(self._schema.indexes.values())
        #: Under which keys each object stands, index by index.
        self._keys: dict[str, tuple[Keys, ...]] = {}
        self._no_keys: tuple[Keys, ...] = ((),) * len(self._indexes)

    def put(self, item: StoreObject) -> StoreObject | None:
        """Add an object or put it in the place of the one with its id, which is returned."""
        item_id = item.id
        old = self.objects.get(item_id)
        self.objects[item_id] = item
        old_keys = self._keys.get(item_id, self._no_keys)
        new_keys = self._keys[item_id] = tuple(keys_of(item) for keys_of in self._key_functions)
        for index, before, now in zip(self._indexes.values(), old_keys, new_keys, strict=True):
            for key in before:
                if key not in now:
                    _drop(index, key, item_id)
            for key in now:
                bucket = index.get(key)
                if bucket is None:
                    index[key] = {item_id: item}
                else:
                    bucket[item_id] = item
        return cast("StoreObject | None", old)

    def remove(self, object_id: str) -> StoreObject | None:
        """Remove and return the object with an id, if there is one."""
        old = self.objects.pop(object_id, None)
        if old is not None:
            for index, keys in zip(self._indexes.values(), self._keys.pop(object_id), strict=True):
                for key in keys:
                    _drop(index, key, object_id)
        return cast("StoreObject | None", old)

    def under(self, index: str, key: object) -> dict[str, Any]:
        """The objects under a key, by id; not to be changed.

        Raises:
            UnknownIndex: the kind has no such index.
        """
        by_key = self._indexes.get(index)
        if by_key is None:
            raise UnknownIndex(self._schema.label, index, sorted(self._indexes))
        return by_key.get(key, _NOTHING)

    def find(self, keys: dict[str, object]) -> list[Any]:
        """The objects that stand under every key."""
        (first_index, first_key), *others = keys.items()
        found = self.under(first_index, first_key)
        if not others:
            return list(found.values())
        rest = [self.under(index, key) for index, key in others]
        smallest = min([found, *rest], key=len)
        return [item for item_id, item in smallest.items() if item_id in found and all(item_id in ids for ids in rest)]


_NOTHING: dict[str, Any] = {}


def _drop(index: dict[object, dict[str, Any]], key: object, object_id: str) -> None:
    bucket = index[key]
    del bucket[object_id]
    if not bucket:
        del index[key]


class State:
    """Every table: the committed state.

    Args:
        verify: remember a digest of each object, so that `check_unedited` finds one that was edited in place.
    """

    def __init__(self, *, verify: bool = False) -> None:
        self.tables: dict[AnyKind, Table] = {kind: Table(kind) for kind in KINDS}
        self._digests: dict[tuple[AnyKind, str], bytes] | None = {} if verify else None

    def get(self, kind: type[T], object_id: str) -> T | None:
        """See `Reader.get`."""
        return cast("T | None", self.tables[kind].objects.get(object_id))

    def find(self, kind: type[T], **keys: object) -> list[T]:
        """See `Reader.find`."""
        return self.tables[kind].find(keys) if keys else self.all(kind)

    def all(self, kind: type[T]) -> list[T]:
        """See `Reader.all`."""
        return list(self.tables[kind].objects.values())

    def put(self, item: StoreObject) -> StoreObject | None:
        """Add or replace an object; return the one it replaced."""
        kind = type(item)
        if self._digests is not None:
            self._check(kind, item.id)
            self._digests[kind, item.id] = _digest(item)
        return self.tables[kind].put(item)

    def remove(self, kind: AnyKind, object_id: str) -> StoreObject | None:
        """Remove an object; return it."""
        if self._digests is not None:
            self._check(kind, object_id)
            self._digests.pop((kind, object_id), None)
        return self.tables[kind].remove(object_id)

    def counts(self) -> dict[Kind, int]:
        """Number of objects of each kind."""
        return {kind: len(self.tables[kind].objects) for kind in KINDS}

    def check_unedited(self, kinds: Iterable[Kind] = KINDS) -> None:
        """Look for objects that were edited in place. Does nothing unless made with `verify`.

        Raises:
            ObjectMutated: one was.
        """
        for kind in kinds:
            for object_id in self.tables[kind].objects:
                self._check(kind, object_id)

    def _check(self, kind: AnyKind, object_id: str) -> None:
        item = self.tables[kind].objects.get(object_id)
        if self._digests is not None and item is not None and _digest(item) != self._digests[kind, object_id]:
            raise ObjectMutated(label(kind), object_id)


def _digest(item: StoreObject) -> bytes:
    return hashlib.blake2b(item.SerializeToString(deterministic=True), digest_size=16).digest()
