"""Sending an archive to a node (load, import, build) and following what the node says."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Final

from orch_cli.connection import calling
from orch_cli.errors import CliError
from orch_proto.control_pb2 import SendToNodeRequest, SendToNodeStart
from orch_proto.node_pb2 import RelayCall, RelayInput, RelayResult
from orch_rpc.errors import from_call_error

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub

TIMEOUT_S: Final = 3600.0  # a build may take long; it never takes for ever


async def send_to_node(
    stub: ControlAsyncStub,
    call: RelayCall,
    chunks: Iterator[bytes],
    *,
    doing: str,
    node: str = "",
    show: Callable[[str], None] | None = None,
    take: Callable[[bytes], object] | None = None,
) -> RelayResult:
    """Sends ``call`` and its data to a node.

    Args:
        stub: the control API.
        call: what the node shall do.
        chunks: the data, in pieces of at most a relay frame.
        doing: for messages, as in "cannot build the image web:1".
        node: reference of the node; empty: the manager's own.
        show: takes progress as text.
        take: takes data that the node sends, in pieces.

    Raises:
        OrchError: the call failed, on the way or on the node.
        CliError: the stream ended without a result, or the data could not be read.
    """
    show = show or _show_on_stderr
    failure: list[CliError] = []
    result: RelayResult | None = None
    with calling(doing):
        stream = stub.SendToNode(_requests(call, chunks, node, failure), timeout=TIMEOUT_S)
        async for output in stream:
            which = output.WhichOneof("output")
            if which == "build_progress":
                show(output.build_progress.text)
            elif which == "data" and take is not None:
                await asyncio.to_thread(take, output.data)
            elif which == "error":
                if failure:
                    raise failure[0]
                raise from_call_error(output.error.code, output.error.message)
            elif which == "result":
                result = output.result
                break
    if failure:
        raise failure[0]
    if result is None:
        raise CliError(
            f"cannot {doing}", "the node ended the call without a result", "look at the log of orchd on that node"
        )
    return result


def _show_on_stderr(text: str) -> None:
    print(text.rstrip("\n"), file=sys.stderr, flush=True)


async def _requests(
    call: RelayCall, chunks: Iterator[bytes], node: str, failure: list[CliError]
) -> AsyncIterator[SendToNodeRequest]:
    yield SendToNodeRequest(start=SendToNodeStart(node=node, call=call))
    try:
        # Reading and packing may block on a slow disk, and the answers must be read meanwhile.
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield SendToNodeRequest(input=RelayInput(data=chunk))
    except CliError as error:
        failure.append(error)
        yield SendToNodeRequest(input=RelayInput(cancel=True))
        return
    yield SendToNodeRequest(input=RelayInput(end_of_data=True))
