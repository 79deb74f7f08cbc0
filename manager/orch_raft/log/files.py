"""The seam between the log and the disk.

Everything the log does to a file goes through here, so that tests can put a disk underneath that loses
what was not synced, tears writes, and fails.
"""

import fcntl
import os
import stat
from pathlib import Path
from typing import Protocol

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


class WritableFile(Protocol):
    """A file open for writing. All methods raise OSError when the disk refuses."""

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Write all of `data` at an offset."""
        ...

    def truncate(self, size_bytes: int) -> None:
        """Cut the file to a size."""
        ...

    def sync_data(self) -> None:
        """Return once contents, and the size needed to read them back, are on stable storage."""
        ...

    def close(self) -> None:
        """Close without syncing."""
        ...


class FolderLock(Protocol):
    """Keeps a second process out of a state folder."""

    def release(self) -> None:
        """Give the lock back."""
        ...


class Files(Protocol):
    """The file operations the log needs. All raise OSError when the disk refuses."""

    def lock(self, path: Path) -> FolderLock | None:
        """Lock a file, made if missing; None when another process holds it."""
        ...

    def mode(self, path: Path) -> int:
        """Permission bits of a file."""
        ...

    def make_folder(self, path: Path) -> None:
        """Create a folder, readable by its owner alone, if it is missing, and sync its parent."""
        ...

    def list(self, folder: Path) -> list[str]:
        """Names in a folder, sorted."""
        ...

    def read(self, path: Path, offset_bytes: int = 0, size_bytes: int | None = None) -> bytes:
        """Contents of a file, or a part of it; shorter than asked for at the end of the file."""
        ...

    def create(self, path: Path, preallocate_bytes: int = 0) -> WritableFile:
        """Create a file that must not exist, reserving zeroed space."""
        ...

    def open(self, path: Path) -> WritableFile:
        """Open an existing file for writing."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Put a file in the place of another, at once."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Return once the folder's creations, renames and removals are on stable storage."""
        ...


class _OsFile:
    """A file of the operating system."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, offset_bytes: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset_bytes)
            offset_bytes += written
            view = view[written:]

    def truncate(self, size_bytes: int) -> None:
        os.ftruncate(self._descriptor, size_bytes)

    def sync_data(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _FlockLock:
    """A lock that the kernel drops when its holder dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class OsFiles:
    """The files of the operating system."""

    def lock(self, path: Path) -> FolderLock | None:
        """See `Files.lock`."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return _FlockLock(descriptor)

    def mode(self, path: Path) -> int:
        """See `Files.mode`."""
        return stat.S_IMODE(path.stat().st_mode)

    def make_folder(self, path: Path) -> None:
        """See `Files.make_folder`."""
        if path.is_dir():
            return
        path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        self.sync_folder(path.parent)

    def list(self, folder: Path) -> list[str]:
        """See `Files.list`."""
        return sorted(path.name for path in folder.iterdir())

    def read(self, path: Path, offset_bytes: int = 0, size_bytes: int | None = None) -> bytes:
        """See `Files.read`."""
        with path.open("rb") as file:
            file.seek(offset_bytes)
            return file.read() if size_bytes is None else file.read(size_bytes)

    def create(self, path: Path, preallocate_bytes: int = 0) -> WritableFile:
        """See `Files.create`."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        try:
            if preallocate_bytes:
                os.posix_fallocate(descriptor, 0, preallocate_bytes)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return _OsFile(descriptor)

    def open(self, path: Path) -> WritableFile:
        """See `Files.open`."""
        return _OsFile(os.open(path, os.O_WRONLY | os.O_CLOEXEC))

    def rename(self, source: Path, target: Path) -> None:
        """See `Files.rename`."""
        source.rename(target)

    def remove(self, path: Path) -> None:
        """See `Files.remove`."""
        path.unlink()

    def sync_folder(self, folder: Path) -> None:
        """See `Files.sync_folder`."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
