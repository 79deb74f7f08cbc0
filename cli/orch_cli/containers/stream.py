"""One relayed call about a running task: frames to its node, outputs from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from orch_cli.connection import calling
from orch_cli.errors import CliError
from orch_proto.control_pb2 import ExecRequest, ExecStart
from orch_proto.node_pb2 import RelayInput, RelayOutput
from orch_rpc.errors import from_call_error

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub

_QUEUE_FRAMES = 16


class TaskStream:
    """See the module; made by `task_stream`."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._frames: asyncio.Queue[RelayInput] = asyncio.Queue(_QUEUE_FRAMES)
        self._outputs: AsyncIterator[RelayOutput]

    def begin(self, stub: ControlAsyncStub, start: ExecStart) -> None:
        """Makes the call."""
        self._outputs = aiter(stub.Exec(self._requests(start)))

    async def _requests(self, start: ExecStart) -> AsyncIterator[ExecRequest]:
        yield ExecRequest(start=start)
        while True:
            yield ExecRequest(input=await self._frames.get())

    async def send(self, frame: RelayInput) -> None:
        """Sends a frame, waiting while the node is slow."""
        await self._frames.put(frame)

    def send_now(self, frame: RelayInput) -> None:
        """Sends a frame from a signal handler; dropped when very many wait."""
        if not self._frames.full():
            self._frames.put_nowait(frame)

    async def outputs(self) -> AsyncIterator[RelayOutput]:
        """What the node says; the last one is the result.

        Raises:
            OrchError: the call failed, on the way or on the node.
            CliError: it ended without a result.
        """
        with calling(self._doing):
            async for output in self._outputs:
                which = output.WhichOneof("output")
                if which == "error":
                    raise from_call_error(output.error.code, output.error.message)
                yield output
                if which == "result":
                    return
        raise CliError(f"cannot {self._doing}", "the node ended the call without a result", "look at the log of orchd")


@asynccontextmanager
async def task_stream(stub: ControlAsyncStub, start: ExecStart, doing: str) -> AsyncIterator[TaskStream]:
    """A call about a task; cancelled at the node when the block is left.

    Args:
        stub: the control API.
        start: target and call.
        doing: for messages, as in "run a command in web".
    """
    stream = TaskStream(doing)
    stream.begin(stub, start)
    yield stream
