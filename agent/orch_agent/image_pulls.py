"""Images that tasks need and this node has not: each is pulled once, however many tasks wait for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orch_agent.errors import RelayFailed
from orch_agent.image_workers import ImageWorkers, events_of
from orch_agent.images.errors import ImageError
from orch_rpc import logs

log = logs.get("images")
MAX_PULLS = 3
"""Images pulled at once; each fetches up to three layers at a time."""
PULL_TIMEOUT_S = 3600.0


class PullFailed(ImageError):  # noqa: N818 -- it says it all
    """Raised when an image could not be had; the message is the worker's."""


class ImagePulls:
    """Pulls for the tasks of this node.

    Args:
        workers: do it, each in a process of its own.
        root: folder of the image store.
    """

    def __init__(self, workers: ImageWorkers, root: Path) -> None:
        self._workers = workers
        self._root = root
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_PULLS)

    async def pull(self, reference: str) -> None:
        """Return when the image is here. It goes on for others, and for next time, when the caller gives up.

        Raises:
            PullFailed: it could not be had.
        """
        pulling = self._under_way.get(reference)
        if pulling is None:
            pulling = asyncio.get_running_loop().create_task(self._pull(reference), name=f"pull-{reference}")
            self._under_way[reference] = pulling
            pulling.add_done_callback(lambda done: self._over(reference, done))
        await asyncio.shield(pulling)

    def _over(self, reference: str, done: asyncio.Task[None]) -> None:
        self._under_way.pop(reference, None)
        if not done.cancelled():
            done.exception()  # every caller may have gone

    async def _pull(self, reference: str) -> None:
        wish: dict[str, object] = {"work": "pull", "reference": reference, "root": str(self._root)}
        started_s = asyncio.get_running_loop().time()
        log.info("image.pulling", image=reference)
        try:
            async with self._slots, asyncio.timeout(PULL_TIMEOUT_S), self._workers.worker() as worker:
                async for event in events_of(worker, wish):
                    if "error" in event:
                        raise PullFailed(str(event["error"]))
        except TimeoutError:
            raise PullFailed(f"cannot pull {reference}: it took more than {PULL_TIMEOUT_S:g} s; try again") from None
        except RelayFailed as error:
            raise PullFailed(f"cannot pull {reference}: {error}") from error
        took_s = asyncio.get_running_loop().time() - started_s
        log.info("image.pulled", image=reference, seconds=round(took_s, 1))
