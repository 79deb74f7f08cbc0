"""An engine of one member under observation: what it reports is recorded, and its syncs can be held or made to fail."""

import asyncio
import errno
import threading
from pathlib import Path

from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import Observer
from orch_raft.limits import EngineOptions
from orch_raft.log.files import OsFiles, WritableFile
from unit.raft.counting_machine import CountingMachine

TIMEOUT_S = 20.0


class Recorder(Observer):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.commits = 0
        self.batches: list[int] = []
        self.snapshots = 0
        self.snapshot_failures = 0
        self.failures: list[str] = []

    def committed(self, duration_s: float) -> None:
        """Count."""
        assert duration_s >= 0
        self.commits += 1

    def synced(self, duration_s: float, entries: int, size_bytes: int) -> None:
        """Note the number of entries."""
        assert duration_s >= 0
        assert size_bytes > 0
        self.batches.append(entries)

    def snapshot_written(self, duration_s: float, size_bytes: int) -> None:
        """Count."""
        assert duration_s >= 0
        assert size_bytes > 0
        self.snapshots += 1

    def snapshot_failed(self) -> None:
        """Count."""
        self.snapshot_failures += 1

    def proposal_failed(self, error_name: str) -> None:
        """Note the name."""
        self.failures.append(error_name)


class HeldFile:
    """A file whose syncs wait for a gate, and fail on demand."""

    def __init__(self, file: WritableFile, files: "HeldFiles") -> None:
        self._file = file
        self._files = files

    def write(self, offset_bytes: int, data: bytes) -> None:
        """See `WritableFile.write`."""
        self._file.write(offset_bytes, data)

    def truncate(self, size_bytes: int) -> None:
        """See `WritableFile.truncate`."""
        self._file.truncate(size_bytes)

    def sync_data(self) -> None:
        """Wait until syncs are let through."""
        self._files.syncing.set()
        assert self._files.gate.wait(TIMEOUT_S)
        if self._files.broken:
            raise OSError(errno.EIO, "Input/output error")
        self._file.sync_data()

    def close(self) -> None:
        """See `WritableFile.close`."""
        self._file.close()


class HeldFiles(OsFiles):
    """The files of the operating system, with a gate before each sync."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.syncing = threading.Event()
        self.broken = False

    def create(self, path: Path, preallocate_bytes: int = 0) -> WritableFile:
        """See `Files.create`."""
        return HeldFile(super().create(path, preallocate_bytes), self)

    async def wait_syncing(self) -> None:
        """Return once a sync is held at the gate."""
        assert await asyncio.to_thread(self.syncing.wait, TIMEOUT_S)

    def hold(self) -> None:
        """Let no sync through until `gate` is set."""
        self.syncing.clear()
        self.gate.clear()


class Bench:
    """A founded folder, and engines over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = HeldFiles()
        self.recorder = Recorder()
        self.machine = CountingMachine()

    def engine(self, options: EngineOptions | None = None) -> ReplicatedEngine:
        """A new engine with a new state machine."""
        self.machine = CountingMachine()
        return ReplicatedEngine(self.folder, self.machine, options=options, observer=self.recorder, files=self.files)
