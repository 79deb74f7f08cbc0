"""The kinds of objects and the indexes over them: the one table that says how each can be found."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from orch_proto.objects_pb2 import Cluster, Config, Network, Node, Object, Secret, Service, Stack, Task, Volume
from orch_proto.types_pb2 import ObjectKind

StoreObject = Cluster | Node | Stack | Service | Task | Network | Secret | Config | Volume
#: A kind is named by its message class, one of those in `SCHEMA`: `store.get(Task, task_id)`.
Kind = type[StoreObject]
#: A kind as the key of a mapping; mypy does not take the type of a type variable for one of a union of types.
AnyKind = type[Message]
T = TypeVar("T", bound=StoreObject)

#: Version of the layout of snapshots and log entries; a manager refuses a newer one.
SCHEMA_VERSION = 1
#: The unique index of a kind, where it has one.
NAME = "name"
#: The keys under which an object stands in an index: none, one or several.
Keys = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class KindSchema:
    """What the store knows of a kind.

    Attributes:
        number: in messages.
        label: name in sentences, and field of `Object`.
        indexes: for each index, what gives an object's keys.
        unique: names of the indexes in which a key belongs to one object alone.
    """

    number: ObjectKind.ValueType
    label: str
    indexes: dict[str, Callable[[Any], Keys]] = field(default_factory=dict)
    unique: frozenset[str] = frozenset()


def _present(key: str) -> Keys:
    return (key,) if key else ()


def _spec_name(item: Cluster | Service | Network | Secret | Config | Volume) -> Keys:
    return _present(item.spec.annotations.name)


def _stack_name(stack: Stack) -> Keys:
    return _present(stack.annotations.name)


def _stack_id(item: Service | Task | Network | Secret | Config | Volume) -> Keys:
    return _present(item.stack_id)


def _hostname(node: Node) -> Keys:
    return _present(node.description.hostname)


def _role(node: Node) -> Keys:
    return (node.role,)


def _service_id(task: Task) -> Keys:
    return _present(task.service_id)


def _node_id(task: Task) -> Keys:
    return _present(task.node_id)


def _slot(task: Task) -> Keys:
    return ((task.service_id, task.slot),) if task.service_id else ()


def _desired_state(task: Task) -> Keys:
    return (task.desired_state,)


_NAMED: dict[str, Callable[[Any], Keys]] = {NAME: _spec_name}
_OWNED: dict[str, Callable[[Any], Keys]] = {NAME: _spec_name, "stack_id": _stack_id}
_BY_NAME = frozenset({NAME})

SCHEMA: dict[AnyKind, KindSchema] = {
    Cluster: KindSchema(ObjectKind.OBJECT_KIND_CLUSTER, "cluster", _NAMED, _BY_NAME),
    Node: KindSchema(ObjectKind.OBJECT_KIND_NODE, "node", {"hostname": _hostname, "role": _role}),
    Stack: KindSchema(ObjectKind.OBJECT_KIND_STACK, "stack", {NAME: _stack_name}, _BY_NAME),
    Service: KindSchema(ObjectKind.OBJECT_KIND_SERVICE, "service", _OWNED, _BY_NAME),
    Task: KindSchema(
        ObjectKind.OBJECT_KIND_TASK,
        "task",
        {
            "service_id": _service_id,
            "node_id": _node_id,
            "slot": _slot,
            "desired_state": _desired_state,
            "stack_id": _stack_id,
        },
    ),
    Network: KindSchema(ObjectKind.OBJECT_KIND_NETWORK, "network", _OWNED, _BY_NAME),
    Secret: KindSchema(ObjectKind.OBJECT_KIND_SECRET, "secret", _OWNED, _BY_NAME),
    Config: KindSchema(ObjectKind.OBJECT_KIND_CONFIG, "config", _OWNED, _BY_NAME),
    Volume: KindSchema(ObjectKind.OBJECT_KIND_VOLUME, "volume", _OWNED, _BY_NAME),
}

KINDS: tuple[Kind, ...] = (Cluster, Node, Stack, Service, Task, Network, Secret, Config, Volume)
assert tuple(SCHEMA) == KINDS
_BY_NUMBER: dict[int, Kind] = {SCHEMA[kind].number: kind for kind in KINDS}


def label(kind: AnyKind) -> str:
    """What a kind is called in sentences."""
    return SCHEMA[kind].label


def kind_of_number(number: int) -> Kind:
    """The kind with an ObjectKind's number. Raises KeyError for a number of a newer version."""
    return _BY_NUMBER[number]


def wrap(item: StoreObject, into: Object) -> None:
    """Copy an object into the wrapper that holds any of them."""
    getattr(into, SCHEMA[type(item)].label).CopyFrom(item)


def unwrap(wrapper: Object) -> StoreObject:
    """A copy of the object in a wrapper, which does not keep the wrapper's memory alive.

    Raises:
        ValueError: it holds none, or one of a kind of a newer version.
    """
    name = wrapper.WhichOneof("object")
    if name is None:
        raise ValueError("it holds an object of no kind that this version knows")
    return copy_of(cast("StoreObject", getattr(wrapper, name)))


def copy_of(item: T) -> T:
    """A copy that may be edited."""
    duplicate = type(item)()
    duplicate.CopyFrom(item)  # type: ignore[arg-type]  # both are of type T, which mypy sees as the whole union
    return duplicate
