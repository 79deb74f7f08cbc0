"""Reads the logs that the runtime wrote: Docker's json-file records, over rotated files, and on as they grow."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from orch_proto import node_pb2 as node_calls

FOLLOW_INTERVAL_S = 0.1
MAX_TAIL_LINES = 100_000
CHUNK_LINES = 500
_TIME = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)$")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a container's output."""

    timestamp_unix_ns: int
    stream: str
    line: bytes


def parse_record(raw: bytes) -> Record | None:
    """Reads one line of a log file; None for a line that is not whole (the writer was cut off)."""
    try:
        fields = json.loads(raw)
        text = fields["log"]
        stream = fields["stream"]
        time = fields["time"]
    except (ValueError, KeyError, TypeError):
        return None
    match = _TIME.match(time) if isinstance(time, str) else None
    if match is None or not isinstance(text, str) or not isinstance(stream, str):
        return None
    seconds = int(datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp())
    nanoseconds = int((match[2] or "0").ljust(9, "0"))
    line = text.encode("utf-8", "surrogateescape")
    return Record(seconds * 1_000_000_000 + nanoseconds, stream, line)


def log_files(path: Path) -> list[Path]:
    """The files of a log, oldest first: ``log.2``, ``log.1``, ``log``."""
    rotated = []
    number = 1
    while (older := path.with_name(f"{path.name}.{number}")).exists():
        rotated.append(older)
        number += 1
    return [*reversed(rotated), path]


def read_records(path: Path) -> Iterator[Record]:
    """All records that are in the files now, oldest first."""
    for file in log_files(path):
        try:
            with file.open("rb") as handle:
                for raw in handle:
                    record = parse_record(raw)
                    if record is not None:
                        yield record
        except FileNotFoundError:
            continue  # rotated away meanwhile


def wanted_records(path: Path, options: node_calls.LogsOptions) -> list[Record]:
    """The records that the options ask for, of what is in the files now."""
    tail = options.tail_lines if 0 <= options.tail_lines <= MAX_TAIL_LINES else None
    chosen: deque[Record] = deque(maxlen=MAX_TAIL_LINES if tail is None else tail)
    for record in read_records(path):
        if _wanted(record, options):
            chosen.append(record)
    return list(chosen)


def _wanted(record: Record, options: node_calls.LogsOptions) -> bool:
    if options.since_unix_ms and record.timestamp_unix_ns < options.since_unix_ms * 1_000_000:
        return False
    if options.until_unix_ms and record.timestamp_unix_ns >= options.until_unix_ms * 1_000_000:
        return False
    if not options.stdout and not options.stderr:
        return True  # neither named means both
    return (options.stdout and record.stream == "stdout") or (options.stderr and record.stream == "stderr")


class LogFollower:
    """Gives what is added to a log, over rotations.

    It keeps the file open that it reads, so the rest of a file that is rotated away is still read before it goes on
    with the new one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = _open(path)
        self._rest = b""
        if self._handle is not None:
            self._handle.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Lets go of the file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def poll(self) -> list[Record]:
        """What came since the last call."""
        records = self._read_on()
        if self._rotated():
            records += self._read_on()
            self.close()
            self._rest = b""
            self._handle = _open(self._path)
            records += self._read_on()
        return records

    def _read_on(self) -> list[Record]:
        if self._handle is None:
            self._handle = _open(self._path)
            if self._handle is None:
                return []
        lines = (self._rest + self._handle.read()).split(b"\n")
        self._rest = lines.pop()
        return [record for record in map(parse_record, lines) if record is not None]

    def _rotated(self) -> bool:
        if self._handle is None:
            return False
        try:
            return self._path.stat().st_ino != os.fstat(self._handle.fileno()).st_ino
        except FileNotFoundError:
            return False


async def stream_records(
    path: Path, options: node_calls.LogsOptions, is_over: asyncio.Event | None
) -> AsyncIterator[list[Record]]:
    """Gives the wanted records in chunks; with ``follow`` also those to come, until ``is_over`` is set and all is read.

    Args:
        path: the log's newest file.
        options: which records.
        is_over: set when the container writes no more; None when it has ended already.
    """
    follower = LogFollower(path) if options.follow and is_over is not None else None
    try:
        records = await asyncio.to_thread(wanted_records, path, options)
        for start in range(0, len(records), CHUNK_LINES):
            yield records[start : start + CHUNK_LINES]
        while follower is not None and is_over is not None:
            over = is_over.is_set()
            fresh = [record for record in follower.poll() if _wanted(record, options)]
            if fresh:
                yield fresh
            if over:
                return
            try:
                async with asyncio.timeout(FOLLOW_INTERVAL_S):
                    await is_over.wait()
            except TimeoutError:
                continue
    finally:
        if follower is not None:
            follower.close()


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None
