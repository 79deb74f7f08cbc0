"""Reads or writes a tar beneath a container's root, in a process of its own.

Argument: one JSON object. ``{"root": fd, "work": "out", "path", "follow_link"}`` writes a tar to standard output;
``{"root": fd, "work": "in", "path", "source_name", "contents_only", "source_is_directory", "keep_owners"}`` reads one
from standard input. On failure: status 1 and ``{"error": …, "code": …}`` on standard error.

The container runs meanwhile and may change its files at any moment: every path is resolved by the kernel beneath the
root (openat2, RESOLVE_IN_ROOT, no magic links), and every file is looked at through the descriptor that is used.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from orch_runtime.errors import KernelError
from orch_runtime.kernel.mounts import filesystem_magic, open_in_root

MAX_DEPTH = 400
COPY_BYTES = 1 << 20
# include/uapi/linux/magic.h: procfs, sysfs, cgroup v1 and v2, devpts, debugfs, tracefs, bpf
_KERNEL_FILESYSTEMS = {0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1, 0x64626720, 0x74726163, 0xCAFE4A11}


class CopyFailedError(Exception):
    """The copy cannot be made; ``code`` is the name of a gRPC status code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def base_name(path: str) -> str:
    """The last part of a path; "." for the root and for paths that end with a dot."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return parts[-1] if parts and parts[-1] != ".." else "."


def _resolve(root: int, path: str, flags: int) -> int:
    try:
        return open_in_root(root, path, flags)
    except KernelError as error:
        if error.number == errno.ENOENT:
            raise CopyFailedError("NOT_FOUND", f"{path}: there is no such file or folder in the container") from error
        raise CopyFailedError("FAILED_PRECONDITION", f"{path}: {os.strerror(error.number)}") from error


def _is_kernel_filesystem(descriptor: int) -> bool:
    return filesystem_magic(f"/proc/self/fd/{descriptor}") & 0xFFFFFFFF in _KERNEL_FILESYSTEMS


# ---- out -------------------------------------------------------------------------------------------------------------


class _Exactly:
    """A file that gives as many bytes as its header has promised, though it grow or shrink meanwhile."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._left = size_bytes

    def read(self, count: int) -> bytes:
        wanted = min(count, self._left)
        data = self._file.read(wanted)
        self._left -= wanted
        return data + bytes(wanted - len(data))


class Packer:
    """Writes files of the container as a tar."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._seen: dict[tuple[int, int], str] = {}

    def add(self, descriptor: int, name: str, depth: int = 0) -> None:
        """Adds what an O_PATH descriptor stands for, with all below it; closes the descriptor."""
        try:
            status = os.fstat(descriptor)
            info = tarfile.TarInfo(name)
            info.mode = stat.S_IMODE(status.st_mode)
            info.uid, info.gid, info.mtime = status.st_uid, status.st_gid, int(status.st_mtime)
            if stat.S_ISDIR(status.st_mode):
                info.type = tarfile.DIRTYPE
                self._tar.addfile(info)
                if depth < MAX_DEPTH and not (depth and _is_kernel_filesystem(descriptor)):
                    self._add_entries(descriptor, name, depth)
            elif stat.S_ISLNK(status.st_mode):
                info.type, info.linkname = tarfile.SYMTYPE, os.readlink("", dir_fd=descriptor)
                self._tar.addfile(info)
            elif stat.S_ISREG(status.st_mode):
                self._add_file(descriptor, info, status)
            elif stat.S_ISFIFO(status.st_mode):
                info.type = tarfile.FIFOTYPE
                self._tar.addfile(info)
        finally:
            os.close(descriptor)

    def _add_file(self, descriptor: int, info: tarfile.TarInfo, status: os.stat_result) -> None:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1:
            first = self._seen.setdefault(key, info.name)
            if first != info.name:
                info.type, info.linkname = tarfile.LNKTYPE, first
                self._tar.addfile(info)
                return
        info.size = status.st_size
        with Path(f"/proc/self/fd/{descriptor}").open("rb", buffering=0) as file:
            self._tar.addfile(info, _Exactly(file, status.st_size))  # type: ignore[arg-type]  # it is only read

    def _add_entries(self, descriptor: int, name: str, depth: int) -> None:
        folder = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for entry in sorted(os.listdir(folder)):  # noqa: PTH208 -- a descriptor has no path
                try:
                    child = os.open(entry, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                except FileNotFoundError:
                    continue  # removed meanwhile
                self.add(child, f"{name}/{entry}", depth + 1)
        finally:
            os.close(folder)


def copy_out(root: int, wish: dict[str, Any], output: BinaryIO) -> None:
    """Writes the tar of one file or folder.

    Raises:
        CopyFailedError: it is not there.
    """
    path = str(wish["path"])
    follow = wish["follow_link"] or path.endswith(("/", "/."))
    descriptor = _resolve(root, path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, bufsize=COPY_BYTES) as tar:
        Packer(tar).add(descriptor, base_name(path))


# ---- in --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Destination:
    """Where entries go: the entry whose name is `source_name` to `base`, the others beneath.

    Attributes:
        base: path in the container.
        source_name: first part of the entries' names, which `base` stands for; empty: `base` holds the entries.
        in_place: `base` is a file, which is written over.
    """

    base: str
    source_name: str
    in_place: bool = False

    def target(self, name: str) -> str:
        """The path of an entry.

        Raises:
            CopyFailedError: its name climbs or does not fit.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise CopyFailedError("INVALID_ARGUMENT", f"the entry {name[:200]!r} climbs with '..'")
        if self.source_name:
            if parts[:1] != [self.source_name]:
                raise CopyFailedError("INVALID_ARGUMENT", f"the entry {name[:200]!r} is not of {self.source_name!r}")
            parts = parts[1:]
        return "/".join((self.base.rstrip("/"), *parts)) or "/"


def destination(root: int, wish: dict[str, Any]) -> Destination:
    """Docker's rules: into a folder that is there, over a file that is there, else under a new name.

    Raises:
        CopyFailedError: none of them fits.
    """
    path, name = str(wish["path"]), str(wish["source_name"])
    is_directory = bool(wish["source_is_directory"])
    try:
        descriptor = open_in_root(root, path, os.O_PATH)
    except KernelError as error:
        if error.number != errno.ENOENT:
            raise CopyFailedError("FAILED_PRECONDITION", f"{path}: {os.strerror(error.number)}") from error
        if not name or (path.endswith("/") and not is_directory):
            raise CopyFailedError("NOT_FOUND", f"{path}: there is no such folder in the container") from error
        return Destination(path, name)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if stat.S_ISDIR(status.st_mode):
        if not name:
            return Destination(path, "")
        return Destination(path if wish["contents_only"] else f"{path.rstrip('/')}/{name}", name)
    if is_directory or not name:
        raise CopyFailedError("FAILED_PRECONDITION", f"{path}: a folder cannot be copied over a file")
    if not stat.S_ISREG(status.st_mode):
        raise CopyFailedError("FAILED_PRECONDITION", f"{path}: it is neither a folder nor a regular file")
    return Destination(path, name, in_place=True)


class Unpacker:
    """Places the entries of a tar beneath the container's root."""

    def __init__(self, root: int, where: Destination, *, keep_owners: bool) -> None:
        self._root = root
        self._where = where
        self._keep_owners = keep_owners
        self._folders: list[tuple[str, tarfile.TarInfo]] = []

    def place_all(self, tar: tarfile.TarFile) -> None:
        """Places every entry, then sets the times of folders.

        Raises:
            CopyFailedError: an entry cannot be placed; those before it are there.
        """
        for info in tar:
            self._place(info, tar)
        for path, info in reversed(self._folders):
            descriptor = open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.utime(descriptor, (info.mtime, info.mtime))
            finally:
                os.close(descriptor)

    def _owner(self, info: tarfile.TarInfo) -> tuple[int, int]:
        return (info.uid, info.gid) if self._keep_owners else (0, 0)

    def _parent(self, path: str) -> tuple[int, str]:
        folder, _, name = path.rstrip("/").rpartition("/")
        descriptor = _resolve(self._root, folder or "/", os.O_RDONLY | os.O_DIRECTORY)
        if _is_kernel_filesystem(descriptor):
            os.close(descriptor)
            raise CopyFailedError("PERMISSION_DENIED", f"{path}: nothing is copied into the kernel's file systems")
        return descriptor, name

    def _place(self, info: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        path = self._where.target(info.name)
        if self._where.in_place and info.isreg():
            descriptor = _resolve(self._root, path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
            _fill(descriptor, tar.extractfile(info))
            return
        if info.isdir():
            self._place_folder(path, info)
            return
        parent, name = self._parent(path)
        try:
            _remove(parent, name, path)
            if info.isreg():
                descriptor = os.open(
                    name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
                )
                _fill(descriptor, tar.extractfile(info), owner=self._owner(info), info=info)
            elif info.issym():
                os.symlink(info.linkname, name, dir_fd=parent)
                os.chown(name, *self._owner(info), dir_fd=parent, follow_symlinks=False)
            elif info.islnk():
                self._link(info, parent, name)
            elif info.isfifo():
                os.mkfifo(name, info.mode & 0o7777, dir_fd=parent)
            else:
                raise CopyFailedError("INVALID_ARGUMENT", f"{info.name}: devices are not copied")
        finally:
            os.close(parent)

    def _place_folder(self, path: str, info: tarfile.TarInfo) -> None:
        if path.strip("/"):
            parent, name = self._parent(path)
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                # One that is there keeps its owner and mode; a link to a folder is one.
                os.close(_resolve(self._root, path, os.O_PATH | os.O_DIRECTORY))
                return
            finally:
                os.close(parent)
            descriptor = _resolve(self._root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                os.fchown(descriptor, *self._owner(info))
                os.fchmod(descriptor, info.mode & 0o7777)
            finally:
                os.close(descriptor)
            self._folders.append((path, info))

    def _link(self, info: tarfile.TarInfo, parent: int, name: str) -> None:
        source = _resolve(self._root, self._where.target(info.linkname), os.O_PATH | os.O_NOFOLLOW)
        try:
            os.link(f"/proc/self/fd/{source}", name, dst_dir_fd=parent, follow_symlinks=True)
        finally:
            os.close(source)


def _remove(parent: int, name: str, path: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError as error:
        raise CopyFailedError("FAILED_PRECONDITION", f"{path}: a folder is there, and a file comes") from error


def _fill(
    descriptor: int,
    source: IO[bytes] | None,
    *,
    owner: tuple[int, int] | None = None,
    info: tarfile.TarInfo | None = None,
) -> None:
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        assert source is not None
        while data := source.read(COPY_BYTES):
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
        if owner is not None and info is not None:
            os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), info.mode & 0o7777)
            os.utime(file.fileno(), (info.mtime, info.mtime))


def copy_in(root: int, wish: dict[str, Any], source: BinaryIO) -> None:
    """Places a tar.

    Raises:
        CopyFailedError: it cannot be read or placed.
    """
    where = destination(root, wish)
    try:
        with tarfile.open(fileobj=source, mode="r|*", bufsize=COPY_BYTES) as tar:
            Unpacker(root, where, keep_owners=bool(wish["keep_owners"])).place_all(tar)
    except tarfile.TarError as error:
        raise CopyFailedError("INVALID_ARGUMENT", f"this is no tar that can be read: {error}") from error


def main() -> None:
    """Does one copy."""
    wish = json.loads(sys.argv[1])
    try:
        if wish["work"] == "out":
            copy_out(wish["root"], wish, sys.stdout.buffer)
        else:
            copy_in(wish["root"], wish, sys.stdin.buffer)
        sys.stdout.flush()
    except (CopyFailedError, KernelError, OSError) as error:
        code = error.code if isinstance(error, CopyFailedError) else "FAILED_PRECONDITION"
        print(json.dumps({"error": str(error), "code": code}), file=sys.stderr)  # noqa: T201 -- the protocol with the parent
        sys.exit(1)


if __name__ == "__main__":
    main()
