"""What deploying a stack changes: pure, from the present state, the wanted stack and the images' digests.

Applying and planning share this, so that a plan never says other than what a deploy does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orch_manager import tasks as states
from orch_manager.allocator.addresses import NoAddress
from orch_manager.allocator.planning import SubnetPlan, check_fixed_addresses
from orch_manager.allocator.ports import protocol_name
from orch_manager.clock import IdSource
from orch_manager.control.stacks.changes import field_changes
from orch_manager.labels import SUPERSEDED_LABEL
from orch_manager.scheduler.nodes import ports_clash
from orch_manager.store.schema import SCHEMA, Kind, StoreObject, copy_of
from orch_manager.store.tables import Reader
from orch_proto import defaults, privileges
from orch_proto.control_pb2 import ApplyStackRequest, ChangeKind, FieldChange, ObjectChange
from orch_proto.objects_pb2 import Config, Network, Node, Secret, Service, Stack, StackVersion, Volume
from orch_proto.specs_pb2 import ConfigSpec, NetworkSpec, SecretSpec, ServiceSpec, StackSpec
from orch_proto.types_pb2 import PortConfig, PublishMode, UpdateState, UpdateStatus
from orch_rpc.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfDate

#: Longest source text kept with a version.
_SOURCE_CHARACTERS: Final = 64 * 1024
#: What becomes of a paused update that goes on.
_PAUSED: Final = {
    UpdateState.UPDATE_STATE_PAUSED: UpdateState.UPDATE_STATE_UPDATING,
    UpdateState.UPDATE_STATE_ROLLBACK_PAUSED: UpdateState.UPDATE_STATE_ROLLBACK_STARTED,
}


@dataclass(slots=True)
class Deployment:
    """The result: what to write, in order, and what to tell."""

    stack_id: str
    version: int
    creates: list[StoreObject] = field(default_factory=list)
    updates: list[StoreObject] = field(default_factory=list)
    deletes: list[tuple[Kind, str]] = field(default_factory=list)
    changes: list[ObjectChange] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """False when the stack is already as wanted."""
        return bool(self.creates or self.updates or self.deletes)

    def note(self, kind: ChangeKind.ValueType, item: StoreObject, fields: Iterable[Any] = ()) -> None:
        """Adds a line to what is told."""
        schema = SCHEMA[type(item)]
        name = item.annotations.name if isinstance(item, Stack) else item.spec.annotations.name  # type: ignore[union-attr]
        self.changes.append(ObjectChange(change=kind, kind=schema.number, id=item.id, name=name, fields=fields))


class Deployer:
    """Works out one deployment.

    Args:
        reader: the state; a transaction when it is to be applied.
        request: the wanted stack, valid by itself.
        digests: of the images, by reference.
        ids: for new objects.
        now_ms: stands in versions and update statuses.
    """

    def __init__(
        self, reader: Reader, request: ApplyStackRequest, digests: Mapping[str, str], *, ids: IdSource, now_ms: int
    ) -> None:
        self._reader = reader
        self._request = request
        self._spec = request.spec
        self._digests = digests
        self._ids = ids
        self._now_ms = now_ms
        self._what = f"cannot deploy stack {self._spec.name}"
        self._networks: dict[str, str] = {}
        self._subnets = SubnetPlan(reader)
        self._new_networks: dict[str, NetworkSpec] = {}
        self._fixed: dict[tuple[str, str], str] = {}
        self._secrets: dict[str, str] = {}
        self._configs: dict[str, str] = {}
        self._resumed: list[Service] = []
        self._stack = self._present_stack()
        self._result = Deployment(self._stack.id if self._stack else ids.new(), 0)

    def work_out(self) -> Deployment:
        """The deployment.

        Raises:
            FailedPrecondition: the stack is being removed, or something it needs is not there or in use.
            OutOfDate: the stack is no longer at the version the request names.
            AlreadyExists: a name belongs to somebody else.
            NotFound: an external object does not exist.
        """
        self._resolve_externals()
        for network in self._spec.networks:
            self._network(network)
        for secret in self._spec.secrets:
            self._content(Secret, secret, self._secrets)
        for config in self._spec.configs:
            self._content(Config, config, self._configs)
        for volume in self._spec.volumes:
            self._volume(volume)
        for service in sorted(self._spec.services, key=lambda each: each.annotations.name):
            self._service(service)
        self._leftovers()
        self._write_stack()
        # Resuming is no new version of the stack: nothing that was asked for has changed.
        self._result.updates += self._resumed
        return self._result

    # ---- the stack itself ----------------------------------------------------------------------------

    def _present_stack(self) -> Stack | None:
        stack = next(iter(self._reader.find(Stack, name=self._spec.name)), None)
        if stack is not None and stack.pending_delete:
            raise FailedPrecondition(self._what, "it is being removed", "wait until it is gone: orch stack ls")
        version = stack.current.number if stack is not None else 0
        if self._request.if_version and version != self._request.if_version:
            why = f"it is at version {version}, not {self._request.if_version}"
            raise OutOfDate(self._what, why, "look at it again, then repeat")
        return stack

    def _write_stack(self) -> None:
        number = self._stack.current.number if self._stack else 0
        if self._stack is not None and not self._result.changed:
            self._result.version = number
            return
        version = StackVersion(
            number=number + 1,
            spec=_without_data(self._spec),
            source=self._request.source if len(self._request.source) <= _SOURCE_CHARACTERS else "",
            author=self._request.author,
            deployed_at_unix_ms=self._now_ms,
        )
        self._result.version = number + 1
        if self._stack is None:
            stack = Stack(id=self._result.stack_id, current=version)
            stack.annotations.name = self._spec.name
            self._result.creates.append(stack)
            return
        stack = copy_of(self._stack)
        history = [stack.current, *stack.history][: defaults.STACK_HISTORY - 1]
        kept = [StackVersion.FromString(each.SerializeToString()) for each in history]
        del stack.history[:]
        stack.history.extend(kept)
        stack.current.CopyFrom(version)
        self._result.updates.append(stack)

    # ---- whose is a name -----------------------------------------------------------------------------

    def _resolve_externals(self) -> None:
        externals: tuple[tuple[Any, Iterable[str], dict[str, str]], ...] = (
            (Network, self._spec.external_networks, self._networks),
            (Secret, self._spec.external_secrets, self._secrets),
            (Config, self._spec.external_configs, self._configs),
        )
        for kind, names, known in externals:
            label = SCHEMA[kind].label
            for name in names:
                found = next(iter(self._reader.find(kind, name=name)), None)
                if found is None:
                    todo = f"create it first: orch {label} create {name}"
                    raise NotFound(self._what, f"{label} {name} is declared external and does not exist", todo)
                known[name] = found.id

    def _own(self, kind: Any, name: str) -> Any:
        """The present object of this name, which must be this stack's; None when the name is free."""
        found = next(iter(self._reader.find(kind, name=name)), None)
        if found is None or (self._stack is not None and found.stack_id == self._stack.id):
            return found
        owner = self._reader.get(Stack, found.stack_id)
        whose = f"stack {owner.annotations.name}" if owner is not None else "no stack"
        label = SCHEMA[kind].label
        why = f"{label} {name} exists and belongs to {whose}"
        raise AlreadyExists(self._what, why, f"rename it, declare it external, or remove that {label} first")

    # ---- parts ---------------------------------------------------------------------------------------

    def _network(self, spec: NetworkSpec) -> None:
        present: Network | None = self._own(Network, spec.annotations.name)
        if present is None or present.pending_delete:
            if present is not None:
                why = f"network {spec.annotations.name} is being removed"
                raise FailedPrecondition(self._what, why, "repeat in a moment")
            try:
                self._subnets.take(spec)
            except NoAddress as error:
                why = f"network {spec.annotations.name}: {error}"
                raise FailedPrecondition(self._what, why, "look at them: orch network ls") from error
            fresh = Network(id=self._ids.new(), spec=spec, stack_id=self._result.stack_id)
            self._new_networks[fresh.id] = spec
            self._networks[spec.annotations.name] = fresh.id
            self._result.creates.append(fresh)
            self._result.note(ChangeKind.CHANGE_KIND_CREATE, fresh)
            return
        self._networks[spec.annotations.name] = present.id
        differing = field_changes(present.spec, spec)
        fixed = [change.path for change in differing if not change.path.startswith("annotations.labels")]
        if fixed:
            self._result.warnings.append(
                f"network {spec.annotations.name} stays as it is: {', '.join(fixed)} of a network cannot change; "
                "remove the stack first to have it made anew"
            )
        elif differing:
            edited = copy_of(present)
            edited.spec.CopyFrom(spec)
            self._result.updates.append(edited)
            self._result.note(ChangeKind.CHANGE_KIND_UPDATE, edited, differing)
            return
        self._result.note(ChangeKind.CHANGE_KIND_NONE, present)

    def _content(self, kind: Any, spec: SecretSpec | ConfigSpec, known: dict[str, str]) -> None:
        """A secret or config: content never changes; new content is a new object under the name."""
        name = spec.annotations.name
        digest = hashlib.sha256(spec.data).hexdigest()
        present: Any = self._own(kind, name)
        if present is not None and present.content_digest == digest:
            known[name] = present.id
            if present.spec.annotations != spec.annotations:
                edited = copy_of(present)
                edited.spec.annotations.CopyFrom(spec.annotations)
                self._result.updates.append(edited)
                self._result.note(ChangeKind.CHANGE_KIND_UPDATE, edited)
            else:
                self._result.note(ChangeKind.CHANGE_KIND_NONE, present)
            return
        fresh = kind(id=self._ids.new(), spec=spec, stack_id=self._result.stack_id, content_digest=digest)
        known[name] = fresh.id
        if present is not None:
            superseded = copy_of(present)
            superseded.spec.annotations.name = f"{name[:54]}.{present.id[:8]}"
            superseded.spec.annotations.labels[SUPERSEDED_LABEL] = fresh.id
            self._result.updates.append(superseded)
        self._result.creates.append(fresh)
        change = ChangeKind.CHANGE_KIND_CREATE if present is None else ChangeKind.CHANGE_KIND_REPLACE
        self._result.note(change, fresh)

    def _volume(self, spec: Any) -> None:
        """Volumes hold people's data: one of this name that lost its stack is taken up again."""
        found = next(iter(self._reader.find(Volume, name=spec.annotations.name)), None)
        if found is not None and found.stack_id not in ("", self._result.stack_id):
            self._own(Volume, spec.annotations.name)
        if found is None:
            fresh = Volume(id=self._ids.new(), spec=spec, stack_id=self._result.stack_id)
            self._result.creates.append(fresh)
            self._result.note(ChangeKind.CHANGE_KIND_CREATE, fresh)
        elif found.spec != spec or found.stack_id != self._result.stack_id:
            edited = copy_of(found)
            edited.spec.CopyFrom(spec)
            edited.stack_id = self._result.stack_id
            self._result.updates.append(edited)
            self._result.note(ChangeKind.CHANGE_KIND_UPDATE, edited)
        else:
            self._result.note(ChangeKind.CHANGE_KIND_NONE, found)

    def _refuse_privileges(self, spec: ServiceSpec) -> None:
        """What no node's policy allows could only wait for ever."""
        asked = privileges.wanted(spec.task.container)
        refused = [privileges.first_refused(asked, node.description.policies) for node in self._reader.all(Node)]
        if asked and refused and all(refused):
            raise FailedPrecondition(
                self._what,
                f"service {spec.annotations.name} asks for {refused[0]}, which the policy of no node allows",
                f"start orchd with --allow {refused[0]} on nodes that shall run it, or leave it out of the stack file",
            )

    def _service(self, wanted: ServiceSpec) -> None:
        spec = self.resolved(wanted)
        self._check_addresses(spec)
        name = spec.annotations.name
        present: Service | None = self._own(Service, name)
        if present is not None and present.pending_delete:
            raise FailedPrecondition(
                self._what, f"service {name} is being removed", "wait until it is gone, then repeat"
            )
        check_ports(self._reader, spec, present.id if present else "", self._what)
        self._refuse_impossible_reservations(spec)
        self._refuse_privileges(spec)
        if present is None:
            fresh = Service(id=self._ids.new(), spec=spec, spec_version=1, stack_id=self._result.stack_id)
            self._result.creates.append(fresh)
            self._result.note(ChangeKind.CHANGE_KIND_CREATE, fresh)
        elif present.spec == spec and present.update_status.state in _PAUSED:
            edited, change = _with_update_resumed(present, self._now_ms)
            self._resumed.append(edited)
            self._result.note(ChangeKind.CHANGE_KIND_UPDATE, edited, [change])
        elif present.spec == spec:
            self._result.note(ChangeKind.CHANGE_KIND_NONE, present)
        else:
            edited, replaces = with_new_spec(present, spec, self._now_ms)
            self._result.updates.append(edited)
            kind = ChangeKind.CHANGE_KIND_REPLACE if replaces else ChangeKind.CHANGE_KIND_UPDATE
            self._result.note(kind, edited, field_changes(present.spec, spec))

    def _check_addresses(self, spec: ServiceSpec) -> None:
        """Refuses fixed addresses that cannot be had, also since two services of the stack name one."""
        name = spec.annotations.name
        present: Service | None = self._own(Service, name)
        todo = "choose another one"
        try:
            check_fixed_addresses(self._reader, spec, self._new_networks, present.id if present is not None else "")
        except NoAddress as error:
            raise FailedPrecondition(self._what, f"service {name}: {error}", todo) from error
        for attachment in spec.task.networks:
            owner = self._fixed.setdefault((attachment.target, attachment.ipv4_address), name)
            if attachment.ipv4_address and owner != name:
                why = f"service {name}: address {attachment.ipv4_address} is named by service {owner} too"
                raise FailedPrecondition(self._what, why, todo)

    def resolved(self, wanted: ServiceSpec) -> ServiceSpec:
        """A service's specification with ids in the place of names, and its image pinned."""
        spec = copy_spec(wanted)
        name = spec.annotations.name
        container = spec.task.container
        container.image_digest = self._digests.get(container.image, "")
        for attachment in spec.task.networks:
            attachment.target = self._id_of(self._networks, attachment.target, "network", name)
        for secret in container.secrets:
            secret.secret_id = self._id_of(self._secrets, secret.secret_name, "secret", name)
        for config in container.configs:
            config.config_id = self._id_of(self._configs, config.config_name, "config", name)
        return spec

    def _id_of(self, known: Mapping[str, str], name: str, label: str, service: str) -> str:
        if name not in known:
            why = f"service {service} uses {label} {name}, which the stack does not declare"
            raise InvalidArgument(self._what, why, f"declare it under {label}s, or as external")
        return known[name]

    def _refuse_impossible_reservations(self, spec: ServiceSpec) -> None:
        """What no node has at all can never be placed; what is merely taken now may be, so that waits instead.

        Raises:
            FailedPrecondition: the service reserves more than the largest node has.
        """
        reserved = spec.task.resources.reservations
        nodes = self._reader.all(Node)
        for label, needed, most in (
            (
                "memory",
                reserved.memory_bytes,
                max((each.description.resources.memory_bytes for each in nodes), default=0),
            ),
            ("CPU", reserved.nano_cpus, max((each.description.resources.nano_cpus for each in nodes), default=0)),
        ):
            if needed > most:
                raise FailedPrecondition(
                    self._what,
                    f"service {spec.annotations.name} reserves {_amount(label, needed)} of {label}, and the largest "
                    f"node has {_amount(label, most)}",
                    "lower deploy.resources.reservations, or add a node that is large enough; nothing was changed",
                )

    # ---- what the file lacks -------------------------------------------------------------------------

    def _leftovers(self) -> None:
        if self._stack is None:
            return
        wanted = {spec.annotations.name for spec in self._spec.services}
        for service in self._reader.find(Service, stack_id=self._stack.id):
            name = service.spec.annotations.name
            if name in wanted or service.pending_delete:
                continue
            if not self._request.prune:
                self._result.warnings.append(f"service {name} is not in the file and goes on: --prune removes it")
                continue
            edited = copy_of(service)
            edited.pending_delete = True
            self._result.updates.append(edited)
            self._result.note(ChangeKind.CHANGE_KIND_REMOVE, edited)
        if self._request.prune:
            self._prune_networks()

    def _prune_networks(self) -> None:
        assert self._stack is not None
        for network in self._reader.find(Network, stack_id=self._stack.id):
            if network.id not in self._networks.values() and not network.pending_delete:
                edited = copy_of(network)
                edited.pending_delete = True
                self._result.updates.append(edited)
                self._result.note(ChangeKind.CHANGE_KIND_REMOVE, edited)


def copy_spec(spec: ServiceSpec) -> ServiceSpec:
    """A copy to be changed."""
    copied = ServiceSpec()
    copied.CopyFrom(spec)
    return copied


def with_new_spec(service: Service, spec: ServiceSpec, now_ms: int) -> tuple[Service, bool]:
    """A copy of a service with another specification, and whether its tasks are replaced: then an update begins."""
    edited = copy_of(service)
    replaces = states.needs_new_tasks(service.spec, spec)
    if replaces:
        going_back = service.HasField("previous_spec") and not states.needs_new_tasks(service.previous_spec, spec)
        newest = max(service.spec_version, service.previous_spec_version)
        # Going back takes the old number up again: slots that still run it stay.
        edited.spec_version = service.previous_spec_version if going_back else newest + 1
        edited.previous_spec.CopyFrom(service.spec)
        edited.previous_spec_version = service.spec_version
        edited.update_status.CopyFrom(
            UpdateStatus(
                state=UpdateState.UPDATE_STATE_UPDATING, started_at_unix_ms=now_ms, message="update in progress"
            )
        )
    edited.spec.CopyFrom(spec)
    return edited, replaces


def _with_update_resumed(service: Service, now_ms: int) -> tuple[Service, FieldChange]:
    """A copy of a service whose paused update goes on: who deploys the same again wants it tried again.

    Failures before now count no more (`docker service update` resumes in the same way).
    """
    edited = copy_of(service)
    old = UpdateState.Name(service.update_status.state).removeprefix("UPDATE_STATE_").lower()
    edited.update_status.CopyFrom(
        UpdateStatus(
            state=_PAUSED[service.update_status.state], started_at_unix_ms=now_ms, message="the paused update goes on"
        )
    )
    return edited, FieldChange(path="update", old_value=old, new_value="resumed")


def check_ports(reader: Reader, spec: ServiceSpec, service_id: str, what: str) -> None:
    """Refuses an ingress port that another service has.

    Raises:
        FailedPrecondition: naming the owner.
    """
    wanted = [
        port for port in spec.endpoint.ports if port.published_port and port.mode != PublishMode.PUBLISH_MODE_HOST
    ]
    if not wanted:
        return
    for other in reader.all(Service):
        if other.id == service_id:
            continue
        taken: list[PortConfig] = [*other.endpoint.ports, *other.spec.endpoint.ports]
        for port in wanted:
            mine = (port.host_ip, port.protocol or 1, port.published_port)
            if any(
                ports_clash(mine, (each.host_ip, each.protocol or 1, each.published_port))
                for each in taken
                if each.mode != PublishMode.PUBLISH_MODE_HOST
            ):
                owner = other.spec.annotations.name
                why = f"port {port.published_port}/{protocol_name(port.protocol)} is published by service {owner}"
                more = " (which is being removed)" if other.pending_delete else ""
                todo = f"publish another port, or remove {owner} first"
                raise FailedPrecondition(what, f"service {spec.annotations.name}: {why}{more}", todo)


def _amount(label: str, value: int) -> str:
    if label != "memory":
        return f"{value / 1e9:g}"
    return (
        f"{value / (1024 * defaults.MIB):.1f} GiB"
        if value >= 1024 * defaults.MIB
        else f"{value / defaults.MIB:.0f} MiB"
    )


def _without_data(spec: StackSpec) -> StackSpec:
    """The stack as its history keeps it: without the content of secrets and configs."""
    kept = StackSpec()
    kept.CopyFrom(spec)
    for item in [*kept.secrets, *kept.configs]:
        item.ClearField("data")
    return kept
