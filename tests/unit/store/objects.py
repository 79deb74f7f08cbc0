"""Objects for the tests of the store, and the transactions that make them."""

from collections.abc import Callable

from orch_manager.store.schema import StoreObject
from orch_manager.store.transaction import Transaction
from orch_proto.objects_pb2 import Service, Task
from orch_proto.types_pb2 import TaskState


def service(service_id: str, name: str, stack_id: str = "") -> Service:
    item = Service(id=service_id, stack_id=stack_id)
    item.spec.annotations.name = name
    return item


def task(
    task_id: str,
    service_id: str = "",
    slot: int = 0,
    node_id: str = "",
    desired_state: TaskState.ValueType = TaskState.TASK_STATE_RUNNING,
) -> Task:
    return Task(id=task_id, service_id=service_id, slot=slot, node_id=node_id, desired_state=desired_state)


def create(*items: StoreObject) -> Callable[[Transaction], None]:
    def function(tx: Transaction) -> None:
        for item in items:
            tx.create(item)

    return function


def move(task_id: str, node_id: str) -> Callable[[Transaction], None]:
    def function(tx: Transaction) -> None:
        changed = tx.edit(Task, task_id)
        changed.node_id = node_id
        tx.update(changed)

    return function


def remove(task_id: str) -> Callable[[Transaction], None]:
    def function(tx: Transaction) -> None:
        tx.delete(Task, task_id)

    return function
