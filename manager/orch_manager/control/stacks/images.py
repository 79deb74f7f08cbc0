"""Which image a reference names, asked of the nodes: a deploy runs what was there when it was made, everywhere.

What is on no node is looked up in its registry, by one of the nodes, and pinned to the digest found there; the nodes
that run it pull that. What came from a registry is pinned in the same way, what was built or loaded by its own id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from orch_manager.dispatcher.calls import NodeCalls
from orch_proto.node_pb2 import ImageInspectCall, ImageResolveCall, ImageSummary, NodeCall
from orch_rpc.errors import FailedPrecondition, OrchError, Unavailable

#: How long a deploy waits for nodes to attach, as after a restart of the manager, or a change of leader.
_ATTACH_WAIT_S: Final = 5.0
_POLL_S: Final = 0.02
#: How long a node may take to ask a registry, and how many nodes are asked to, one after the other.
_REGISTRY_WAIT_S: Final = 15.0
_REGISTRY_NODES: Final = 2


@dataclass(slots=True)
class ImageFacts:
    """What the nodes know of the images of a deploy."""

    #: By reference: digest of the image's configuration, or its name in a registry with a digest.
    digests: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


async def look_up(
    calls: NodeCalls,
    policies: Mapping[str, str],
    *,
    what: str,
    kept: Mapping[str, str],
    running: Mapping[str, str] | None = None,
) -> ImageFacts:
    """Asks all ready nodes for all images at once.

    Args:
        calls: to ask with.
        policies: images as people wrote them, each with its service's pull_policy: `always` asks the registry first,
            `never` not at all.
        what: the first part of error messages.
        kept: digests that stand already and need not be asked for.
        running: digests that are gone on with, and told, where a registry does not answer.

    Raises:
        FailedPrecondition: an image is on no node and in no registry.
        Unavailable: no node can be asked.
    """
    facts = ImageFacts(digests=dict(kept))
    wanted = sorted(policies.keys() - kept.keys())
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
    if never := [reference for reference in missing if policies[reference] == "never"]:
        raise FailedPrecondition(what, f"image {never[0]} is on no node, and its pull_policy is never", _todo(never[0]))
    asked = [reference for reference in wanted if reference in missing or policies[reference] == "always"]
    answers = await asyncio.gather(
        *(_ask_registry(calls, reference, what) for reference in asked), return_exceptions=True
    )
    for reference, answer in zip(asked, answers, strict=True):
        if isinstance(answer, str):
            facts.digests[reference] = answer
        elif isinstance(answer, OrchError) and (present := (running or {}).get(reference)):
            facts.digests[reference] = present
            facts.warnings.append(f"{answer.why}; goes on with what the stack runs, {present.rpartition('@')[2][:19]}")
        else:
            raise answer
    for reference, images in zip(wanted, found, strict=True):
        if reference in asked:
            continue
        newest = max(images, key=lambda image: (image.created_at_unix_ms, image.id))
        facts.digests[reference] = _pin(reference, newest)
        if len({image.id for image in images}) > 1:
            facts.warnings.append(f"image {reference} differs between nodes: the newest one, {newest.id[:19]}, is used")
    return facts


def _pin(reference: str, image: ImageSummary) -> str:
    """By which nodes that lack the image find it: its name in a registry with the digest, else its id."""
    repository = reference.partition("@")[0]
    if ":" in repository.rpartition("/")[2]:
        repository = repository.rpartition(":")[0]
    return next((name for name in image.references if name.startswith(f"{repository}@")), image.id)


async def _ask_registry(calls: NodeCalls, reference: str, what: str) -> str:
    """What the registry of a reference has now.

    Raises:
        FailedPrecondition: it says that there is none, or cannot be asked.
    """
    call = NodeCall(image_resolve=ImageResolveCall(reference=reference))
    why = "no node could ask its registry"
    for node in calls.ready_nodes()[:_REGISTRY_NODES]:
        try:
            result = await calls.ask(node.id, call, timeout_s=_REGISTRY_WAIT_S)
        except OrchError as error:
            why = error.why
            continue
        if result.WhichOneof("result") == "image_resolve":
            return result.image_resolve.pinned_reference
        why = " ".join(result.error.message.split()) or "it did not say why"
        if result.error.code == "NOT_FOUND":
            break
    raise FailedPrecondition(what, f"the registry of image {reference} did not give it: {why}", _todo(reference))


def _todo(reference: str) -> str:
    return f"correct the name, build it with orch image build -t {reference} FOLDER, or bring it with orch image load"


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
