"""The first objects of a cluster: the Cluster and the Node that founds it."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError

from orch_manager.store.schema import unwrap
from orch_manager.store.store import Store
from orch_manager.store.transaction import Transaction
from orch_proto.objects_pb2 import ChangeAction, Cluster, StoreChanges
from orch_rpc import logs
from orch_rpc.errors import InvalidArgument

_log = logs.get("manager")


def read_founding_objects(path: Path) -> StoreChanges:
    """The transaction that orchd wrote for a new cluster.

    Raises:
        InvalidArgument: the file cannot be read, or holds something else.
    """
    try:
        changes = StoreChanges.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise InvalidArgument(
            f"cannot make a cluster from {path}", str(error), "make it with orch cluster init"
        ) from error
    creates = [change for change in changes.changes if change.action == ChangeAction.CHANGE_ACTION_CREATE]
    if len(creates) != len(changes.changes) or not any(change.object.HasField("cluster") for change in creates):
        raise InvalidArgument(
            f"cannot make a cluster from {path}", "it does not create a cluster", "run orch cluster init"
        )
    return changes


async def write_founding_objects(store: Store, changes: StoreChanges) -> None:
    """Writes them, once: a manager that died while its cluster was made does not make another."""

    def write(transaction: Transaction) -> bool:
        if transaction.all(Cluster):
            return False
        for change in changes.changes:
            transaction.create(unwrap(change.object))
        return True

    if await store.update(write, reason="cluster init"):
        _log.info("cluster made", objects=len(changes.changes))
