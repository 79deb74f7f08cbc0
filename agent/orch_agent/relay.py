"""Serves the long calls, each on a stream that the agent opens when told to: logs; images pulled, loaded, built.

Calls about one running container are served by `orch_agent.containers`.
"""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc

from orch_agent import logs as container_logs
from orch_agent.calls import call_error, image_summary
from orch_agent.containers.caller import LAST_WORD_WAIT_S
from orch_agent.containers.service import KINDS, ContainerCalls
from orch_agent.errors import RelayFailed
from orch_agent.image_peers import ImagePeers, archive_pipe, pieces
from orch_agent.image_workers import ImageWorkers, events_of
from orch_agent.images.store import ImageStore
from orch_agent.task.controller import TaskController
from orch_agent.task.preparation import Preparation
from orch_agent.task.templates import NodeFacts
from orch_proto import defaults, dispatcher_pb2_grpc
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import node_pb2 as calls
from orch_rpc import logs

log = logs.get("relay")
FIRST_CALL_WAIT_S = 10.0
MAX_UPLOAD_BYTES = 64 << 30
LOG_QUEUE_CHUNKS = 16
_Stream = grpc.aio.StreamStreamCall[dispatcher.RelayUp, dispatcher.RelayDown]


class RelayServer:
    """Serves relay streams.

    Args:
        node: this node.
        images: the node's images.
        preparation: knows where logs are.
        controllers: gives the node's tasks.
        scratch: folder for uploads.
        runtime_socket: for the steps of a build.
        workers: do the heavy work on images.
        peers: fetches images from other nodes.
    """

    def __init__(
        self,
        *,
        node: NodeFacts,
        images: ImageStore,
        preparation: Preparation,
        controllers: Callable[[], dict[str, TaskController]],
        scratch: Path,
        runtime_socket: Path,
        workers: ImageWorkers,
        peers: ImagePeers,
    ) -> None:
        self._node = node
        self._images = images
        self._preparation = preparation
        self._controllers = controllers
        self._scratch = scratch
        self._runtime_socket = runtime_socket
        self._workers = workers
        self._peers = peers
        self._containers = ContainerCalls(runtime_socket, controllers, preparation.log_path)

    async def serve(self, relay_id: str, channel: grpc.aio.Channel) -> None:
        """Opens the stream and answers what is asked on it; errors go to the caller."""
        stream = dispatcher_pb2_grpc.RelayStub(channel).Open(None)
        try:
            hello = dispatcher.RelayHello(relay_id=relay_id, node_id=self._node.id)
            await stream.write(dispatcher.RelayUp(hello=hello))
            async with asyncio.timeout(FIRST_CALL_WAIT_S):
                first = await stream.read()
            if not isinstance(first, dispatcher.RelayDown) or first.WhichOneof("message") != "call":
                return
            try:
                await self._serve_call(first.call, stream)
            except (grpc.aio.AioRpcError, asyncio.CancelledError):
                raise
            except Exception as error:
                failure = call_error(error)
                if isinstance(error, RelayFailed):
                    failure.code = error.code
                if failure.code == "INTERNAL":
                    log.exception("relay.failed", error, call=str(first.call.WhichOneof("call")))  # noqa: PLE1205, TRY401 -- ours, not logging
                await _say(stream, calls.RelayOutput(error=failure))
            await stream.done_writing()
            # Cancelling the call would throw away what is still on its way to the caller.
            async with asyncio.timeout(LAST_WORD_WAIT_S):
                while isinstance(await stream.read(), dispatcher.RelayDown):
                    pass
        except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError) as error:
            log.debug("relay.ended", relay=relay_id, why=str(error))
        finally:
            stream.cancel()

    async def _serve_call(self, call: calls.RelayCall, stream: _Stream) -> None:
        match call.WhichOneof("call"):
            case "logs":
                await self._serve_logs(call.logs, stream)
            case "image_load":
                await self._serve_image_work(stream, {"work": "load"})
            case "image_pull":
                await self._serve_image_work(stream, {"work": "pull", "reference": call.image_pull.reference})
            case "image_push":
                await self._serve_image_work(stream, {"work": "push", "reference": call.image_push.reference})
            case "image_save":
                await self._serve_image_save(call.image_save, stream)
            case "image_fetch":
                await self._peers.fetch(call.image_fetch.reference, call.image_fetch.image_id)
                fetched = image_summary(self._images.resolve(call.image_fetch.image_id), self._node)
                await _say(stream, calls.RelayOutput(result=calls.RelayResult(images=[fetched])))
            case "image_import":
                changes = list(call.image_import.changes)
                wish: dict[str, object] = {
                    "work": "import",
                    "reference": call.image_import.reference,
                    "changes": changes,
                }
                await self._serve_image_work(stream, wish)
            case "image_build":
                build = call.image_build
                wish = {
                    "work": "build",
                    "reference": build.reference,
                    "dockerfile": build.dockerfile or "Dockerfile",
                    "build_args": dict(build.build_args),
                    "target": build.target,
                    "no_cache": build.no_cache,
                    "labels": dict(build.labels),
                    "secrets": {name: base64.b64encode(value).decode() for name, value in build.secrets.items()},
                    "network": build.network,
                    "platform": build.platform,
                    "tags": list(build.tags),
                    "runtime_socket": str(self._runtime_socket),
                }
                await self._serve_image_work(stream, wish)
            case kind if kind in KINDS:
                await self._containers.serve(call, stream)
            case kind:
                raise RelayFailed("UNIMPLEMENTED", f"this node cannot serve the call {kind}; upgrade it")

    # ---- logs --------------------------------------------------------------------------------------

    async def _serve_logs(self, call: calls.LogsCall, stream: _Stream) -> None:
        queue: asyncio.Queue[calls.LogLines | None] = asyncio.Queue(LOG_QUEUE_CHUNKS)
        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(self._read_log(task_id, call.options, queue)) for task_id in call.task_ids]
            watcher = group.create_task(_until_cancelled(stream))
            ended = 0
            while ended < len(readers) and not watcher.done():
                chunk = await queue.get()
                if chunk is None:
                    ended += 1
                else:
                    await _say(stream, calls.RelayOutput(log_lines=chunk))
            # Said first: cancelling a read that waits ends the whole call.
            await _say(stream, calls.RelayOutput(result=calls.RelayResult()))
            for task in (*readers, watcher):
                task.cancel()

    async def _read_log(
        self, task_id: str, options: calls.LogsOptions, queue: asyncio.Queue[calls.LogLines | None]
    ) -> None:
        controller = self._controllers().get(task_id)
        over = controller.output_over if controller is not None else None
        task = controller.task if controller is not None else None
        path = self._preparation.log_path(task_id)
        async for records in container_logs.stream_records(path, options, over):
            lines = calls.LogLines(
                lines=[
                    calls.LogLine(
                        task_id=task_id,
                        service_name=task.service_name if task is not None else "",
                        slot=task.slot if task is not None else 0,
                        node_id=self._node.id,
                        node_hostname=self._node.hostname,
                        timestamp_unix_ns=record.timestamp_unix_ns,
                        stream=record.stream,
                        line=record.line,
                    )
                    for record in records
                ]
            )
            await queue.put(lines)
        await queue.put(None)

    # ---- images ------------------------------------------------------------------------------------

    async def _serve_image_work(self, stream: _Stream, wish: dict[str, object]) -> None:
        """Takes the upload to a file, has a process of its own do the work, and tells what became of it."""
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The process gets ready while the upload comes.
        async with self._workers.worker() as worker:
            with tempfile.NamedTemporaryFile(dir=self._scratch, prefix="upload-") as upload:
                await _say(stream, calls.RelayOutput(ready=True))
                await _receive_upload(stream, upload.fileno())
                wish = {**wish, "root": str(self._images.root), "upload": upload.name}
                async for event in events_of(worker, wish):
                    await self._tell_image_event(stream, event)

    async def _serve_image_save(self, call: calls.ImageSaveCall, stream: _Stream) -> None:
        """Has a process of its own write the archive, and passes it on as it comes."""
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with self._workers.worker() as worker, archive_pipe(self._scratch) as (path, reader):

            async def pass_on() -> None:
                async for data in pieces(reader):
                    await _say(stream, calls.RelayOutput(data=data))

            passing = asyncio.create_task(pass_on(), name="image-save")
            try:
                wish: dict[str, object] = {
                    "work": "save",
                    "references": list(call.references),
                    "leave_out": list(call.chains_here)[: defaults.FETCH_CHAINS_MAX],
                    "made_here": call.made_here,
                    "root": str(self._images.root),
                    "archive": path,
                }
                async for event in events_of(worker, wish):
                    if "images" in event:
                        await passing  # the archive ends before the result
                    await self._tell_image_event(stream, event)
            finally:
                passing.cancel()
                await asyncio.gather(passing, return_exceptions=True)

    async def _tell_image_event(self, stream: _Stream, event: dict[str, object]) -> None:
        if "progress" in event:
            progress = calls.BuildProgress(text=str(event["progress"]), from_step=bool(event.get("from_step")))
            await _say(stream, calls.RelayOutput(build_progress=progress))
        elif "error" in event:
            raise RelayFailed(str(event.get("code", "FAILED_PRECONDITION")), str(event["error"]))
        elif "images" in event:
            ids = event["images"]
            assert isinstance(ids, list)
            made = [image_summary(self._images.resolve(str(image_id)), self._node) for image_id in ids]
            await _say(stream, calls.RelayOutput(result=calls.RelayResult(images=made)))


async def _receive_upload(stream: _Stream, descriptor: int) -> None:
    received = 0
    while isinstance(message := await stream.read(), dispatcher.RelayDown):
        match message.input.WhichOneof("input"):
            case "data":
                received += len(message.input.data)
                if received > MAX_UPLOAD_BYTES:
                    raise RelayFailed("RESOURCE_EXHAUSTED", f"the upload is larger than {MAX_UPLOAD_BYTES >> 30} GiB")
                await asyncio.to_thread(os.write, descriptor, message.input.data)
            case "end_of_data":
                return
            case "cancel":
                raise RelayFailed("CANCELLED", "the caller went away during the upload")
    raise RelayFailed("CANCELLED", "the upload broke off; send it again")


async def _until_cancelled(stream: _Stream) -> None:
    while isinstance(message := await stream.read(), dispatcher.RelayDown):
        if message.input.WhichOneof("input") == "cancel":
            return


async def _say(stream: _Stream, output: calls.RelayOutput) -> None:
    await stream.write(dispatcher.RelayUp(output=output))
