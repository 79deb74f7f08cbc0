"""`Control.Events`: changes told as sentences, from now on. What was before stands in the manager's log."""

from __future__ import annotations

from collections.abc import AsyncIterator

from orch_manager import tasks as states
from orch_manager.control.queries import labels_of, name_of, predicate
from orch_manager.labels import NAMESPACE_LABEL
from orch_manager.store.changes import Action, Event
from orch_manager.store.schema import SCHEMA
from orch_manager.store.store import Store
from orch_manager.store.watch import Resync
from orch_proto.control_pb2 import ClusterEvent, EventsRequest
from orch_proto.objects_pb2 import Node, NodeState, Service, Task
from orch_rpc.errors import InvalidArgument, Unavailable


def _task_words(old: Task | None, new: Task) -> tuple[str, str]:
    if old is None or old.status.state != new.status.state:
        return states.state_name(new.status.state), new.status.error or new.status.message
    if old.desired_state != new.desired_state:
        return f"wanted {states.state_name(new.desired_state)}", new.status.message
    if old.status.health.state != new.status.health.state:
        return "health changed", new.status.health.last_output
    if old.status.message != new.status.message:
        # Paused, resumed, out of memory: told by the agent of a task that runs on.
        action, _, reason = new.status.message.partition(": ")
        return action, reason
    return "", ""


def _words(event: Event) -> tuple[str, str]:
    """What happened and why; an empty word for what is no event to people."""
    old, new = event.old, event.new
    if isinstance(new, Task):
        return _task_words(old if isinstance(old, Task) else None, new)
    if isinstance(new, Node) and isinstance(old, Node) and old.status.state != new.status.state:
        return NodeState.Name(new.status.state).removeprefix("NODE_STATE_").lower(), new.status.message
    if isinstance(new, Service) and isinstance(old, Service):
        if old.update_status.state != new.update_status.state:
            return "update", new.update_status.message
        return ("updated", "") if old.spec != new.spec or new.pending_delete != old.pending_delete else ("", "")
    if event.action is Action.UPDATED:
        return "updated", ""
    return {Action.CREATED: "created", Action.DELETED: "removed"}[event.action], ""


async def cluster_events(store: Store, request: EventsRequest) -> AsyncIterator[ClusterEvent]:
    """Events until the caller leaves, who has waited for a read barrier.

    Raises:
        InvalidArgument: the past was asked for.
        Unavailable: the caller reads too slowly, or the manager stops.
    """
    if request.since_unix_ms or request.since_index:
        raise InvalidArgument(
            "cannot show past events", "this version keeps none", "ask without since, or read the log"
        )
    matches = predicate(store, request.filters)
    with store.watch() as watch:
        async for event in watch:
            if isinstance(event, Resync):
                raise Unavailable("cannot go on", "the events were not read fast enough", "ask anew")
            item = event.new or event.old
            action, reason = _words(event)
            if item is None or not action or not matches(item):
                continue
            yield ClusterEvent(
                index=event.index,
                timestamp_unix_ms=item.meta.updated_at_unix_ms,
                kind=SCHEMA[event.kind].number,
                object_id=item.id,
                object_name=name_of(item),
                action=action,
                reason=reason,
                attributes=_attributes(item),
            )
    raise Unavailable("cannot go on", "the manager stops", "ask anew")


def _attributes(item: object) -> dict[str, str]:
    if not isinstance(item, Task):
        return {}
    stack = labels_of(item).get(NAMESPACE_LABEL, "")
    return {"service": item.service_name, "node": item.node_id, "stack": stack}
