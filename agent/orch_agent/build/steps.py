"""Numbers the steps of a build and tells of them; stages that are built side by side share one numbering."""

import threading
import time

from orch_agent.build.events import BuildEvent, EventKind, Progress


class Step:
    """One step that has begun."""

    def __init__(self, log: "StepLog", number: int) -> None:
        """Belong to `log` under `number`."""
        self._log = log
        self._number = number
        self._begun_s = time.monotonic()

    def cached(self) -> None:
        """Tell that the layer cache had it."""
        self._tell(EventKind.CACHED)

    def output(self, line: str) -> None:
        """Tell a line of a command's output."""
        self._tell(EventKind.OUTPUT, line)

    def done(self) -> None:
        """Tell that it ended well."""
        self._tell(EventKind.DONE)

    def failed(self, text: str) -> None:
        """Tell why it ended badly."""
        self._tell(EventKind.FAILED, text)

    def _tell(self, kind: EventKind, text: str = "") -> None:
        self._log.tell(BuildEvent(kind, self._number, text, time.monotonic() - self._begun_s))


class StepLog:
    """Where steps begin; calls the build's progress for one event at a time."""

    def __init__(self, progress: Progress) -> None:
        """Tell `progress`."""
        self._progress = progress
        self._number = 0
        self._lock = threading.Lock()

    def begin(self, text: str) -> Step:
        """Give the next number to a step and tell its text."""
        with self._lock:
            self._number += 1
            step = Step(self, self._number)
            self._progress(BuildEvent(EventKind.BEGUN, self._number, text))
        return step

    def tell_warning(self, text: str) -> None:
        """Tell of something that stops nothing."""
        self.tell(BuildEvent(EventKind.WARNING, 0, text))

    def tell(self, event: BuildEvent) -> None:
        """Tell an event, never two at once."""
        with self._lock:
            self._progress(event)
