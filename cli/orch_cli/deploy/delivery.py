"""Giving an image to the nodes of the cluster that lack it, without a registry."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orch_cli.connection import calling
from orch_cli.deploy.transfer import send_to_node
from orch_cli.errors import CliError, format_error
from orch_proto import defaults
from orch_proto.control_pb2 import CallNodesRequest, NodeAnswer
from orch_proto.node_pb2 import ImageFetchCall, ImageInspectCall, NodeCall, RelayCall
from orch_rpc.errors import OrchError

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub

#: Nodes that fetch at once: they all fetch from the one that has the image.
_AT_ONCE: Final = 3


@dataclass(frozen=True)
class Delivered:
    """What became of a delivery: host names of nodes."""

    had_it: tuple[str, ...]
    got_it: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    """With the reason."""


async def deliver_image(
    stub: ControlAsyncStub, reference: str, *, image_id: str = "", node: str = "", quiet: bool = False
) -> Delivered:
    """Have every ready node fetch an image that it lacks, or has another one of the name.

    Args:
        stub: the control API.
        reference: its name.
        image_id: the right one's id, where it is known.
        node: the node that has the right one, if several differ.
        quiet: tell nothing on standard error.

    Raises:
        OrchError, CliError: no node has it, or several have different ones.
    """
    doing = f"deliver {reference}"
    with calling(doing):
        call = NodeCall(image_inspect=ImageInspectCall(reference=reference))
        answers = await stub.CallNodes(CallNodesRequest(call=call), timeout=defaults.NODE_CALL_TIMEOUT_MS / 1000 + 5)
    image_id = image_id or _id_to_deliver(list(answers.answers), node, doing)
    had_it = [answer for answer in answers.answers if answer.result.image_inspect.image.id == image_id]
    lack_it = [answer for answer in answers.answers if answer.result.image_inspect.image.id != image_id]
    slots = asyncio.Semaphore(_AT_ONCE)
    failed: list[tuple[str, str]] = []
    got_it: list[str] = []

    async def one(answer: NodeAnswer) -> None:
        fetch = RelayCall(image_fetch=ImageFetchCall(reference=reference, image_id=image_id))
        try:
            async with slots:
                await send_to_node(stub, fetch, iter(()), doing=doing, node=answer.node_id, show=lambda _text: None)
        except OrchError as error:
            failed.append((answer.node_hostname, error.why or error.what))
            if not quiet:
                print(
                    format_error(f"node {answer.node_hostname}: {error.what}", error.why, error.todo), file=sys.stderr
                )
            return
        got_it.append(answer.node_hostname)
        if not quiet:
            print(f"{reference} delivered to {answer.node_hostname}", file=sys.stderr, flush=True)

    await asyncio.gather(*(one(answer) for answer in lack_it))
    return Delivered(tuple(answer.node_hostname for answer in had_it), tuple(sorted(got_it)), tuple(sorted(failed)))


def _id_to_deliver(answers: list[NodeAnswer], node: str, doing: str) -> str:
    holders = [answer for answer in answers if answer.result.HasField("image_inspect")]
    if node:
        holders = [answer for answer in holders if node in (answer.node_hostname, answer.node_id)]
    ids = {answer.result.image_inspect.image.id for answer in holders}
    if len(ids) > 1:
        names = ", ".join(answer.node_hostname for answer in holders)
        why = f"it is not the same image on {names}"
        raise CliError(f"cannot {doing}", why, "name the node that has the right one: --node NODE")
    if not ids:
        why = f"node {node} does not have it" if node else "no ready node has it"
        raise CliError(f"cannot {doing}", why, "`orch image ls` shows the images of the nodes")
    return ids.pop()
