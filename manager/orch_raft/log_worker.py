"""A thread that does one thing after the other for the event loop: what waits for the disk.

Cheaper than an executor, as each write of the log passes through here.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
#: Called on the event loop with the result and the error, of which one is None.
Done = Callable[[Any, BaseException | None], None]


class Worker:
    """One thread. The caller bounds how much it is given."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Done] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any], done: Done) -> None:
        """Do a job in the thread, after those before it; tell on the loop what came of it."""
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
            result, failure = None, None
            try:
                result = job()
            except BaseException as error:  # a power loss in a test is no Exception
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(done, result, failure)
