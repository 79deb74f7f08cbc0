"""Values with units as Compose and Docker write them: durations, sizes, CPUs, shell words.

Each function takes the text and raises ``ValueError`` with a reason for people.
"""

from __future__ import annotations

import re
import shlex
from decimal import Decimal, InvalidOperation
from typing import Final

_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w)")
_NANOSECONDS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+) ?([kmgtpKMGTP]?)(?:[iI]?[bB])?")
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
MAX_INT64: Final = 2**63 - 1


def parse_duration_ms(text: str) -> int:
    """A duration such as ``1m30s``, ``1.5s``, ``1d`` in milliseconds; less than one counts as one, zero as zero."""
    if text == "0":
        return 0
    if text.startswith("-"):
        raise ValueError("a duration cannot be negative")
    position = 0
    total = Decimal(0)
    while position < len(text):
        match = _DURATION_PART.match(text, position)
        if match is None:
            break
        total += Decimal(match.group(1)) * _NANOSECONDS[match.group(2)]
        position = match.end()
    if position == 0 or position != len(text):
        raise ValueError("a duration needs a number and a unit for each part, such as 10s, 1m30s, 500ms, 2h")
    milliseconds = int(total / 1_000_000)
    if milliseconds > MAX_INT64 // 1_000_000:
        raise ValueError("the duration is too long")
    return milliseconds if milliseconds or not total else 1


def parse_size_bytes(text: str) -> int:
    """A size such as ``64M``, ``1.5g``, ``512k``, ``50 MiB`` or plain bytes; units are powers of 1024."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("a size is a number with b, k, m, g, t or p behind it, such as 64M or 1.5g")
    size = int(Decimal(match.group(1)) * 1024 ** _POWERS[match.group(2).lower()])
    if size > MAX_INT64:
        raise ValueError("the size is too large")
    return size


def parse_nano_cpus(text: str) -> int:
    """CPUs such as ``0.5`` or ``2`` or ``1/2`` in billionths of a CPU."""
    try:
        if "/" in text:
            upper, _, lower = text.partition("/")
            value = Decimal(upper) / Decimal(lower)
        else:
            value = Decimal(text)
    except (InvalidOperation, ZeroDivisionError) as error:
        raise ValueError("CPUs are a number such as 0.5 or 2") from error
    if not value.is_finite() or value < 0:
        raise ValueError("CPUs cannot be negative or infinite")
    nano = int(value * 1_000_000_000)
    if nano > MAX_INT64:
        raise ValueError("so many CPUs do not exist")
    return nano


def split_command(text: str) -> list[str]:
    """A command into words, by POSIX shell's quoting; ``#``, ``|`` and ``>`` are plain, as there is no shell."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return list(lexer)
    except ValueError as error:
        raise ValueError(f"the words cannot be told apart ({str(error).lower()})") from error
