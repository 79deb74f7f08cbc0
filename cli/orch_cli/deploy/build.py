"""Building the images of a stack before it is applied."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orch_cli.compose.service import Build
from orch_cli.connection import calling
from orch_cli.deploy.context import ContextFile, pack_context
from orch_cli.deploy.delivery import deliver_image
from orch_cli.deploy.transfer import send_to_node
from orch_proto import defaults
from orch_proto.control_pb2 import CallNodesRequest
from orch_proto.node_pb2 import ImageBuildCall, ImageInspectCall, ImageTagCall, NodeCall, RelayCall
from orch_rpc.errors import from_call_error

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub

CALL_TIMEOUT_S = defaults.NODE_CALL_TIMEOUT_MS / 1000 + 5


async def build_images(stub: ControlAsyncStub, builds: Sequence[Build], *, always: bool, quiet: bool) -> None:
    """Builds the images that no node has, or all of them.

    Args:
        stub: the control API.
        builds: what the stack's services build.
        always: build even what is there.
        quiet: do not show progress.
    """
    if always:
        wanted = list(builds)
    else:
        there = await asyncio.gather(*(is_on_a_node(stub, build.image) for build in builds))
        wanted = [build for build, present in zip(builds, there, strict=True) if build.always or not present]
    done: set[str] = set()
    for build in wanted:
        # Two services may name one image; it is built once, from the first.
        if build.image not in done:
            done.add(build.image)
            image_id = await build_image(stub, build, quiet=quiet)
            # A node that cannot be reached now fetches it when a task needs it there.
            await deliver_image(stub, build.image, image_id=image_id, quiet=quiet)


async def is_on_a_node(stub: ControlAsyncStub, image: str) -> bool:
    """Whether any ready node has the image."""
    call = NodeCall(image_inspect=ImageInspectCall(reference=image))
    with calling(f"look for the image {image}"):
        answer = await stub.CallNodes(CallNodesRequest(call=call), timeout=CALL_TIMEOUT_S)
    return any(item.result.HasField("image_inspect") for item in answer.answers)


async def build_image(stub: ControlAsyncStub, build: Build, *, quiet: bool = False, node: str = "") -> str:
    """Builds one image on a node; returns its id."""
    if not quiet:
        print(f"Building {build.image or 'an image'} from {build.context}", file=sys.stderr, flush=True)
    inline = ContextFile(build.dockerfile, build.inline.encode()) if build.inline else None
    call = RelayCall(
        image_build=ImageBuildCall(
            reference=build.image,
            dockerfile=build.dockerfile,
            build_args=build.args,
            target=build.target,
            no_cache=build.no_cache,
            labels=build.labels,
            secrets=build.secrets,
            network=build.network,
            platform=build.platform,
            tags=build.tags,
        )
    )
    show = (lambda _text: None) if quiet else None
    ignore = None
    if build.inline_ignore is not None:
        ignore = ContextFile(f"{build.dockerfile}.dockerignore", build.inline_ignore)
    chunks = pack_context(build.context, build.dockerfile, inline, ignore)
    doing = f"build the image {build.image}" if build.image else "build the image"
    result = await send_to_node(stub, call, chunks, doing=doing, node=node, show=show)
    return result.images[0].id if result.images else ""


async def tag_image(stub: ControlAsyncStub, source: str, target: str, node: str = "") -> None:
    """Gives an image another name, on one node or on all that have it.

    Raises:
        OrchError: no node could do it.
    """
    call = NodeCall(image_tag=ImageTagCall(source=source, target=target))
    with calling(f"tag the image {source}"):
        answer = await stub.CallNodes(CallNodesRequest(node=node, call=call), timeout=CALL_TIMEOUT_S)
    if not any(item.result.HasField("image_tag") for item in answer.answers):
        errors = [item.result.error for item in answer.answers]
        code, message = (
            (errors[0].code, errors[0].message) if errors else ("UNAVAILABLE", "cannot tag the image\nno node is ready")
        )
        raise from_call_error(code, message)
