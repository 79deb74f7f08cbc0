"""A thread that does one thing after the other for the event loop: what waits for the disk.

Cheaper than an executor, as each write of the log passes through here.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
#: A job shorter than this holds up the event loop no more than handing it to the thread would.
_QUICK_S = 0.001
#: Jobs in a row that must have been quick before one is done on the loop: at most one slow sync in so many.
_TRUSTED_AFTER_JOBS = 32
#: Called on the event loop with the result and the error, of which one is None.
Done = Callable[[Any, BaseException | None], None]


class Worker:
    """One thread. The caller bounds how much it is given."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Done] | None] = SimpleQueue()
        #: Jobs that the thread has been given and not reported; of the loop.
        self._pending = 0
        #: Jobs in a row that were quick.
        self._quick_jobs = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any], done: Done, *, brief: bool = False) -> None:
        """Do a job in the thread, after those before it; tell on the loop what came of it.

        Args:
            job: what to do.
            done: told on the loop, never before this returns.
            brief: it is short work and one sync, for which nothing else on the loop need be done first. While the
                disk is quick it is done at once on the loop: two hand-overs between threads cost as much as the sync.
        """
        if brief and not self._pending and self._quick_jobs >= _TRUSTED_AFTER_JOBS:
            result, error = self._timed(job)
            self._loop.call_soon(done, result, error)
            return
        self._pending += 1
        self._jobs.put((job, done))

    async def run(self, job: Callable[[], T]) -> T:
        """Do a job in the thread; return its result. It is done even if the caller gives up."""
        outcome: asyncio.Future[T] = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if outcome.done():
                return
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)

        self.submit(job, done)
        return await outcome

    def close(self) -> None:
        """End the thread once it has done what it was given."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (task := self._jobs.get()) is not None:
            job, done = task
            result, error = self._timed(job)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._report, done, result, error)

    def _report(self, done: Done, result: Any, error: BaseException | None) -> None:
        self._pending -= 1
        done(result, error)

    def _timed(self, job: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """Do it; learn from how long it takes whether the disk can be waited for."""
        began_s = time.perf_counter()
        try:
            return job(), None
        except BaseException as error:  # a power loss in a test is no Exception
            return None, error
        finally:
            took_s = time.perf_counter() - began_s
            self._quick_jobs = self._quick_jobs + 1 if took_s < _QUICK_S else 0
