"""The thread that writes the log, and when the event loop writes instead."""

import asyncio
import threading
import time

from orch_raft.log_worker import _QUICK_S, _TRUSTED_AFTER_JOBS, Worker


async def in_thread(worker: Worker, *, slow: bool = False) -> bool:
    """Do one brief job; whether a thread of its own did it."""
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def job() -> str:
        if slow:
            time.sleep(2 * _QUICK_S)
        return threading.current_thread().name

    worker.submit(job, lambda name, _error: done.set_result(name), brief=True)
    assert not done.done(), "who submits is told later, never inside its own call"
    async with asyncio.timeout(5):
        return await done == "raft-log-test"


async def learn(worker: Worker) -> None:
    """Let the worker see that the disk is quick; bounded, as a busy machine may be slow a few times."""
    for _ in range(50 * _TRUSTED_AFTER_JOBS):
        if not await in_thread(worker):
            return
    raise AssertionError("never done on the loop")


def test_a_brief_job_is_done_on_the_loop_once_the_disk_was_quick_often_enough() -> None:
    """The first jobs go to the thread, those after a row of quick ones do not."""

    async def scenario() -> None:
        worker = Worker("raft-log-test")
        assert all([await in_thread(worker) for _ in range(_TRUSTED_AFTER_JOBS)])
        await learn(worker)
        worker.close()

    asyncio.run(scenario())


def test_one_slow_job_sends_those_after_it_to_the_thread() -> None:
    """A disk that has become slow holds up the event loop once, not again and again."""

    async def scenario() -> None:
        worker = Worker("raft-log-test")
        await learn(worker)
        await in_thread(worker, slow=True)
        assert all([await in_thread(worker) for _ in range(_TRUSTED_AFTER_JOBS)])
        worker.close()

    asyncio.run(scenario())


def test_a_brief_job_never_overtakes_one_that_the_thread_has() -> None:
    """Jobs are done in the order in which they were submitted, wherever they are done."""

    async def scenario() -> None:
        worker = Worker("raft-log-test")
        await learn(worker)
        order: list[str] = []
        finished = asyncio.Event()
        go_on = threading.Event()

        def first() -> None:
            assert go_on.wait(5)
            order.append("first")

        worker.submit(first, lambda _result, _error: None)
        worker.submit(lambda: order.append("second"), lambda _result, _error: finished.set(), brief=True)
        go_on.set()
        async with asyncio.timeout(5):
            await finished.wait()
        assert order == ["first", "second"]
        worker.close()

    asyncio.run(scenario())


def test_what_goes_wrong_on_the_loop_is_reported_as_from_the_thread() -> None:
    """The error of a brief job reaches who waits for it, and nobody else."""

    async def scenario() -> None:
        worker = Worker("raft-log-test")
        await learn(worker)
        told: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

        def fails() -> None:
            raise OSError("the disk refused")

        worker.submit(fails, lambda _result, error: told.set_result(error), brief=True)
        assert isinstance(await told, OSError)
        worker.close()

    asyncio.run(scenario())
