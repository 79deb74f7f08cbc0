"""Which of a node's images the cluster wants."""

from __future__ import annotations

import contextvars

import pytest

from orch_manager.relay.wanted_images import wanted_images
from orch_manager.store.tables import State
from orch_manager.store.transaction import Overlay
from orch_proto import defaults
from orch_proto.dispatcher_pb2 import ImageNames, WantedImagesRequest
from orch_proto.objects_pb2 import Service, Task
from orch_proto.types_pb2 import TaskState
from orch_rpc.authorization import calling_as
from orch_rpc.callers import Caller, CallerKind
from orch_rpc.errors import InvalidArgument, PermissionDenied

NODE = Caller(CallerKind.WORKER, "n1", "cluster1")


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@pytest.fixture
def cluster() -> Overlay:
    """A service that runs image 2 after image 1, one of a registry's, and a task of a service that is gone."""
    reader = Overlay(State())
    web = Service(id="web")
    web.spec.task.container.image, web.spec.task.container.image_digest = "web:1", digest(2)
    web.previous_spec.task.container.image, web.previous_spec.task.container.image_digest = "web:1", digest(1)
    reader.set(Service, web.id, web)
    cache = Service(id="cache")
    cache.spec.task.container.image = "redis"
    cache.spec.task.container.image_digest = f"docker.io/library/redis@{digest(9)}"
    reader.set(Service, cache.id, cache)
    for name, number, state in (
        ("running", 3, TaskState.TASK_STATE_RUNNING),
        ("ended", 4, TaskState.TASK_STATE_FAILED),
    ):
        task = Task(id=name, desired_state=TaskState.TASK_STATE_RUNNING)
        task.status.state = state
        task.spec.container.image, task.spec.container.image_digest = "job:1", digest(number)
        if name == "ended":
            task.desired_state = TaskState.TASK_STATE_SHUTDOWN
        reader.set(Task, task.id, task)
    return reader


def asked(cluster: Overlay, *images: ImageNames, node: str = "n1") -> list[str]:
    def ask() -> list[str]:
        calling_as(NODE)
        request = WantedImagesRequest(node_id=node, images=images)
        return list(wanted_images(cluster, request).ids)  # type: ignore[arg-type]  # an overlay reads as a store does

    return contextvars.copy_context().run(ask)


def test_what_runs_and_what_would_be_gone_back_to(cluster: Overlay) -> None:
    """By id, also when the name has moved on to another image; what ended long ago counts for nothing."""
    images = [ImageNames(id=digest(number), digests=[digest(number)]) for number in (1, 2, 3, 4, 5)]
    assert asked(cluster, *images) == [digest(1), digest(2), digest(3)]


def test_by_the_registrys_digest_and_by_name(cluster: Overlay) -> None:
    """A pulled image has an id that no spec names; a name counts however it is written."""
    assert asked(cluster, ImageNames(id=digest(20), digests=[digest(20), digest(9)])) == [digest(20)]
    for name in ("redis:latest", "redis", "docker.io/library/redis:latest"):
        assert asked(cluster, ImageNames(id=digest(21), digests=[digest(21)], names=[name])) == [digest(21)]
    for name in ("redis:7", "other/redis:latest", "registry:5000/redis"):
        assert asked(cluster, ImageNames(id=digest(21), digests=[digest(21)], names=[name])) == []


def test_a_node_asks_for_itself_and_not_for_too_many(cluster: Overlay) -> None:
    """Another node's name is refused, and so is a list without end."""
    with pytest.raises(PermissionDenied):
        asked(cluster, node="n2")
    with pytest.raises(InvalidArgument, match="at most 1000"):
        asked(cluster, *[ImageNames(id="x")] * (defaults.WANTED_IMAGES_MAX + 1))
