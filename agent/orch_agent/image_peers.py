"""Images from other nodes: what no registry has, as it was built in the cluster.

An image is asked for by its id, the digest of its configuration, which names each layer's digest: whatever arrives is
checked against it, and takes no other name than the one that was asked for.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from orch_agent.errors import RelayFailed
from orch_agent.image_workers import ImageWorkers, events_of
from orch_agent.images.errors import ImageError
from orch_agent.images.store import ImageStore
from orch_proto import defaults, dispatcher_pb2_grpc
from orch_proto import dispatcher_pb2 as dispatcher
from orch_rpc import logs
from orch_rpc.errors import from_status

log = logs.get("images")
MAX_FETCHES = 3
"""Images fetched at once."""
FETCH_TIMEOUT_S = 3600.0
MAX_ARCHIVE_BYTES = 64 << 30
_READ_BYTES = defaults.RELAY_CHUNK_BYTES


class FetchFailed(ImageError):  # noqa: N818 -- it says it all
    """Raised when no other node gave the image."""


class ImagePeers:
    """Fetches images for this node.

    Args:
        node_id: this node.
        images: the node's images.
        workers: take archives in, each in a process of its own.
        scratch: folder for what is on its way.
        channel: gives the way to the manager; None while there is none.
    """

    def __init__(
        self,
        node_id: str,
        images: ImageStore,
        workers: ImageWorkers,
        scratch: Path,
        channel: Callable[[], grpc.aio.Channel | None],
    ) -> None:
        self._node_id = node_id
        self._images = images
        self._workers = workers
        self._scratch = scratch
        self._channel = channel
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_FETCHES)

    async def fetch(self, reference: str, image_id: str) -> None:
        """Return when the image is here. It goes on for others, and for next time, when the caller gives up.

        Args:
            reference: the name that it gets.
            image_id: ``sha256:…``.

        Raises:
            FetchFailed: it could not be had.
        """
        fetching = self._under_way.get(image_id)
        if fetching is None:
            fetching = asyncio.get_running_loop().create_task(
                self._fetch(reference, image_id), name=f"fetch-{image_id}"
            )
            self._under_way[image_id] = fetching
            fetching.add_done_callback(lambda done: self._over(image_id, done))
        await asyncio.shield(fetching)

    def _over(self, image_id: str, done: asyncio.Task[None]) -> None:
        self._under_way.pop(image_id, None)
        if not done.cancelled():
            done.exception()  # every caller may have gone

    async def _fetch(self, reference: str, image_id: str) -> None:
        what = f"cannot fetch {reference} from another node"
        try:
            async with self._slots, asyncio.timeout(FETCH_TIMEOUT_S):
                await self._fetch_and_take(reference, image_id)
        except TimeoutError:
            raise FetchFailed(f"{what}: it took more than {FETCH_TIMEOUT_S:g} s; try again") from None
        except grpc.aio.AioRpcError as error:
            why = str(from_status(error.code(), error.details() or "")).replace("\n", ": ")
            raise FetchFailed(f"{what}: {why}") from error
        except (RelayFailed, OSError) as error:
            raise FetchFailed(f"{what}: {error}") from error

    async def _fetch_and_take(self, reference: str, image_id: str) -> None:
        channel = self._channel()
        if channel is None:
            raise RelayFailed("UNAVAILABLE", "there is no manager now; it is tried again")
        started_s = asyncio.get_running_loop().time()
        request = dispatcher.FetchImageRequest(
            node_id=self._node_id,
            reference=reference,
            image_id=image_id,
            chains_here=await asyncio.to_thread(self._images.layers.chain_ids, defaults.FETCH_CHAINS_MAX),
        )
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The process gets ready while the archive comes.
        async with self._workers.worker() as worker:
            with tempfile.NamedTemporaryFile(dir=self._scratch, prefix="fetch-") as file:
                received = 0
                async for part in dispatcher_pb2_grpc.RelayStub(channel).FetchImage(request):
                    received += len(part.data)
                    if received > MAX_ARCHIVE_BYTES:
                        raise RelayFailed("RESOURCE_EXHAUSTED", f"it is larger than {MAX_ARCHIVE_BYTES >> 30} GiB")
                    await asyncio.to_thread(file.write, part.data)
                file.flush()
                wish: dict[str, object] = {
                    "work": "accept",
                    "reference": reference,
                    "image_id": image_id,
                    "root": str(self._images.root),
                    "upload": file.name,
                }
                async for event in events_of(worker, wish):
                    if "error" in event:
                        raise RelayFailed(str(event.get("code", "")), str(event["error"]))
        took_s = asyncio.get_running_loop().time() - started_s
        log.info("image.fetched", image=reference, bytes=received, seconds=round(took_s, 1))


@asynccontextmanager
async def archive_pipe(scratch: Path) -> AsyncIterator[tuple[str, asyncio.StreamReader]]:
    """A pipe for an image worker's archive: the path it writes to, and the end to read from.

    The reader waits until somebody writes, and ends when the writer does.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="save-") as folder:
        path = f"{folder}/archive"
        os.mkfifo(path, 0o600)
        # Opened without waiting for the writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        reader = asyncio.StreamReader(limit=_READ_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
        )
        try:
            yield path, reader
        finally:
            transport.close()


async def pieces(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What a reader gives, in pieces that a frame holds."""
    while data := await reader.read(_READ_BYTES):
        yield data
