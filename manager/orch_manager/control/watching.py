"""`Control.Watch`: objects as they are, a marker, then every change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from orch_manager.control.queries import kind_of, predicate, public
from orch_manager.store.changes import Action
from orch_manager.store.schema import KINDS, Kind, StoreObject
from orch_manager.store.store import Store
from orch_manager.store.tables import Reader
from orch_manager.store.watch import Resync
from orch_proto.control_pb2 import WatchAction, WatchEvent, WatchRequest
from orch_rpc.errors import Unavailable

_ACTIONS: Final = {
    Action.CREATED: WatchAction.WATCH_ACTION_CREATED,
    Action.UPDATED: WatchAction.WATCH_ACTION_UPDATED,
    Action.DELETED: WatchAction.WATCH_ACTION_REMOVED,
}


async def watch(store: Store, request: WatchRequest) -> AsyncIterator[WatchEvent]:
    """Events until the caller leaves, who has waited for a read barrier.

    Raises:
        Unavailable: the caller reads too slowly, or the manager stops.
    """
    kinds: Sequence[Kind] = [kind_of(number) for number in request.kinds] or KINDS
    matches = predicate(store, request.filters)

    def view(reader: Reader) -> list[StoreObject]:
        return [item for kind in kinds for item in reader.all(kind) if matches(item)]

    present, events = store.view_and_watch(view, *kinds)
    with events:
        index = store.index
        for item in present:
            yield WatchEvent(action=WatchAction.WATCH_ACTION_SNAPSHOT, object=public(item), index=index)
        yield WatchEvent(action=WatchAction.WATCH_ACTION_SNAPSHOT_END, index=index)
        async for event in events:
            if isinstance(event, Resync):
                raise Unavailable("cannot go on watching", "the changes were not read fast enough", "watch anew")
            item_now = event.new or event.old
            # An object's stack may be gone by now: what it matched before tells as well.
            if item_now is not None and (matches(item_now) or (event.old is not None and matches(event.old))):
                yield WatchEvent(action=_ACTIONS[event.action], object=public(item_now), index=event.index)
    raise Unavailable("cannot go on watching", "the manager stops", "watch anew")
