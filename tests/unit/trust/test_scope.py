"""What a user may touch whose role is limited to stacks with a prefix."""

from __future__ import annotations

import contextvars
from collections.abc import Callable

import pytest

from orch_manager.ca.scope import StackScope
from orch_manager.store.tables import State
from orch_manager.store.transaction import Overlay
from orch_proto import control_pb2 as control
from orch_proto.objects_pb2 import Network, Secret, Service, Stack, Task
from orch_proto.specs_pb2 import ServiceSpec, StackSpec
from orch_proto.types_pb2 import MountType, ObjectKind
from orch_rpc.authorization import calling_as
from orch_rpc.callers import Caller, CallerKind, UserRole
from orch_rpc.errors import PermissionDenied

LIMITED = Caller(CallerKind.USER, "dave", "cluster1", UserRole.DEPLOY, "shop")


@pytest.fixture
def scope() -> StackScope:
    """A cluster with the stacks shop and blog, each with a service, a secret and a network."""
    reader = Overlay(State())
    for name in ("shop", "blog"):
        stack = Stack(id=f"{name}-id")
        stack.annotations.name = name
        reader.set(Stack, stack.id, stack)
        for kind, what in ((Service, "web"), (Secret, "key"), (Network, "net")):
            item = kind(id=f"{name}-{what}-id", stack_id=stack.id)
            item.spec.annotations.name = f"{name}_{what}"
            reader.set(kind, item.id, item)
    return StackScope(reader)  # type: ignore[arg-type]  # an overlay reads as a store does


def service(name: str = "shop_web", change: Callable[[ServiceSpec], object] = lambda _spec: None) -> ServiceSpec:
    spec = ServiceSpec()
    spec.annotations.name = name
    change(spec)
    return spec


def apply_request(name: str = "shop", *services: ServiceSpec, **fields: list[str]) -> control.ApplyStackRequest:
    return control.ApplyStackRequest(spec=StackSpec(name=name, services=services or (service(),), **fields))  # type: ignore[arg-type]


def test_its_own_stack_may_be_deployed_changed_and_removed(scope: StackScope) -> None:
    """Everything of a stack with the prefix is the user's, its own secrets and volumes and the ingress network too."""

    def own(spec: ServiceSpec) -> None:
        spec.task.container.secrets.add(secret_name="shop_key")
        spec.task.networks.add(target="shop_net")
        spec.task.networks.add(target="ingress")
        spec.task.container.mounts.add(type=MountType.MOUNT_TYPE_VOLUME, source="shop_data", target="/data")
        spec.task.container.namespaces.network = "private"

    scope(LIMITED, "Control/ApplyStack", apply_request("shop", service(change=own)))
    scope(LIMITED, "Control/ApplyStack", apply_request("shop2", service("shop2_web")))
    scope(LIMITED, "Control/RemoveStack", control.RemoveStackRequest(name="shop"))
    scale = control.ScaleServicesRequest(scales=[control.ServiceScale(service="shop_web", replicas=2)])
    scope(LIMITED, "Control/ScaleServices", scale)
    remove = control.RemoveRequest(kind=ObjectKind.OBJECT_KIND_SECRET, reference="shop-key-id")
    scope(LIMITED, "Control/Remove", remove)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ApplyStack", apply_request("blog")),
        ("ApplyStack", apply_request("shop", service("blog_web"))),
        ("ApplyStack", apply_request("shop", external_secrets=["blog_key"])),
        ("ApplyStack", apply_request("shop", external_networks=["blog_net"])),
        ("RemoveStack", control.RemoveStackRequest(name="blog")),
        ("ScaleServices", control.ScaleServicesRequest(scales=[control.ServiceScale(service="blog_web")])),
        ("Remove", control.RemoveRequest(kind=ObjectKind.OBJECT_KIND_SECRET, reference="blog_key")),
        ("Update", control.UpdateRequest(kind=ObjectKind.OBJECT_KIND_SERVICE, id="blog-web-id")),
        ("CallNodes", control.CallNodesRequest()),
        ("UnlockKey", control.UnlockKeyRequest()),
    ],
)
def test_what_is_not_its_own_is_refused(scope: StackScope, method: str, request_: object) -> None:
    """Another stack, an object or a secret of one, what all share, and every method that nobody thought of."""
    with pytest.raises(PermissionDenied):
        scope(LIMITED, f"Control/{method}", request_)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda spec: spec.task.container.secrets.add(secret_id="blog-key-id"), "cannot touch blog_key"),
        (lambda spec: spec.task.networks.add(target="blog_net"), "cannot touch blog_net"),
        (
            lambda spec: spec.task.container.mounts.add(type=MountType.MOUNT_TYPE_VOLUME, source="blog_data"),
            "cannot touch volume blog_data",
        ),
        (
            lambda spec: spec.task.container.mounts.add(type=MountType.MOUNT_TYPE_BIND, source="/"),
            "it wants a bind mount of the node's files",
        ),
        (lambda spec: spec.task.container.cap_add.append("SYS_ADMIN"), "additional capabilities"),
        (lambda spec: spec.task.container.devices.add(), "devices of the node"),
        (lambda spec: setattr(spec.task.container.privileges, "privileged", True), "the privilege privileged"),
        (lambda spec: setattr(spec.task.container.privileges, "seccomp", "unconfined"), "the privilege seccomp"),
        (lambda spec: setattr(spec.task.container.namespaces, "pid", "host"), "the pid namespace of the node"),
    ],
)
def test_a_service_may_not_reach_beyond_its_stack(
    scope: StackScope, change: Callable[[ServiceSpec], object], why: str
) -> None:
    """A service that would read another stack's secret, or the node itself, is refused whichever way it comes."""
    spec = service(change=change)
    create, update = control.CreateRequest(), control.UpdateRequest(kind=ObjectKind.OBJECT_KIND_SERVICE, id="shop_web")
    create.spec.service.CopyFrom(spec)
    update.spec.service.CopyFrom(spec)
    for method, request in (("ApplyStack", apply_request("shop", spec)), ("Create", create), ("Update", update)):
        with pytest.raises(PermissionDenied, match=why):
            scope(LIMITED, f"Control/{method}", request)


def test_a_command_runs_in_its_own_tasks_only(scope: StackScope) -> None:
    """Exec into a task of another stack is refused; those without a limit are not asked."""
    tasks = {
        name: Task(id=f"{name}-task", service_name=f"{name}_web", stack_id=f"{name}-id") for name in ("shop", "blog")
    }

    def story() -> None:
        calling_as(LIMITED)
        scope.require_task(tasks["shop"])
        with pytest.raises(PermissionDenied, match="begin with 'shop' only"):
            scope.require_task(tasks["blog"])
        calling_as(Caller(CallerKind.USER, "anna", "cluster1", UserRole.ADMIN))
        scope.require_task(tasks["blog"])

    contextvars.copy_context().run(story)
