"""Which images the cluster still wants: what services run, what they would go back to, and what tasks have."""

from __future__ import annotations

from collections.abc import Iterator

from orch_manager import tasks as states
from orch_manager.store.tables import Reader
from orch_proto import defaults
from orch_proto.dispatcher_pb2 import WantedImagesRequest, WantedImagesResponse
from orch_proto.objects_pb2 import Service, Task
from orch_proto.specs_pb2 import ContainerSpec
from orch_rpc.authorization import current_call
from orch_rpc.errors import InvalidArgument

_DEFAULT_REGISTRY = "docker.io/"
_LIBRARY = "library/"


def wanted_images(reader: Reader, request: WantedImagesRequest) -> WantedImagesResponse:
    """The ids of those of a node's images that somebody wants. It learns nothing of others.

    Raises:
        InvalidArgument: too many images are asked about.
        PermissionDenied: the caller is another node.
    """
    current_call().require_node(request.node_id)
    if len(request.images) > defaults.WANTED_IMAGES_MAX:
        raise InvalidArgument("cannot say which images are wanted", f"at most {defaults.WANTED_IMAGES_MAX} at once")
    digests: set[str] = set()
    names: set[str] = set()
    for container in _containers(reader):
        names.add(_plain(container.image))
        for reference in (container.image_digest, container.image):
            # "sha256:…" of an image that was built, or "registry/name@sha256:…".
            digest = reference.rpartition("@")[2]
            if digest.startswith("sha256:"):
                digests.add(digest)
    return WantedImagesResponse(
        ids=[
            image.id
            for image in request.images
            if not digests.isdisjoint(image.digests) or any(_plain(name) in names for name in image.names)
        ]
    )


def _containers(reader: Reader) -> Iterator[ContainerSpec]:
    for service in reader.all(Service):
        yield service.spec.task.container
        yield service.previous_spec.task.container
    for task in reader.all(Task):
        if states.is_wanted(task):
            yield task.spec.container


def _plain(name: str) -> str:
    """A name as it is compared: `docker.io/library/web` and `web:latest` are one."""
    short = name.removeprefix(_DEFAULT_REGISTRY).removeprefix(_LIBRARY)
    return short if ":" in short.rpartition("/")[2] or "@" in short else f"{short}:latest"
