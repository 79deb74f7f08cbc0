"""SOURCE_DATE_EPOCH: the same sources give the same image, whenever and wherever it is built.

Source: reproducible-builds.org, SOURCE_DATE_EPOCH; BuildKit's docs/build-repro.md: later times become that one.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from orch_agent.build.errors import BuildError

EPOCH_ARG = "SOURCE_DATE_EPOCH"
_LATEST_S = 253_402_300_799  # the last second of the year 9999, beyond which RFC 3339 has no form


def epoch_s(text: str) -> int | None:
    """The value of the build argument in seconds since 1970; None if it is empty.

    Raises:
        BuildError: it is not a number of seconds.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and int(text) <= _LATEST_S):
        raise BuildError(f"{EPOCH_ARG}={text[:50]} is not a number of seconds since 1970; write e.g. 1700000000")
    return int(text)


def rfc3339(seconds: int) -> str:
    """The time as image configs write it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clamp_times(tree: Path, seconds: int) -> None:
    """Set the time of everything in a step's folder that is later than `seconds` to it."""
    most_ns = seconds * 1_000_000_000
    for folder, folders, names in os.walk(tree):
        for name in (*folders, *names):
            path = f"{folder}/{name}"
            if os.lstat(path).st_mtime_ns > most_ns:
                os.utime(path, ns=(most_ns, most_ns), follow_symlinks=False)
