"""A disk in memory that keeps only what was synced, tears what was not, fails, and loses power on request."""

import errno
import random
from dataclasses import dataclass, field
from pathlib import Path

SECTOR_BYTES = 512


class PowerLossError(BaseException):
    """The machine went dark in the middle of an operation. Not an Exception: no program survives it."""


@dataclass(eq=False)
class Inode:
    """A file: what a program sees, what is on the platter, and the writes in between."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)


class SimulatedFile:
    """A file open for writing."""

    def __init__(self, disk: "SimulatedDisk", inode: Inode) -> None:
        self._disk = disk
        self._inode = inode

    def write(self, offset_bytes: int, data: bytes) -> None:
        """See `WritableFile.write`."""
        self._disk.operate("write")
        content = self._inode.content
        if len(content) < offset_bytes + len(data):
            content.extend(bytes(offset_bytes + len(data) - len(content)))
        content[offset_bytes : offset_bytes + len(data)] = data

    def truncate(self, size_bytes: int) -> None:
        """See `WritableFile.truncate`."""
        self._disk.operate("truncate")
        del self._inode.content[size_bytes:]

    def sync_data(self) -> None:
        """See `WritableFile.sync_data`."""
        self._disk.operate("sync")
        self._inode.durable = bytearray(self._inode.content)

    def close(self) -> None:
        """See `WritableFile.close`."""


class SimulatedLock:
    def release(self) -> None:
        """See `FolderLock.release`."""


class SimulatedDisk:
    """Implements the `Files` seam.

    Args:
        power_loss_at: number of the operation in which power is lost; the operation is half done.
        fail_at: number of the operation that fails with EIO.
    """

    def __init__(self, power_loss_at: int | None = None, fail_at: int | None = None) -> None:
        self.power_loss_at = power_loss_at
        self.fail_at = fail_at
        self.operations: list[str] = []
        self._folders: dict[Path, dict[str, Inode]] = {}
        self._durable_folders: dict[Path, list[dict[str, Inode]]] = {}

    def operate(self, name: str) -> None:
        """Count an operation that changes something; lose power or fail if it is the one."""
        self.operations.append(name)
        if len(self.operations) == self.power_loss_at:
            raise PowerLossError
        if len(self.operations) == self.fail_at:
            raise OSError(errno.EIO, "Input/output error")

    def lock(self, path: Path) -> SimulatedLock:  # noqa: ARG002  # the seam gives the path
        """See `Files.lock`."""
        return SimulatedLock()

    def mode(self, path: Path) -> int:  # noqa: ARG002  # the seam gives the path
        """See `Files.mode`."""
        return 0o600

    def make_folder(self, path: Path) -> None:
        """See `Files.make_folder`."""
        if path not in self._folders:
            self._folders[path] = {}
            self._durable_folders[path] = [{}]

    def list(self, folder: Path) -> list[str]:
        """See `Files.list`."""
        if folder not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(folder))
        return sorted(self._folders[folder])

    def read(self, path: Path, offset_bytes: int = 0, size_bytes: int | None = None) -> bytes:
        """See `Files.read`."""
        content = bytes(self.inode(path).content)
        end = len(content) if size_bytes is None else offset_bytes + size_bytes
        return content[offset_bytes:end]

    def create(self, path: Path, preallocate_bytes: int = 0) -> SimulatedFile:
        """See `Files.create`."""
        self.operate("create")
        folder = self._folders[path.parent]
        if path.name in folder:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        folder[path.name] = Inode(bytearray(preallocate_bytes))
        self._changed(path.parent)
        return SimulatedFile(self, folder[path.name])

    def open(self, path: Path) -> SimulatedFile:
        """See `Files.open`."""
        return SimulatedFile(self, self.inode(path))

    def rename(self, source: Path, target: Path) -> None:
        """See `Files.rename`."""
        self.operate("rename")
        folder = self._folders[source.parent]
        folder[target.name] = folder.pop(source.name)
        self._changed(source.parent)

    def remove(self, path: Path) -> None:
        """See `Files.remove`."""
        self.operate("remove")
        del self._folders[path.parent][path.name]
        self._changed(path.parent)

    def sync_folder(self, folder: Path) -> None:
        """See `Files.sync_folder`."""
        self.operate("sync folder")
        self._durable_folders[folder] = [dict(self._folders[folder])]

    def inode(self, path: Path) -> Inode:
        """The file at a path, for tests that damage it."""
        try:
            return self._folders[path.parent][path.name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path)) from None

    def after_power_loss(self, rng: random.Random) -> "SimulatedDisk":
        """A disk as a machine may find it after power came back.

        Of each folder, some of the changes since its last sync are there, in order, but for removals, each of which may
        be undone; of each file, each sector that was not synced is old or new.
        """
        disk = SimulatedDisk()
        survivors: dict[int, Inode] = {}
        for path, versions in self._durable_folders.items():
            names = dict(rng.choice(versions))
            for name, inode in versions[0].items():
                if inode not in names.values() and rng.random() < 0.5:
                    names.setdefault(name, inode)
            folder: dict[str, Inode] = {}
            for name, inode in names.items():
                if id(inode) not in survivors:
                    content = _torn(inode, rng)
                    survivors[id(inode)] = Inode(content, bytearray(content))
                folder[name] = survivors[id(inode)]
            disk._folders[path] = folder
            disk._durable_folders[path] = [dict(folder)]
        return disk

    def clone(self) -> "SimulatedDisk":
        """An independent copy of what a program sees."""
        disk = SimulatedDisk()
        for path, names in self._folders.items():
            disk._folders[path] = {
                name: Inode(bytearray(inode.content), bytearray(inode.content)) for name, inode in names.items()
            }
            disk._durable_folders[path] = [dict(disk._folders[path])]
        return disk

    def _changed(self, folder: Path) -> None:
        self._durable_folders[folder].append(dict(self._folders[folder]))


def _torn(inode: Inode, rng: random.Random) -> bytearray:
    if inode.content == inode.durable:
        return bytearray(inode.content)
    size = rng.choice((len(inode.content), len(inode.durable)))
    result = bytearray(size)
    mostly = rng.random()
    for start in range(0, size, SECTOR_BYTES):
        end = min(start + SECTOR_BYTES, size)
        source = inode.content if rng.random() < mostly else inode.durable
        result[start:end] = source[start:end].ljust(end - start, b"\0")
    return result
