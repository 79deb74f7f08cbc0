"""What a user may touch whose role `deploy` is limited to stacks with a prefix.

Everything of a stack is named `<stack>_...`, so one rule does: an object may be made, changed or removed, and a command
run in it, when its stack's name begins with the prefix, or, for an object of no stack, its own name does. What a
service uses must be within the prefix as well (a secret of another stack would be read by mounting it), and it may not
reach around its container's walls: no bind mounts, namespaces of the host, capabilities, devices or privileges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from orch_manager.control.queries import kind_of, name_of, resolve
from orch_manager.store.schema import StoreObject
from orch_manager.store.tables import Reader
from orch_proto import control_pb2 as control
from orch_proto.objects_pb2 import Config, Network, Secret, Service, Stack, Task
from orch_proto.specs_pb2 import ContainerSpec, ServiceSpec, StackSpec
from orch_proto.types_pb2 import MountType
from orch_rpc.authorization import current_call
from orch_rpc.callers import Caller
from orch_rpc.errors import NotFound, PermissionDenied

#: Networks of the cluster that anybody's services may be on.
_SHARED_NETWORKS: Final = frozenset({"ingress"})


class StackScope:
    """Checks requests of limited users: `orch_rpc.authorization.Policy.check_scope`.

    Args:
        reader: the store.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._checks: dict[str, Callable[[str, Any], None]] = {
            "Control/ApplyStack": self._apply,
            "Control/RemoveStack": lambda prefix, request: _require(prefix, f"stack {request.name}", request.name),
            "Control/Create": self._create,
            "Control/Update": self._update,
            "Control/Remove": self._remove,
            "Control/ScaleServices": self._scale,
            "Control/CallNodes": self._call_nodes,
        }

    def __call__(self, caller: Caller, method: str, request: Any) -> None:
        """Refuses what is outside of the caller's prefix.

        Raises:
            PermissionDenied: it is, or the method is none that limited users may call.
        """
        check = self._checks.get(method)
        if check is None:
            raise PermissionDenied(f"cannot answer {method}", f"{caller} is limited to stacks", "ask an admin")
        check(caller.stack_prefix, request)

    # ---- requests ------------------------------------------------------------------------------------

    def _apply(self, prefix: str, request: control.ApplyStackRequest) -> None:
        spec: StackSpec = request.spec
        _require(prefix, f"stack {spec.name}", spec.name)
        named: tuple[Any, ...] = (*spec.networks, *spec.secrets, *spec.configs, *spec.volumes, *spec.services)
        for each in named:
            _require(prefix, each.annotations.name, each.annotations.name)
        for name in (*spec.external_secrets, *spec.external_configs, *spec.external_networks):
            if name not in _SHARED_NETWORKS:
                _require(prefix, f"{name}, which is not the stack's own", name)
        for service in spec.services:
            self._service(prefix, service)

    def _create(self, prefix: str, request: control.CreateRequest) -> None:
        word = request.spec.WhichOneof("spec") or ""
        spec = getattr(request.spec, word)
        _require(prefix, f"{word} {spec.annotations.name}", spec.annotations.name)
        if isinstance(spec, ServiceSpec):
            self._service(prefix, spec)

    def _update(self, prefix: str, request: control.UpdateRequest) -> None:
        self._require_object(prefix, resolve(self._reader, kind_of(request.kind), request.id))
        if request.spec.WhichOneof("spec") == "service":
            self._service(prefix, request.spec.service)

    def _remove(self, prefix: str, request: control.RemoveRequest) -> None:
        self._require_object(prefix, resolve(self._reader, kind_of(request.kind), request.reference))

    def _scale(self, prefix: str, request: control.ScaleServicesRequest) -> None:
        for each in request.scales:
            self._require_object(prefix, resolve(self._reader, Service, each.service))

    @staticmethod
    def _call_nodes(prefix: str, request: control.CallNodesRequest) -> None:
        raise PermissionDenied(
            f"cannot change images or volumes ({request.call.WhichOneof('call')})",
            f"all stacks share them, and you are limited to stacks that begin with {prefix!r}",
            "ask an admin",
        )

    # ---- objects -------------------------------------------------------------------------------------

    def _stack_name(self, item: StoreObject) -> str:
        """Name of the object's stack; the object's own if it belongs to none."""
        if isinstance(item, Stack):
            return item.annotations.name
        stack = self._reader.get(Stack, getattr(item, "stack_id", ""))
        return stack.annotations.name if stack is not None else name_of(item)

    def _require_object(self, prefix: str, item: StoreObject) -> None:
        _require(prefix, name_of(item), self._stack_name(item))

    def require_task(self, task: Task) -> None:
        """To be called before a command is run in a task, or anything else done to it that is no request by itself.

        Raises:
            PermissionDenied: the caller is limited to other stacks.
        """
        prefix = current_call().caller.stack_prefix
        if prefix:
            self._require_object(prefix, task)

    def _used(self, kind: Any, references: Iterable[str]) -> Iterable[tuple[str, str]]:
        """What a service refers to, by id or name: its own name and its stack's."""
        for reference in references:
            try:
                item = resolve(self._reader, kind, reference)
            except NotFound:
                yield reference, reference  # made by the same request, or refused later
            else:
                yield name_of(item), self._stack_name(item)

    def _service(self, prefix: str, spec: ServiceSpec) -> None:
        container = spec.task.container
        used = (
            *self._used(Secret, (each.secret_id or each.secret_name for each in container.secrets)),
            *self._used(Config, (each.config_id or each.config_name for each in container.configs)),
            *self._used(Network, (each.target for each in spec.task.networks)),
        )
        for name, owner in used:
            if name not in _SHARED_NETWORKS:
                _require(prefix, name, owner)
        for mount in container.mounts:
            if mount.type == MountType.MOUNT_TYPE_VOLUME and mount.source:
                _require(prefix, f"volume {mount.source}", mount.source)
        for what in _powers(container):
            raise PermissionDenied(
                f"cannot deploy service {spec.annotations.name}",
                f"it wants {what}, and you are limited to stacks that begin with {prefix!r}",
                "ask an admin to deploy it, or leave that out",
            )


def _powers(container: ContainerSpec) -> Iterable[str]:
    """What would let a service touch more than its own stack."""
    if any(mount.type == MountType.MOUNT_TYPE_BIND for mount in container.mounts):
        yield "a bind mount of the node's files"
    if container.cap_add:
        yield "additional capabilities"
    if container.devices:
        yield "devices of the node"
    for field, value in container.privileges.ListFields():
        if value:
            yield f"the privilege {field.name}"
    for field, value in container.namespaces.ListFields():
        if value not in ("private", "none"):
            yield f"the {field.name} namespace of the node or of another task"


def _require(prefix: str, what: str, name: str) -> None:
    if not name.startswith(prefix):
        raise PermissionDenied(
            f"cannot touch {what}",
            f"you may deploy stacks whose names begin with {prefix!r} only",
            "use such a name, or ask an admin for a certificate without the limit",
        )
