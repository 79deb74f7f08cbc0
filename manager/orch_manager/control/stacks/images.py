"""Which image a reference names, asked of the nodes: a deploy runs what was there when it was made, everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from orch_manager.dispatcher.calls import NodeCalls
from orch_proto.node_pb2 import ImageInspectCall, ImageSummary, NodeCall
from orch_rpc.errors import FailedPrecondition, Unavailable

#: How long a deploy waits for nodes to attach, as after a restart of the manager, or a change of leader.
_ATTACH_WAIT_S: Final = 5.0
_POLL_S: Final = 0.02


@dataclass(slots=True)
class ImageFacts:
    """What the nodes know of the images of a deploy."""

    #: Digest of the image's configuration by reference.
    digests: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


async def look_up(calls: NodeCalls, references: Iterable[str], *, what: str, kept: Mapping[str, str]) -> ImageFacts:
    """Asks all ready nodes for all references at once.

    Args:
        calls: to ask with.
        references: images as people wrote them.
        what: the first part of error messages.
        kept: digests that stand already and need not be asked for.

    Raises:
        FailedPrecondition: an image is on no node.
        Unavailable: no node can be asked.
    """
    facts = ImageFacts(digests=dict(kept))
    wanted = sorted(set(references) - kept.keys())
    if not wanted:
        return facts
    until_s = asyncio.get_running_loop().time() + _ATTACH_WAIT_S
    await _wait_for_nodes(calls, what)
    while True:
        # Those that are on their way to a new leader may have what the others lack.
        all_asked = not calls.awaited_nodes()
        found = await asyncio.gather(*(_find(calls, reference) for reference in wanted))
        missing = [reference for reference, images in zip(wanted, found, strict=True) if not images]
        if not missing or all_asked or asyncio.get_running_loop().time() >= until_s:
            break
        await asyncio.sleep(_POLL_S)
    if missing:
        names = ", ".join(missing)
        todo = f"build it with orch image build -t {missing[0]} FOLDER, or bring it with orch image load"
        raise FailedPrecondition(what, f"image {names} is on no node", todo)
    for reference, images in zip(wanted, found, strict=True):
        newest = max(images, key=lambda image: (image.created_at_unix_ms, image.id))
        facts.digests[reference] = newest.id
        if len({image.id for image in images}) > 1:
            facts.warnings.append(f"image {reference} differs between nodes: the newest one, {newest.id[:19]}, is used")
    return facts


async def _wait_for_nodes(calls: NodeCalls, what: str) -> None:
    deadline_s = asyncio.get_running_loop().time() + _ATTACH_WAIT_S
    while not calls.ready_nodes():
        if asyncio.get_running_loop().time() >= deadline_s:
            raise Unavailable(
                what, "no node is ready, so that no image can be found", "look at orch node ls, then repeat"
            )
        await asyncio.sleep(_POLL_S)


async def _find(calls: NodeCalls, reference: str) -> list[ImageSummary]:
    call = NodeCall(image_inspect=ImageInspectCall(reference=reference))
    answers = await calls.ask_all(calls.ready_nodes(), call)
    return [
        answer.result.image_inspect.image for answer in answers if answer.result.WhichOneof("result") == "image_inspect"
    ]
