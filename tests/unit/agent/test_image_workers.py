"""Processes for work on images, and the one kept ready."""

import asyncio
from pathlib import Path

from orch_agent.image_workers import ImageWorkers


def test_the_next_work_finds_a_process_ready() -> None:
    """After a work the next process waits already; one that nobody needs ends when its input does, without a word."""

    async def works() -> None:
        workers = ImageWorkers()
        async with workers.worker() as first:
            assert await first.communicate(b"") == (b"", None)
            assert first.returncode == 0
        spare = workers._spare
        assert spare is not None
        async with workers.worker() as second:
            assert second is spare
            assert await second.communicate(b"") == (b"", None)
        await workers.close()

    asyncio.run(works())


def test_a_work_given_up_ends_its_process() -> None:
    """When the caller goes away in the middle, the process is ended."""

    async def gives_up() -> int:
        workers = ImageWorkers()
        task = asyncio.current_task()
        assert task is not None
        try:
            async with workers.worker() as process:
                task.cancel()
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            return process.pid
        return 0

    pid = asyncio.run(gives_up())
    assert pid
    assert not Path(f"/proc/{pid}").exists()
