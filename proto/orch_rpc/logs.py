"""Structured log lines over the standard library's logging: an event and its key-values.

    2026-11-23T19:30:01.123Z INFO scheduler task assigned: task=k3f… node=n1… service=shop_web

Info tells the story of the cluster, debug the story of a task. Never a secret, a token or an environment's value.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Final, TextIO

ROOT: Final = "orch"
_NEEDS_QUOTES: Final = re.compile(r'[ "=\\]')


def _format_value(value: object) -> str:
    text = str(value)
    if text.isprintable() and text and not _NEEDS_QUOTES.search(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


class _LineFormatter(logging.Formatter):
    """One line an event; times in UTC with milliseconds."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        name = record.name.removeprefix(f"{ROOT}.")
        line = f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {name} {record.getMessage()}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class Log:
    """Writes events of one component, with values that are bound to all of them."""

    __slots__ = ("_bound", "_logger")

    def __init__(self, logger: logging.Logger, bound: dict[str, object]) -> None:
        self._logger = logger
        self._bound = bound

    def bind(self, **values: object) -> Log:
        """The same log with further values bound: `log.bind(node=node_id)`."""
        return Log(self._logger, {**self._bound, **values})

    def _write(self, level: int, event: str, values: dict[str, object], error: BaseException | None = None) -> None:
        if not self._logger.isEnabledFor(level):
            return
        pairs = " ".join(
            f"{key}={_format_value(value)}" for key, value in {**self._bound, **values}.items() if value != ""
        )
        self._logger.log(level, "%s", f"{event}: {pairs}" if pairs else event, exc_info=error)

    def debug(self, event: str, **values: object) -> None:
        """For those who look into one task."""
        self._write(logging.DEBUG, event, values)

    def info(self, event: str, **values: object) -> None:
        """What an operator reads to know what the cluster did."""
        self._write(logging.INFO, event, values)

    def warning(self, event: str, **values: object) -> None:
        """Something is not as it should be, and orch goes on."""
        self._write(logging.WARNING, event, values)

    def error(self, event: str, **values: object) -> None:
        """Something failed that people must look at."""
        self._write(logging.ERROR, event, values)

    def exception(self, event: str, cause: BaseException, **values: object) -> None:
        """An unexpected exception, with its traceback."""
        self._write(logging.ERROR, event, values, cause)


def get(component: str) -> Log:
    """The log of a component: "scheduler", "dispatcher"."""
    return Log(logging.getLogger(f"{ROOT}.{component}"), {})


def configure(*, level: str = "info", stream: TextIO | None = None) -> None:
    """Sends orch's events to a stream (standard error by default); others' warnings too. Once a process.

    Args:
        level: debug, info, warning or error.
        stream: where to.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())
