"""One log line for every transition of a task and a node, with its reason: the story of the cluster."""

from __future__ import annotations

from orch_manager import tasks as states
from orch_manager.store.changes import Event
from orch_manager.store.store import Store
from orch_manager.store.watch import Resync
from orch_proto.objects_pb2 import Node, NodeState, Task
from orch_rpc import logs

_log = logs.get("audit")


def _task_line(old: Task | None, new: Task | None) -> None:
    task = new or old
    assert task is not None
    bound = _log.bind(task=task.id, service=task.service_name, slot=task.slot)
    if new is None:
        bound.debug("task deleted")
        return
    if old is None or old.status.state != new.status.state:
        bound.info(
            f"task {states.state_name(new.status.state)}",
            node=new.node_id,
            reason=new.status.error or new.status.message,
        )
    elif old.status.message != new.status.message and new.status.state <= states.PENDING:
        bound.info("task waits", reason=new.status.message)
    if old is not None and old.desired_state != new.desired_state:
        bound.info(f"task wanted {states.state_name(new.desired_state)}", node=new.node_id, reason=new.status.message)


def _node_line(old: Node | None, new: Node | None) -> None:
    if new is not None and (old is None or old.status.state != new.status.state):
        name = NodeState.Name(new.status.state).removeprefix("NODE_STATE_").lower()
        _log.info(f"node {name}", node=new.id, hostname=new.description.hostname, reason=new.status.message)
    elif new is None and old is not None:
        _log.info("node removed", node=old.id, hostname=old.description.hostname)


async def run(store: Store) -> None:
    """Writes lines until cancelled."""
    with store.watch(Task, Node) as watch:
        async for event in watch:
            if isinstance(event, Resync):
                _log.warning("transitions were missed", index=event.index)
            else:
                _tell(event)


def _tell(event: Event) -> None:
    old, new = event.old, event.new
    if isinstance(new, Task) or isinstance(old, Task):
        _task_line(old if isinstance(old, Task) else None, new if isinstance(new, Task) else None)
    else:
        _node_line(old if isinstance(old, Node) else None, new if isinstance(new, Node) else None)
