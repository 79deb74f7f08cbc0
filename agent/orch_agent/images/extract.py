"""Unpacks a tar stream into a directory that it cannot leave.

Every path is walked by directory descriptors without following links; files are made exclusively; hard links are
resolved the same way; owner, then mode (so that setuid survives), then attributes, then times. With `whiteouts`, the
marks of OCI layers (image specification, layer.md) become those of overlayfs: a character device 0:0 for "deleted",
the attribute `opaque` for "hides what is below". Other device nodes are refused: a task gets its devices from the
runtime. Labels of other hosts' security modules are dropped; overlayfs's own attributes are refused.
"""

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from orch_agent.images.beneath import OPAQUE_XATTR, Beneath, is_whiteout, split_path
from orch_agent.images.digests import CHUNK_BYTES
from orch_agent.images.errors import ArchiveRefused
from orch_agent.images.limits import UnpackLimits
from orch_agent.images.tarstream import EntryKind, TarEntry, TarStream

WHITEOUT_PREFIX = ".wh."
OPAQUE_NAME = ".wh..wh..opq"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LINK_BYTES_MAX = 4095  # PATH_MAX without its NUL
_KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What an extraction wrote."""

    entries: int
    size_bytes: int


class Extractor:
    """Writes the entries of one archive beneath one directory."""

    def __init__(self, target: str, limits: UnpackLimits, *, whiteouts: bool) -> None:
        """Prepare to write beneath `target`, an existing empty directory that nothing else uses."""
        self._target = target
        self._limits = limits
        self._whiteouts = whiteouts
        self._size_bytes = 0
        # Times of directories are set last, as writing into them changes them.
        self._directory_times: dict[tuple[str, ...], int] = {}

    def extract(self, entries: TarStream) -> Unpacked:
        """Write all entries.

        Raises:
            ArchiveRefused: an entry is malformed, hostile or of a kind that is not accepted.
            OSError: the file system refuses (full, no extended attributes).
        """
        with Beneath(self._target) as beneath:
            for entry in entries:
                parts = split_path(entry.name, depth_max=self._limits.path_depth)
                self._place(beneath, entry, parts, entries)
            self._set_directory_times(beneath)
        return Unpacked(entries.entries, self._size_bytes)

    def _place(self, beneath: Beneath, entry: TarEntry, parts: tuple[str, ...], content: TarStream) -> None:
        if not parts:
            if entry.kind is not EntryKind.DIRECTORY:
                raise ArchiveRefused(f"the archive's entry {entry.name[:200]!r} has no name; make the archive again")
            self._finish_directory(beneath.directory((), create=False), entry, parts)
            return
        name = parts[-1]
        parent = beneath.directory(parts[:-1], create=True)
        if self._whiteouts and name.startswith(WHITEOUT_PREFIX):
            self._whiteout(parent, name)
        elif entry.kind is EntryKind.DIRECTORY:
            self._directory(beneath, parent, entry, parts)
        else:
            self._clear(beneath, parent, parts)
            self._leaf(beneath, parent, entry, parts, content)

    def _leaf(self, beneath: Beneath, parent: int, entry: TarEntry, parts: tuple[str, ...], content: TarStream) -> None:
        name = parts[-1]
        match entry.kind:
            case EntryKind.FILE:
                self._file(parent, name, entry, content)
            case EntryKind.SYMLINK:
                _check_link(entry)
                os.symlink(entry.target, name, dir_fd=parent)
                os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
                self._set_link_xattrs(parent, name, entry)
                os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
            case EntryKind.HARD_LINK:
                self._hard_link(beneath, entry, parts)
            case EntryKind.FIFO:
                os.mkfifo(name, 0o600, dir_fd=parent)
                self._finish_by_name(parent, name, entry)
            case EntryKind.CHARACTER_DEVICE if self._whiteouts and entry.device == (0, 0):
                _make_whiteout(parent, name)
            case _:
                raise ArchiveRefused(
                    f"the archive's entry {entry.name[:200]!r} is a {entry.kind.value} "
                    f"{entry.device[0]}:{entry.device[1]}; orch unpacks no device nodes (tasks get theirs from the "
                    "runtime): leave /dev out of the archive"
                )

    def _file(self, parent: int, name: str, entry: TarEntry, content: TarStream) -> None:
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            while data := content.read(CHUNK_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            os.fchown(descriptor, entry.uid, entry.gid)
            os.fchmod(descriptor, entry.mode)
            _set_xattrs(descriptor, entry)
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(descriptor)
        self._size_bytes += entry.size

    def _directory(self, beneath: Beneath, parent: int, entry: TarEntry, parts: tuple[str, ...]) -> None:
        name = parts[-1]
        hides_below = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            present = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(present.st_mode):
                hides_below = self._clear(beneath, parent, parts)
                os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = beneath.directory(parts, create=False)
        if hides_below:
            os.setxattr(descriptor, OPAQUE_XATTR, b"y")
        self._finish_directory(descriptor, entry, parts)

    def _finish_directory(self, descriptor: int, entry: TarEntry, parts: tuple[str, ...]) -> None:
        os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, entry.mode)
        _set_xattrs(descriptor, entry)
        self._directory_times[parts] = entry.mtime_ns

    def _hard_link(self, beneath: Beneath, entry: TarEntry, parts: tuple[str, ...]) -> None:
        source = split_path(entry.target, depth_max=self._limits.path_depth)
        if not source:
            raise ArchiveRefused(f"the archive's hard link {entry.name[:200]!r} has no target; make the archive again")
        # The second call may close the first's descriptor, so the source's parent is held by a duplicate.
        source_fd = os.dup(beneath.directory(source[:-1], create=False))
        try:
            parent = beneath.directory(parts[:-1], create=True)
            os.link(source[-1], parts[-1], src_dir_fd=source_fd, dst_dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as error:
            raise ArchiveRefused(
                f"the archive's hard link {entry.name[:200]!r} points to {entry.target[:200]!r}, which is not a file "
                "of this layer; make the archive again"
            ) from error
        finally:
            os.close(source_fd)

    def _whiteout(self, parent: int, name: str) -> None:
        if name == OPAQUE_NAME:
            os.setxattr(parent, OPAQUE_XATTR, b"y")
            return
        hidden = name.removeprefix(WHITEOUT_PREFIX)
        if hidden in ("", ".", "..") or hidden.startswith(WHITEOUT_PREFIX):
            raise ArchiveRefused(f"the layer has the malformed whiteout {name[:200]!r}; make the image again")
        try:
            present = os.stat(hidden, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            _make_whiteout(parent, hidden)
            return
        # A whiteout speaks of the layers below only: what this layer brings itself stays, and hides them.
        if stat.S_ISDIR(present.st_mode):
            descriptor = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.setxattr(descriptor, OPAQUE_XATTR, b"y")
            finally:
                os.close(descriptor)

    def _clear(self, beneath: Beneath, parent: int, parts: tuple[str, ...]) -> bool:
        """Remove an earlier entry of the same name; tell whether it was a whiteout."""
        name = parts[-1]
        try:
            present = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(present.st_mode):
            os.unlink(name, dir_fd=parent)
            return is_whiteout(present)
        beneath.forget(parts)
        for known in [known for known in self._directory_times if known[: len(parts)] == parts]:
            del self._directory_times[known]
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            raise ArchiveRefused(
                f"the archive replaces the folder {'/'.join(parts)[:200]!r}, which it filled before, by a file; "
                "make the archive again"
            ) from None
        return False

    def _finish_by_name(self, parent: int, name: str, entry: TarEntry) -> None:
        """For kinds that cannot be opened without effect; the name was just made by us in our own directory."""
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, entry.mode, dir_fd=parent)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    @staticmethod
    def _set_link_xattrs(parent: int, name: str, entry: TarEntry) -> None:
        for key, value in kept_xattrs(entry):
            os.setxattr(f"/proc/self/fd/{parent}/{name}", key, value, follow_symlinks=False)

    def _set_directory_times(self, beneath: Beneath) -> None:
        for parts, mtime_ns in self._directory_times.items():
            os.utime(beneath.directory(parts, create=False), ns=(mtime_ns, mtime_ns))


def kept_xattrs(entry: TarEntry) -> Iterable[tuple[str, bytes]]:
    """The extended attributes of an entry that are unpacked.

    Raises:
        ArchiveRefused: it carries one that would steer overlayfs.
    """
    for key, value in entry.xattrs.items():
        if key.startswith(("trusted.", "user.overlay.")):
            raise ArchiveRefused(
                f"the archive's entry {entry.name[:200]!r} carries the attribute {key[:100]!r}, "
                "by which an archive could steer the node's file system; make it without trusted.* attributes"
            )
        if key.startswith(_KEPT_XATTRS):
            yield key, value


def _set_xattrs(descriptor: int, entry: TarEntry) -> None:
    for key, value in kept_xattrs(entry):
        os.setxattr(descriptor, key, value)


def _check_link(entry: TarEntry) -> None:
    """Refuse what symlink(2) cannot make; where the link leads does not matter, as nothing here follows it."""
    length = len(os.fsencode(entry.target))
    if not length or length > _LINK_BYTES_MAX or "\0" in entry.target:
        why = "leads nowhere" if not length else f"has a target of {length} bytes, or a NUL in it"
        raise ArchiveRefused(f"the archive's link {entry.name[:200]!r} {why}; make the archive again")


def _make_whiteout(parent: int, name: str) -> None:
    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
