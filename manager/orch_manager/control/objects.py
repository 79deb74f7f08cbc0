"""Creating, changing and removing single objects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from orch_manager.allocator.addresses import NoAddress
from orch_manager.allocator.planning import SubnetPlan, check_fixed_addresses
from orch_manager.ca.removed import remember_removed
from orch_manager.clock import Clock, IdSource
from orch_manager.control import validation
from orch_manager.control.nodes import NodeRules, removal_refusal
from orch_manager.control.queries import kind_of, label_of, name_of, resolve
from orch_manager.control.stacks.deploy import check_ports, copy_spec, with_new_spec
from orch_manager.control.stacks.images import look_up
from orch_manager.dispatcher.calls import NodeCalls
from orch_manager.faults import told_as
from orch_manager.store.schema import Kind, StoreObject
from orch_manager.store.store import Store
from orch_manager.store.tables import Reader
from orch_manager.store.transaction import Transaction
from orch_proto.control_pb2 import CreateRequest, RemoveRequest, ScaleServicesRequest, Spec, UpdateRequest
from orch_proto.objects_pb2 import (
    Cluster,
    Config,
    Network,
    Node,
    Secret,
    Service,
    Stack,
    Task,
    Volume,
)
from orch_proto.specs_pb2 import ClusterSpec, ServiceSpec
from orch_proto.types_pb2 import UpdateState
from orch_rpc import logs
from orch_rpc.errors import FailedPrecondition, InvalidArgument, OutOfDate

_log = logs.get("control")
_KINDS: Final[dict[str, Kind]] = {
    "service": Service,
    "network": Network,
    "secret": Secret,
    "config": Config,
    "volume": Volume,
    "node": Node,
    "cluster": Cluster,
}
_CHECKS: Final[dict[str, Any]] = {
    "service": validation.service,
    "network": validation.network,
    "secret": validation.secret,
    "config": validation.config,
    "volume": validation.volume,
    "cluster": validation.cluster,
}
_MADE_BY_PEOPLE: Final = frozenset(_CHECKS) - {"cluster"}


class Objects:
    """See the module.

    Args:
        store: read and written.
        calls: to ask nodes for images.
        nodes: what may be changed of nodes.
        clock: what time it is.
        ids: for new objects.
    """

    def __init__(self, store: Store, calls: NodeCalls, nodes: NodeRules, *, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._calls = calls
        self._nodes = nodes
        self._clock = clock
        self._ids = ids

    # ---- create --------------------------------------------------------------------------------------

    async def create(self, request: CreateRequest) -> StoreObject:
        """Makes one object; returns it as stored.

        Raises:
            OrchError: it is not valid, its name is taken, or it refers to what is not there.
        """
        label = request.spec.WhichOneof("spec")
        if label not in _MADE_BY_PEOPLE:
            raise InvalidArgument("cannot create", f"a {label or 'nothing'} is not created this way")
        spec = getattr(request.spec, label)
        what = f"cannot create {label} {spec.annotations.name}"
        _check(label, spec, what)
        if label == "service":
            spec = await self._resolved_service(spec, what)
        object_id = self._ids.new()
        with told_as(what):
            written = await self._store.update(
                lambda transaction: self._write_new(transaction, label, spec, object_id, what), reason=f"create {label}"
            )
        _log.info("created", kind=label, name=spec.annotations.name, id=object_id)
        return self._as_it_is(written)

    def _write_new(self, transaction: Transaction, label: str, spec: Any, object_id: str, what: str) -> StoreObject:
        kind: Any = _KINDS[label]
        item: StoreObject
        if label == "network":
            _refuse_without_address(what, lambda: SubnetPlan(transaction).take(spec))
        if label == "service":
            check_ports(transaction, spec, "", what)
            _refuse_without_address(what, lambda: check_fixed_addresses(transaction, spec, {}))
            item = Service(id=object_id, spec=spec, spec_version=1)
        elif label in ("secret", "config"):
            item = kind(id=object_id, spec=spec, content_digest=hashlib.sha256(spec.data).hexdigest())
        else:
            item = kind(id=object_id, spec=spec)
        transaction.create(item)
        return item

    def _as_it_is(self, written: StoreObject) -> StoreObject:
        """What was written, as the store has it by now: at a later version, if somebody changed it since."""
        item = self._store.get(type(written), written.id)
        if item is not None:
            return item
        # It was written, and is removed already: to refuse would deny a write that took place.
        written.meta.version_index = 0
        return written

    async def _resolved_service(self, spec: ServiceSpec, what: str) -> ServiceSpec:
        """References by name or id become ids; the image is pinned."""
        resolved = copy_spec(spec)
        container = resolved.task.container
        for attachment in resolved.task.networks:
            attachment.target = resolve(self._store, Network, attachment.target).id
        for secret in container.secrets:
            secret.secret_id = resolve(self._store, Secret, secret.secret_id or secret.secret_name).id
        for config in container.configs:
            config.config_id = resolve(self._store, Config, config.config_id or config.config_name).id
        kept = {container.image: container.image_digest} if container.image_digest else {}
        facts = await look_up(self._calls, {container.image: container.pull_policy}, what=what, kept=kept)
        container.image_digest = facts.digests[container.image]
        return resolved

    # ---- update --------------------------------------------------------------------------------------

    async def update(self, request: UpdateRequest) -> tuple[StoreObject, list[str]]:
        """Changes one object; returns it as stored, and what is unwise about it.

        Raises:
            OutOfDate: it was changed since the version the request names.
            OrchError: the new specification is not valid, or changes what cannot change.
        """
        kind = kind_of(request.kind)
        present = resolve(self._store, kind, request.id)
        what = f"cannot update {label_of(kind)} {name_of(present)}"
        if request.rollback:
            spec = self._rollback_spec(present, what)
        else:
            spec = self._new_spec(request.spec, kind, what)
            _check(label_of(kind), spec, what)
            if kind is Service:
                spec = await self._resolved_service(spec, what)
        with told_as(what):
            written: StoreObject = await self._store.update(
                lambda transaction: self._write_update(
                    transaction, request, transaction.edit(kind, present.id), spec=spec, what=what
                ),
                reason=f"update {label_of(kind)}",
            )
        _log.info("updated", kind=label_of(kind), name=name_of(present), id=present.id)
        updated = self._as_it_is(written)
        if isinstance(present, Node) and isinstance(updated, Node):
            return updated, self._nodes.warnings(self._store, present, updated)
        return updated, []

    @staticmethod
    def _new_spec(spec: Spec, kind: Kind, what: str) -> Any:
        label = spec.WhichOneof("spec")
        if label is None or _KINDS.get(label) is not kind:
            raise InvalidArgument(what, f"the specification is of a {label or 'nothing'}")
        return getattr(spec, label)

    @staticmethod
    def _rollback_spec(present: StoreObject, what: str) -> ServiceSpec:
        if not isinstance(present, Service) or not present.HasField("previous_spec"):
            raise FailedPrecondition(what, "there is no previous specification to go back to")
        return present.previous_spec

    def _write_update(
        self, transaction: Transaction, request: UpdateRequest, item: Any, *, spec: Any, what: str
    ) -> StoreObject:
        if request.version_index and item.meta.version_index != request.version_index:
            raise OutOfDate(what, "it was changed since it was read", "read it again, then repeat the change")
        if isinstance(item, Service):
            return self._update_service(transaction, item, spec, what, rollback=request.rollback)
        if isinstance(item, (Secret, Config)) and spec.data and spec.data != item.spec.data:
            raise InvalidArgument(what, "its content cannot change, only its labels", "create one of another name")
        if isinstance(item, Network) and _without_labels(item.spec) != _without_labels(spec):
            raise InvalidArgument(what, "only the labels of a network can change", "create another network")
        if isinstance(item, Cluster) and _without_tunables(item.spec) != _without_tunables(spec):
            raise InvalidArgument(
                what,
                "only the certificates' lifetime, the heartbeat period and the task history can change this way",
                "lock it with orch cluster lock, rotate its root with orch cluster ca --rotate",
            )
        if isinstance(item, Node):
            self._nodes.check_update(transaction, item, spec, what)
        if isinstance(item, (Secret, Config)):
            item.spec.annotations.CopyFrom(spec.annotations)
        else:
            item.spec.CopyFrom(spec)
        transaction.update(item)
        written: StoreObject = item
        return written

    def _update_service(
        self, transaction: Transaction, service: Service, spec: ServiceSpec, what: str, *, rollback: bool
    ) -> Service:
        if service.pending_delete:
            raise FailedPrecondition(what, "it is being removed")
        if spec.annotations.name != service.spec.annotations.name:
            raise InvalidArgument(what, "a service cannot change its name", "create another service")
        check_ports(transaction, spec, service.id, what)
        _refuse_without_address(what, lambda: check_fixed_addresses(transaction, spec, {}, service.id))
        edited, replaces = with_new_spec(service, spec, self._clock.unix_ms())
        if rollback and replaces:
            edited.update_status.state = UpdateState.UPDATE_STATE_ROLLBACK_STARTED
            edited.update_status.message = "rollback asked for"
        transaction.update(edited)
        return edited

    # ---- scale ---------------------------------------------------------------------------------------

    async def scale(self, request: ScaleServicesRequest) -> list[Service]:
        """Sets the replicas of some services in one transaction.

        Raises:
            NotFound: a service does not exist.
            InvalidArgument: a number is too large, or a service's mode has none.
        """
        names = ", ".join(each.service for each in request.scales)
        what = f"cannot scale {names or 'nothing'}"

        def write(transaction: Transaction) -> list[str]:
            scaled = []
            for wish in request.scales:
                found: Service = resolve(transaction, Service, wish.service)
                if found.pending_delete:
                    raise FailedPrecondition(what, f"service {wish.service} is being removed")
                if found.spec.mode.WhichOneof("mode") not in (None, "replicated"):
                    raise InvalidArgument(what, f"service {wish.service} is not replicated")
                edited = transaction.edit(Service, found.id)
                edited.spec.mode.replicated.replicas = wish.replicas
                _check("service", edited.spec, what)
                if edited.spec != found.spec:
                    transaction.update(edited)
                scaled.append(found.id)
            return scaled

        with told_as(what):
            ids = await self._store.update(write, reason="scale")
        for wish in request.scales:
            _log.info("service scaled", service=wish.service, replicas=wish.replicas)
        return [service for each in ids if (service := self._store.get(Service, each)) is not None]

    # ---- remove --------------------------------------------------------------------------------------

    async def remove(self, request: RemoveRequest) -> tuple[str, str, list[str]]:
        """Removes one object, or begins to; its id and name, and what is unwise about it.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it is in use.
        """
        kind: Any = kind_of(request.kind)
        what = f"cannot remove {label_of(kind)} {request.reference}"

        def write(transaction: Transaction) -> tuple[str, str]:
            item = resolve(transaction, kind, request.reference)
            why = _in_use(transaction, item, force=request.force)
            if why:
                raise FailedPrecondition(what, why, "remove its users first")
            if isinstance(item, Service):
                edited = transaction.edit(Service, item.id)
                edited.pending_delete = True
                transaction.update(edited)
            else:
                if isinstance(item, Node):
                    remember_removed(transaction, item)
                transaction.delete(kind, item.id)
            return item.id, name_of(item)

        node: Node | None = resolve(self._store, kind, request.reference) if kind is Node else None
        with told_as(what):
            if node is not None:
                await self._nodes.leave_managers(self._store, node, what, force=request.force)
            object_id, name = await self._store.update(write, reason=f"remove {label_of(kind)}")
        _log.info("removed", kind=label_of(kind), name=name, id=object_id)
        return object_id, name, self._nodes.warnings(self._store, node, None)


def _refuse_without_address(what: str, check: Callable[[], None]) -> None:
    try:
        check()
    except NoAddress as error:
        raise FailedPrecondition(what, str(error), "look at the networks: orch network ls") from error


def _check(label: str, spec: Any, what: str) -> None:
    problems = list(_CHECKS[label](spec)) if label in _CHECKS else []
    if label in ("secret", "config") and not spec.data:
        # An update of the labels carries no content.
        problems = [problem for problem in problems if problem != "it has no content"]
    if problems:
        raise InvalidArgument(what, "; ".join(problems), "correct it, then repeat")


def _without_tunables(spec: ClusterSpec) -> ClusterSpec:
    bare = ClusterSpec()
    bare.CopyFrom(spec)
    bare.ca.ClearField("node_certificate_lifetime_ms")
    bare.dispatcher.ClearField("heartbeat_period_ms")
    bare.orchestration.ClearField("task_history_limit")
    # That a part is there, with nothing in it, means nothing.
    for part in ("ca", "dispatcher", "orchestration"):
        if not getattr(bare, part).ByteSize():
            bare.ClearField(part)
    return bare


def _without_labels(spec: Any) -> Any:
    bare = type(spec)()
    bare.CopyFrom(spec)
    bare.annotations.ClearField("labels")
    return bare


def _in_use(reader: Reader, item: StoreObject, *, force: bool) -> str:  # noqa: PLR0911 - one answer a kind
    """Why an object cannot be removed; empty when it can."""
    if isinstance(item, Node):
        refused = removal_refusal(item, force=force)
        return refused[0] if refused else ""
    if isinstance(item, Service):
        return ""
    if isinstance(item, (Network, Secret, Config)):
        users = [service.spec.annotations.name for service in reader.all(Service) if item.id in _uses(service)]
        return f"it is used by service {', '.join(sorted(users))}" if users else ""
    if isinstance(item, Volume):
        name = item.spec.annotations.name
        users = [
            service.spec.annotations.name
            for service in reader.all(Service)
            if any(mount.source == name for mount in service.spec.task.container.mounts)
        ]
        return f"it is used by service {', '.join(sorted(users))}" if users else ""
    if isinstance(item, Stack):
        return "a stack is removed with all it has: orch stack rm"
    if isinstance(item, Task):
        return "tasks are the manager's: scale or remove the service"
    return "it cannot be removed this way"


def _uses(service: Service) -> set[str]:
    container = service.spec.task.container
    return {
        *(attachment.target for attachment in service.spec.task.networks),
        *(secret.secret_id for secret in container.secrets),
        *(config.config_id for config in container.configs),
    }
