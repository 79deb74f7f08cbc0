"""Container output to files in Docker's json-file format, with rotation.

A line is copied out of the pipe (tee), written to the file, and only then consumed: a supervisor killed at any moment
may repeat a line but
loses none. An incomplete line stays in the pipe until its end comes, it grows to 16 KiB, or the writer is gone.
"""

from __future__ import annotations

import json
import os
import time

from orch_runtime.errors import KernelError
from orch_runtime.kernel import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from orch_runtime.supervisor.loop import Loop

LINE_BYTES = 16384
_READ_BYTES = 65536
_ROUNDS = 16
_EDGE_READ = 1 | (1 << 31)


class LogFile:
    """An append-only file of records that is rotated by size."""

    def __init__(self, path: str, max_bytes: int, max_files: int) -> None:
        self._path = path
        self._max_bytes = max(max_bytes, 4096)
        self._max_files = max(max_files, 1)
        self._fd = -1
        self._size = 0
        self.dropped = 0

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(self._max_files - 1, 0, -1):
            older = f"{self._path}.{number}"
            newer = self._path if number == 1 else f"{self._path}.{number - 1}"
            try:
                os.rename(newer, older)
            except FileNotFoundError:
                continue
        if self._max_files == 1:
            os.truncate(self._path, 0)
        self._open()

    def write(self, lines: list[bytes]) -> None:
        """Append lines; what cannot be written (disk full, folder gone) is dropped and counted, never waited for."""
        position = 0
        while position < len(lines):
            begin = position
            try:
                if self._fd < 0:
                    self._open()
                size = self._size
                while position < len(lines) and (size == 0 or size + len(lines[position]) <= self._max_bytes):
                    size += len(lines[position])
                    position += 1
                if position == begin:
                    self._rotate()
                    continue
                chunk = b"".join(lines[begin:position])
                written = os.write(self._fd, chunk)
                self._size += written
                self.dropped += written < len(chunk)
            except OSError:
                self.dropped += len(lines) - begin
                return

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def timestamp() -> str:
    """Return the time in RFC 3339 with nanoseconds, as Docker writes it."""
    now = time.time_ns()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now // 1_000_000_000))}.{now % 1_000_000_000:09d}Z"


def split_lines(data: bytes, *, at_end: bool) -> tuple[list[bytes], int]:
    """Return the records in data and how many bytes they take; an unfinished line waits unless long or last."""
    records: list[bytes] = []
    position = 0
    while position < len(data):
        end = data.find(b"\n", position, position + LINE_BYTES)
        if end >= 0:
            stop = end + 1
        elif len(data) - position >= LINE_BYTES:
            stop = position + LINE_BYTES
        elif at_end:
            stop = len(data)
        else:
            break
        records.append(data[position:stop])
        position = stop
    return records, position


class LogPump:
    """Moves the output of one container from its pipes to its file."""

    def __init__(
        self, loop: Loop, scratch: tuple[int, int], descriptors: list[int], options: dict[str, object] | None
    ) -> None:
        self._loop = loop
        self._scratch = scratch
        self._open: dict[int, str] = dict(zip(descriptors, ("stdout", "stderr"), strict=False))
        self._file: LogFile | None = None
        if options is not None:
            path, max_bytes, max_files = options["path"], options["max_bytes"], options["max_files"]
            assert isinstance(path, str)
            assert isinstance(max_bytes, int)
            assert isinstance(max_files, int)
            self._file = LogFile(path, max_bytes, max_files)
        for fd in descriptors:
            os.set_blocking(fd, False)
            loop.watch(fd, self._on_ready(fd), _EDGE_READ)

    @property
    def dropped(self) -> int:
        """Lines that could not be written."""
        return self._file.dropped if self._file is not None else 0

    def _on_ready(self, fd: int) -> Callable[[int], None]:
        return lambda _events: self._pump(fd, at_end=False)

    def _pump(self, fd: int, *, at_end: bool) -> None:
        stream = self._open.get(fd)
        rounds = 0
        while stream is not None:
            if rounds == _ROUNDS and not at_end:
                # One chatty container must not starve the others; the edge is gone, so come back by timer.
                self._loop.later(0, lambda: self._pump(fd, at_end=False))
                return
            rounds += 1
            try:
                count = process.tee(fd, self._scratch[1], _READ_BYTES)
            except KernelError:
                self._close(fd)
                return
            if count < 0:
                return
            if count == 0:
                self._close(fd)
                return
            data = os.read(self._scratch[0], count)
            records, consumed = split_lines(data, at_end=at_end)
            if not records:
                return
            self._write(records, stream)
            while consumed:
                consumed -= len(os.read(fd, consumed))

    def _write(self, records: list[bytes], stream: str) -> None:
        if self._file is None:
            return
        tail = f',"stream":"{stream}","time":"{timestamp()}"}}\n'
        self._file.write(
            [f'{{"log":{json.dumps(record.decode(errors="replace"))}{tail}'.encode() for record in records]
        )

    def _close(self, fd: int) -> None:
        if self._open.pop(fd, None) is not None:
            self._loop.forget(fd)
            os.close(fd)

    def finish(self) -> None:
        """Write what is left in the pipes, unfinished lines too, and close everything."""
        for fd in list(self._open):
            self._pump(fd, at_end=True)
            self._close(fd)
        if self._file is not None:
            self._file.close()
