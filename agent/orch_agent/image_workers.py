"""Processes for the heavy work on images, one of them kept ready for a while after each work.

Such a process needs a tenth of a second or two to start. People who build do so again and again, and then find one that
waits.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orch_agent.errors import RelayFailed

SPARE_KEPT_S = 120.0
"""How long the next process waits for work (it holds some 15 MiB meanwhile)."""
END_WAIT_S = 5.0
"""How long a process that is ended early may take to remove what it made halfway."""
MAX_LINE_BYTES = 1 << 20


class ImageWorkers:
    """Starts image workers. A spare one ends by itself when this process does, as its standard input ends."""

    def __init__(self) -> None:
        self._spare: asyncio.subprocess.Process | None = None
        self._expiry: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """An image worker that waits for its work; ended, if it has not, when the caller goes away."""
        process = self._take_spare() or await _start()
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()  # it removes what it made halfway
                try:
                    async with asyncio.timeout(END_WAIT_S):
                        await process.communicate()
                except TimeoutError:
                    process.kill()
        if self._spare is None:
            self._keep(await _start())

    async def close(self) -> None:
        """End the spare process and wait until it has."""
        process = self._take_spare()
        if process is not None:
            process.terminate()
            await process.communicate()

    def _keep(self, process: asyncio.subprocess.Process) -> None:
        if self._spare is not None:  # another work was quicker
            process.terminate()
            return
        self._spare = process
        self._expiry = asyncio.get_running_loop().call_later(SPARE_KEPT_S, self._expire)

    def _take_spare(self) -> asyncio.subprocess.Process | None:
        process, self._spare = self._spare, None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        return process if process is not None and process.returncode is None else None

    def _expire(self) -> None:
        process = self._take_spare()
        if process is not None:
            process.terminate()


async def events_of(process: asyncio.subprocess.Process, wish: dict[str, object]) -> AsyncIterator[dict[str, object]]:
    """Gives an image worker its work, and its events until it has ended.

    Raises:
        RelayFailed: it ended without a result.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(wish).encode())
    process.stdin.write_eof()
    final = False
    async for line in process.stdout:
        event = json.loads(line)
        final = final or "images" in event or "error" in event
        yield event
    code = await process.wait()
    if not final:
        raise RelayFailed("INTERNAL", f"the image worker ended with status {code} and no result; see the node's log")


async def _start() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "orch_agent.image_worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        start_new_session=True,
    )
