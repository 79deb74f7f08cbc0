"""A member's state folder: the lock, the data key, the snapshots and the log.

lock        held while a process works here
data.key    what decrypts the rest; mode 0600
snapshots/  the newest one counts
log/        segments that go on from it
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orch_raft.engine import Member, Observer
from orch_raft.errors import AlreadyFounded, DurabilityLost, FolderInUse, NotFounded, SnapshotCorrupt
from orch_raft.limits import EngineOptions
from orch_raft.log.durable import FOUNDING_INDEX, DurableLog, RecoveredLog
from orch_raft.log.files import Files, FolderLock, OsFiles
from orch_raft.log.keys import create_key_file, read_key_file
from orch_raft.log.snapshots import SnapshotFolder, SnapshotMeta
from orch_raft.membership import Membership

_LOCK = "lock"
_KEY = "data.key"
_LOG = "log"
_SNAPSHOTS = "snapshots"
_FOUNDING_TERM = 1


@dataclass(slots=True)
class Storage:
    """An open state folder. Close it to let another process in."""

    lock: FolderLock
    log: DurableLog
    snapshots: SnapshotFolder

    def close(self) -> None:
        """Release the folder."""
        self.log.close()
        self.lock.release()


@dataclass(frozen=True, slots=True)
class RecoveredState:
    """What a state folder held.

    Attributes:
        snapshot: what the newest snapshot covers.
        state: stream of the state in it; None in the snapshot that founded the cluster, which has none.
        log: what follows, and may begin before it.
    """

    snapshot: SnapshotMeta
    state: BinaryIO | None
    log: RecoveredLog


def _lock(files: Files, folder: Path) -> FolderLock:
    lock = files.lock(folder / _LOCK)
    if lock is None:
        raise FolderInUse(folder)
    return lock


def is_founded(folder: Path, files: Files | None = None) -> bool:
    """Whether the folder holds a cluster."""
    files = files or OsFiles()
    try:
        return any(name.endswith(".snap") for name in files.list(folder / _SNAPSHOTS))
    except FileNotFoundError:
        return False


def found_cluster(
    folder: Path, member: Member, *, files: Files | None = None, options: EngineOptions | None = None
) -> None:
    """Make a new cluster of one member in an empty folder.

    The founding configuration is a snapshot at index 1 and not an entry: who joins later must receive it, and
    can never replay the log from its first entry and believe that it is alone.

    Raises:
        AlreadyFounded: there is a cluster in the folder.
        FolderInUse: another process works in it.
        DurabilityLost: the disk refused.
    """
    files = files or OsFiles()
    options = options or EngineOptions()
    try:
        for path in (folder, folder / _LOG, folder / _SNAPSHOTS):
            files.make_folder(path)
        lock = _lock(files, folder)
        try:
            if is_founded(folder, files) or files.list(folder / _LOG):
                raise AlreadyFounded(folder)
            # A key without a snapshot is left by a founding that was cut short; it has encrypted nothing.
            if _KEY in files.list(folder):
                files.remove(folder / _KEY)
            keyring = create_key_file(files, folder / _KEY)
            snapshots = SnapshotFolder(files, folder / _SNAPSHOTS, keyring, options.snapshot_chunk_bytes)
            meta = SnapshotMeta(FOUNDING_INDEX, _FOUNDING_TERM, Membership((member,)))
            snapshots.save(meta, lambda _stream: None)
        finally:
            lock.release()
    except OSError as error:
        raise DurabilityLost(f"found a cluster in {folder}", error) from error


def open_storage(
    folder: Path, *, files: Files | None = None, options: EngineOptions, observer: Observer
) -> tuple[Storage, RecoveredState]:
    """Lock a state folder and read what it holds, repairing what a crash left.

    Raises:
        StorageError: it cannot be used; nothing in it was changed.
        DurabilityLost: the disk refused.
    """
    files = files or OsFiles()
    if not is_founded(folder, files):
        _check_never_founded(folder, files)
        raise NotFounded(folder)
    try:
        lock = _lock(files, folder)
        try:
            keyring = read_key_file(files, folder / _KEY)
            snapshots = SnapshotFolder(files, folder / _SNAPSHOTS, keyring, options.snapshot_chunk_bytes)
            meta, state = snapshots.open_latest()
            log = DurableLog(files, folder / _LOG, keyring, options, observer)
            recovered = log.recover(meta.index)
            snapshots.remove_leftovers()
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise DurabilityLost(f"read the state in {folder}", error) from error
    return Storage(lock, log, snapshots), RecoveredState(
        meta, state if meta.index > FOUNDING_INDEX else None, recovered
    )


def _check_never_founded(folder: Path, files: Files) -> None:
    try:
        names = files.list(folder / _LOG)
    except FileNotFoundError:
        return
    if names:
        raise SnapshotCorrupt(folder / _SNAPSHOTS, 0, "there is a log, but no snapshot that it goes on from")
