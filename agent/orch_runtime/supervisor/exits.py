"""Reading the keeper's exit journal."""

from __future__ import annotations

import os

JOURNAL_CONSUME_BYTES = 64 << 10


class ExitJournal:
    """The supervisor's place in ROOT/exits.journal. Entries may be read twice; whoever applies them must not mind."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._inode = 0
        self._offset = 0

    def read(self) -> list[tuple[int, int, int, int]]:
        """Return the new entries as (pid, start time, status, unix ms)."""
        entries: list[tuple[int, int, int, int]] = []
        while True:
            if self._fd < 0:
                try:
                    self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    return entries
                self._inode = os.fstat(self._fd).st_ino
                self._offset = 0
            self._read_file(entries)
            if os.stat(self._path).st_ino == self._inode:
                return entries
            os.close(self._fd)
            self._fd = -1

    def _read_file(self, entries: list[tuple[int, int, int, int]]) -> None:
        while True:
            data = os.pread(self._fd, 65536, self._offset)
            end = data.rfind(b"\n") + 1
            if not end:
                return
            self._offset += end
            for line in data[:end].splitlines():
                pid, start, status, when = line.split()
                entries.append((int(pid), int(start), int(status), int(when)))

    def consumed(self) -> int:
        """Return the offset to report to the keeper, or 0 while the journal is small."""
        return self._offset if self._offset >= JOURNAL_CONSUME_BYTES else 0
