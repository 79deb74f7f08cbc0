"""Times and sizes for people, in docker's words."""

from __future__ import annotations

import time
from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400


def format_duration(seconds: float) -> str:
    """A span in words, one unit only: ``5 seconds``, ``About a minute``, ``3 hours``.

    Args:
        seconds: the span; a negative one (clocks differ) counts as nothing.
    """
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole < _MINUTE:
        return "1 second" if whole == 1 else f"{whole} seconds"
    minutes = whole // _MINUTE
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    hours = int(seconds / _HOUR + 0.5)
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    days = whole // _DAY
    for limit, size, name in ((14, 1, "days"), (60, 7, "weeks"), (730, 30, "months")):
        if days < limit:
            return f"{days // size} {name}"
    return f"{days // 365} years"


def format_ago(unix_ms: int, now_ms: int | None = None) -> str:
    """``3 minutes ago``; empty for no time.

    Args:
        unix_ms: the time, 0 for none.
        now_ms: the present, for tests.
    """
    if not unix_ms:
        return ""
    now_ms = now_ms if now_ms is not None else time.time_ns() // 1_000_000
    return f"{format_duration((now_ms - unix_ms) / 1000)} ago"


def format_time(unix_ms: int) -> str:
    """A time in UTC with seconds; empty for none."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_ms / 1000)) if unix_ms else ""


def format_size(size_bytes: int) -> str:
    """A size in powers of 1000 with about three digits, as ``image ls`` shows it: ``1.23MB``."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def format_memory(size_bytes: int) -> str:
    """A size in powers of 1024: ``64MiB``, ``1.5GiB``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g}{unit}"
        value /= 1024
    return f"{value:.4g}TiB"


def format_elapsed(seconds: float) -> str:
    """A short span for progress: ``0.4s``, ``12s``, ``2m05s``."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    return f"{int(seconds) // 60}m{int(seconds) % 60:02d}s"
