"""Images that nothing wants any more go: when the disk is nearly full, or when somebody says so.

The node decides what is old, a manager what is still wanted: what tasks run, what services would run, and what they
would go back to. Without a manager nothing goes. Above the high mark images without a name go first, then the build
cache, then the images that were used the longest time ago, until the low mark is reached.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from orch_agent.images.errors import ImageError, ImageInUse, ImageNotFound
from orch_agent.images.model import ImageInfo
from orch_agent.images.store import ImageStore
from orch_proto import defaults, dispatcher_pb2_grpc
from orch_proto import dispatcher_pb2 as dispatcher
from orch_rpc import logs
from orch_rpc.errors import from_status

log = logs.get("images")
CHECK_PERIOD_S = 60.0
ASK_WAIT_S = 10.0
#: An image that came or was used a moment ago may be meant for a task that is only just being prepared.
YOUNG_S = 600.0
OFF = "off"


@dataclass(frozen=True, slots=True)
class WaterMarks:
    """Use of the file system of images, in per cent: above `high` images are removed until it is at `low`."""

    high: float
    low: float

    @classmethod
    def read(cls, text: str) -> WaterMarks | None:
        """Marks such as ``85,80``; None for ``off``.

        Raises:
            ValueError: the text is neither.
        """
        if text == OFF:
            return None
        words = text.split(",")
        if len(words) != 2 or not all(word.strip().isdigit() for word in words):
            raise ValueError(f"{text!r} is neither {OFF} nor two percentages such as 85,80")
        high, low = (int(word) for word in words)
        if not 1 <= low < high <= 100:
            raise ValueError(f"{text!r}: the second percentage must be below the first, both from 1 to 100")
        return cls(high, low)


@dataclass(frozen=True, slots=True)
class DiskUse:
    """A file system: bytes in use, and bytes that could be (root's reserve is neither, as in df)."""

    used_bytes: int
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> DiskUse:
        """That which holds `path`."""
        found = os.statvfs(path)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        return cls(used, used + found.f_bavail * found.f_frsize)

    def above(self, per_cent: float) -> int:
        """Bytes in use beyond a share; at or below 0 there are none."""
        return self.used_bytes - int(self.size_bytes * per_cent / 100)


@dataclass(frozen=True, slots=True)
class Collected:
    """What went."""

    untagged: tuple[str, ...]
    deleted: tuple[str, ...]
    freed_bytes: int


class CollectionRefused(ImageError):  # noqa: N818 -- it says it all
    """Raised when no manager says what is wanted."""


class ImageCollection:
    """Removes images of this node.

    Args:
        node_id: this node.
        images: its images.
        in_use: ids of images that tasks run.
        channel: gives the way to the manager; None while there is none.
        marks: when to begin by itself; None: never.
        disk_use: measures the file system.
        now_s: Unix time.
    """

    def __init__(
        self,
        node_id: str,
        images: ImageStore,
        in_use: Callable[[], Collection[str]],
        channel: Callable[[], grpc.aio.Channel | None],
        *,
        marks: WaterMarks | None,
        disk_use: Callable[[Path], DiskUse] = DiskUse.of,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._node_id = node_id
        self._images = images
        self._in_use = in_use
        self._channel = channel
        self._marks = marks
        self._disk_use = disk_use
        self._now_s = now_s
        self._one_at_a_time = asyncio.Lock()
        self.freed_bytes = 0
        """Since the start of the process, by itself and when told."""

    async def run(self) -> None:
        """Keeps the disk below the high mark until cancelled."""
        while self._marks is not None:
            await asyncio.sleep(CHECK_PERIOD_S)
            try:
                await self.check()
            except (ImageError, OSError) as error:
                log.warning("image.collection", why=str(error))

    async def check(self) -> Collected | None:
        """Makes room if the disk is above the high mark; what went, or None.

        Raises:
            ImageError: it cannot.
        """
        if self._marks is None:
            return None
        use = await asyncio.to_thread(self._disk_use, self._images.root)
        if use.above(self._marks.high) <= 0:
            return None
        low = self._marks.low
        collected = await self._collect(
            named=True, youngest_s=YOUNG_S, enough=lambda: self._disk_use(self._images.root).above(low) <= 0
        )
        left = await asyncio.to_thread(self._disk_use, self._images.root)
        log.info(
            "image.collected", images=len(collected.deleted), freed_bytes=collected.freed_bytes,
            bytes_above_mark=max(left.above(low), 0),
        )  # fmt: skip
        return collected

    async def prune(self, *, named: bool) -> Collected:
        """Removes what nothing wants, whatever the disk has left: images without a name, or also those with one.

        Raises:
            ImageError: it cannot.
        """
        return await self._collect(named=named, youngest_s=0.0, enough=lambda: False)

    async def _collect(self, *, named: bool, youngest_s: float, enough: Callable[[], bool]) -> Collected:
        async with self._one_at_a_time:
            candidates = await asyncio.to_thread(self._candidates, named=named, youngest_s=youngest_s)
            wanted = await self._wanted(candidates)
            going = [image for image in candidates if image.id not in wanted]
            collected = await asyncio.to_thread(self._remove, going, youngest_s, enough, cache=named)
        self.freed_bytes += collected.freed_bytes
        return collected

    def _candidates(self, *, named: bool, youngest_s: float) -> list[ImageInfo]:
        """Old enough images that no task here runs: those without a name first, then the longest unused."""
        in_use = set(self._in_use())
        last_used = {image.id: self._images.last_used_s(image.id) for image in self._images.list()}
        oldest_s = self._now_s() - youngest_s
        chosen = [
            image
            for image in self._images.list()
            if image.id not in in_use
            and (named or not image.references)
            and last_used.get(image.id, oldest_s) <= oldest_s
        ]
        return sorted(chosen, key=lambda image: (bool(image.references), last_used.get(image.id, 0.0)))

    async def _wanted(self, candidates: Sequence[ImageInfo]) -> set[str]:
        """Ids of those that a service wants, says the manager."""
        if not candidates:
            return set()
        channel = self._channel()
        if channel is None:
            raise CollectionRefused("images stay: no manager can say now which are wanted")
        wanted: set[str] = set()
        for start in range(0, len(candidates), defaults.WANTED_IMAGES_MAX):
            request = dispatcher.WantedImagesRequest(
                node_id=self._node_id,
                images=[_described(image) for image in candidates[start : start + defaults.WANTED_IMAGES_MAX]],
            )
            try:
                answer = await dispatcher_pb2_grpc.RelayStub(channel).WantedImages(request, timeout=ASK_WAIT_S)
            except grpc.aio.AioRpcError as error:
                why = str(from_status(error.code(), error.details() or "")).replace("\n", ": ")
                raise CollectionRefused(f"images stay: no manager says which are wanted ({why})") from error
            wanted |= set(answer.ids)
        return wanted

    def _remove(
        self, going: Sequence[ImageInfo], youngest_s: float, enough: Callable[[], bool], *, cache: bool
    ) -> Collected:
        untagged: list[str] = []
        deleted: list[str] = []
        freed = 0
        cache_is_there = cache
        for image in going:
            if enough():
                break
            if image.references and cache_is_there:
                cache_is_there = False
                freed += self._forget_builds()
                if enough():
                    break
            if self._images.last_used_s(image.id) > self._now_s() - youngest_s:
                continue  # a task has begun to use it meanwhile
            try:
                removal = self._images.remove(image.id, in_use=self._in_use(), force=True)
            except (ImageNotFound, ImageInUse):
                continue
            freed += removal.freed_bytes
            if removal.deleted_id:
                untagged += removal.untagged
                deleted.append(removal.deleted_id)
        if cache_is_there and not enough():
            freed += self._forget_builds()
        return Collected(tuple(untagged), tuple(deleted), freed)

    def _forget_builds(self) -> int:
        self._images.steps.clear()
        return self._images.collect_garbage()


def _described(image: ImageInfo) -> dispatcher.ImageNames:
    digests = {image.id, image.manifest_digest, *(name.partition("@")[2] for name in image.references)} - {""}
    return dispatcher.ImageNames(
        id=image.id, digests=sorted(digests), names=[name for name in image.references if "@" not in name]
    )
