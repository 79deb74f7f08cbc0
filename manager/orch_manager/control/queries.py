"""Finding objects: by id, by unambiguous prefix, by name, by filters. And what of an object may leave the manager."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from orch_manager import tasks as states
from orch_manager.labels import NAMESPACE_LABEL
from orch_manager.store.schema import SCHEMA, Kind, StoreObject, copy_of, kind_of_number
from orch_manager.store.tables import Reader
from orch_proto.control_pb2 import Filter
from orch_proto.objects_pb2 import Cluster, Network, Node, Object, Secret, Service, Stack, Task
from orch_proto.specs_pb2 import NodeRole
from orch_proto.types_pb2 import ObjectKind
from orch_rpc.errors import InvalidArgument, NotFound

#: How to look for each kind.
_LISTING: Final = {"task": "orch ps", "stack": "orch stack ls", "cluster": "orch cluster info"}


def kind_of(number: ObjectKind.ValueType) -> Kind:
    """The kind behind its number on the wire.

    Raises:
        InvalidArgument: this version has no such kind.
    """
    try:
        return kind_of_number(number)
    except KeyError as error:
        raise InvalidArgument("cannot answer", f"there is no kind of object {number}") from error


def label_of(kind: Kind) -> str:
    """A kind as sentences call it: service."""
    return SCHEMA[kind].label


def name_of(item: StoreObject) -> str:
    """What people call an object."""
    if isinstance(item, Task):
        return f"{item.service_name}.{item.slot}" if item.slot else f"{item.service_name}.{item.node_id}"
    if isinstance(item, Stack):
        return item.annotations.name
    if isinstance(item, Node):
        return item.spec.annotations.name or item.description.hostname
    return item.spec.annotations.name


def labels_of(item: StoreObject) -> dict[str, str]:
    """An object's labels; a task has its service's."""
    if isinstance(item, Task):
        return dict(item.service_labels)
    if isinstance(item, Stack):
        return dict(item.annotations.labels)
    return dict(item.spec.annotations.labels)


def resolve(reader: Reader, kind: Kind, reference: str) -> Any:
    """The object that a reference names: an id, a name, or the beginning of one id.

    Raises:
        NotFound: nothing is called so.
        InvalidArgument: several are.
    """
    label = label_of(kind)
    what = f"cannot find {label} '{reference}'"
    look = f"look at them: {_LISTING.get(label, f'orch {label} ls')}"
    if not reference:
        if kind is Cluster and (clusters := reader.all(Cluster)):
            return clusters[0]
        raise InvalidArgument(what, "no reference was given", look)
    exact = reader.get(kind, reference)
    if exact is not None:
        return exact
    every = reader.all(kind)
    named = [item for item in every if name_of(item) == reference]
    if isinstance(next(iter(every), None), Node):
        named = named or [item for item in every if item.description.hostname == reference]  # type: ignore[union-attr]
    if kind is Task and named:
        # A slot has old tasks too: its name stands for the one that runs.
        named = [item for item in named if states.is_wanted(item)] or named  # type: ignore[arg-type]
    found = named or [item for item in every if item.id.startswith(reference)]
    if not found:
        raise NotFound(what, f"no {label} has this name or id", look)
    if len(found) > 1:
        raise InvalidArgument(what, f"{len(found)} {label}s are called so", f"give more of the id; {look}")
    return found[0]


def public(item: StoreObject) -> Object:
    """An object as it may be shown: never a secret's data, a key or a token's secret."""
    shown = item
    if isinstance(item, Secret):
        shown = copy_of(item)
        shown.spec.ClearField("data")
    elif isinstance(item, Cluster):
        copied = copy_of(item)
        copied.root_ca.ClearField("key_pem")
        copied.root_ca.ClearField("join_tokens")
        copied.root_ca.ClearField("rotation")
        copied.ClearField("unlock_keys")
        copied.ClearField("network_keys")
        shown = copied
    elif isinstance(item, Stack):
        copied_stack = copy_of(item)
        for version in [copied_stack.current, *copied_stack.history]:
            for secret in version.spec.secrets:
                secret.ClearField("data")
        shown = copied_stack
    elif isinstance(item, Node):
        copied_node = copy_of(item)
        copied_node.certificate.ClearField("csr_pem")
        shown = copied_node
    wrapper = Object()
    getattr(wrapper, label_of(type(item))).CopyFrom(shown)
    return wrapper


# ---- filters ---------------------------------------------------------------------------------------

Predicate = Callable[[StoreObject], bool]


def _label_matches(labels: dict[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _stack_names(reader: Reader, item: StoreObject) -> set[str]:
    if isinstance(item, Stack):
        return {item.id, item.annotations.name}
    names = {labels_of(item).get(NAMESPACE_LABEL, "")}
    stack_id = getattr(item, "stack_id", "")
    if stack_id:
        stack = reader.get(Stack, stack_id)
        names |= {stack_id, stack.annotations.name if stack is not None else ""}
    return names - {""}


def _service_mode(item: StoreObject) -> set[str]:
    if not isinstance(item, Service):
        return set()
    mode = item.spec.mode.WhichOneof("mode") or "replicated"
    return {mode, mode.replace("_", "-")}


def _desired(item: StoreObject) -> set[str]:
    if not isinstance(item, Task):
        return set()
    name = states.state_name(item.desired_state)
    # As docker has it: running, shutdown, accepted.
    return {name, "running"} if states.is_wanted(item) else {name, "shutdown"}


def _role(item: StoreObject) -> set[str]:
    if not isinstance(item, Node):
        return set()
    return {"manager" if item.role == NodeRole.NODE_ROLE_MANAGER else "worker"}


def _matches(reader: Reader, key: str, value: str, item: StoreObject) -> bool:  # noqa: PLR0911 - one answer a key
    """One filter value against one object."""
    if key == "id":
        return item.id.startswith(value)
    if key == "name":
        return value in name_of(item) or (isinstance(item, Task) and item.service_name.startswith(value))
    if key in ("label", "node.label"):
        return _label_matches(labels_of(item), value)
    if key == "stack":
        return value in _stack_names(reader, item)
    if key == "service":
        if isinstance(item, Service):
            return item.id.startswith(value) or item.spec.annotations.name == value
        return isinstance(item, Task) and (item.service_id.startswith(value) or item.service_name == value)
    if key == "node":
        return isinstance(item, Task) and _on_node(reader, item, value)
    if key == "desired-state":
        return value in _desired(item)
    if key == "mode":
        return value in _service_mode(item)
    if key == "role":
        return value in _role(item)
    if key == "membership":
        return isinstance(item, Node) and value == "accepted"
    return isinstance(item, Network) and value == (item.spec.driver or "overlay")


def _on_node(reader: Reader, task: Task, value: str) -> bool:
    node = reader.get(Node, task.node_id)
    names = (node.spec.annotations.name, node.description.hostname) if node is not None else ()
    return task.node_id.startswith(value) if task.node_id and value not in names else bool(value in names)


_KEYS: Final = (
    "id", "name", "label", "node.label", "stack", "service", "node", "desired-state", "mode", "role",
    "membership", "driver",
)  # fmt: skip


def predicate(reader: Reader, filters: Iterable[Filter]) -> Predicate:
    """All keys must match, values of a key are alternatives.

    Raises:
        InvalidArgument: there is no such key.
    """
    wanted: dict[str, list[str]] = {}
    for each in filters:
        if each.key not in _KEYS:
            raise InvalidArgument(
                "cannot filter", f"there is no filter '{each.key}'", f"the filters are {', '.join(_KEYS)}"
            )
        wanted.setdefault(each.key, []).extend(each.values)

    def matches(item: StoreObject) -> bool:
        return all(any(_matches(reader, key, value, item) for value in values) for key, values in wanted.items())

    return matches
