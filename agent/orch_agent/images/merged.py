"""Looks at stacked layers as overlayfs would show them, without mounting anything; and writes into the topmost.

COPY between build stages, ownership by name, and the first content of volumes need to read an image's files. A mount
for that would leak when the process is killed. Links are resolved within the stack, never on the host: a folder of a
layer is entered only after it was found to be a real folder there (overlayfs documentation, sections Upper and Lower,
whiteouts and opaque directories).
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orch_agent.images.beneath import OPAQUE_XATTR, is_whiteout
from orch_agent.images.errors import ImageError

_LINKS_MAX = 40  # as the kernel's own bound on links in one path
_COPIED_XATTRS = ("user.", "security.capability", "system.posix_acl_")


class PathProblem(ImageError):  # noqa: N818 - named for the condition, as the tree in errors.py
    """Raised for a path within the stack that loops, or leads through something that is no folder."""


@dataclass(frozen=True, slots=True)
class Node:
    """One file or folder of the stack, as it appears from above."""

    path: str
    """Within the stack, from the root, without links: `/` or `/a/b`."""
    status: os.stat_result
    source: str
    """Where the topmost copy lies on the host."""
    folders: tuple[str, ...] = ()
    """For a folder, those on the host whose content is merged, topmost first."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.status.st_mode)


class MergedTree:
    """A stack of layer folders, topmost first."""

    def __init__(self, layers: Sequence[str]) -> None:
        """Look at `layers`, each an absolute path of a folder on the host."""
        self._layers = tuple(layers)

    def root(self) -> Node:
        """The stack's root folder."""
        return Node("/", os.lstat(self._layers[0]), self._layers[0], self._layers)

    def lookup(self, path: str, *, follow: bool = True) -> Node | None:
        """What stands at `path`; links on the way are followed, a link at the end if `follow`.

        Raises:
            PathProblem: there are too many links, or a file stands where a folder is needed.
        """
        node, missing = self._walk(path, follow=follow)
        return None if missing else node

    def resolve(self, path: str) -> str:
        """The path without links; parts that do not exist stay as they are.

        Raises:
            PathProblem: as `lookup`.
        """
        node, missing = self._walk(path, follow=True)
        return "/".join((node.path.rstrip("/"), *missing)) or "/"

    def children(self, folder: Node) -> tuple[Node, ...]:
        """The content of a folder, sorted by name."""
        names: set[str] = set()
        for directory in folder.folders:
            with os.scandir(directory) as entries:
                names.update(entry.name for entry in entries)
        found = (self._child(folder, name) for name in sorted(names))
        return tuple(node for node in found if node)

    def walk(self, top: Node) -> Iterator[Node]:
        """Everything below a folder (not itself), parents first, sorted by name in each folder."""
        pending = list(reversed(self.children(top)))
        while pending:
            node = pending.pop()
            yield node
            if node.is_directory:
                pending += reversed(self.children(node))

    def _walk(self, path: str, *, follow: bool) -> tuple[Node, list[str]]:
        """The last node that exists and the components beyond it."""
        pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        trail = [self.root()]
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                trail = trail[:-1] or trail
                continue
            node = self._child(trail[-1], part)
            if node is None:
                missing = [part]
                for rest in reversed(pending):
                    missing = missing[:-1] if rest == ".." else [*missing, rest]
                return trail[-1], missing
            if node.is_symlink and (pending or follow):
                links += 1
                if links > _LINKS_MAX:
                    raise PathProblem(f"{path} has too many links; one of them probably points to itself")
                target = str(os.readlink(node.source))  # noqa: PTH115 - a path within the stack, not of the host
                trail = trail[:1] if target.startswith("/") else trail
                pending += [step for step in reversed(target.split("/")) if step not in ("", ".")]
                continue
            if pending and not node.is_directory:
                raise PathProblem(f"{path} leads through {node.path}, which is a file; check the path")
            trail.append(node)
        return trail[-1], []

    @staticmethod
    def _child(folder: Node, name: str) -> Node | None:
        path = f"{folder.path.rstrip('/')}/{name}"
        top: os.stat_result | None = None
        merged: list[str] = []
        for directory in folder.folders:
            candidate = f"{directory}/{name}"
            try:
                status = os.lstat(candidate)
            except FileNotFoundError:
                continue
            if is_whiteout(status):
                break
            if not stat.S_ISDIR(status.st_mode):
                if top is None:
                    return Node(path, status, candidate)
                break
            top = top or status
            merged.append(candidate)
            if _is_opaque(candidate):
                break
        return Node(path, top, merged[0], tuple(merged)) if top else None


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a copied file gets instead of its source's; None keeps the source's."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


class LayerWriter:
    """Writes into an upper folder so that it changes the stack as a program in the container would."""

    def __init__(self, upper: str, lower: Sequence[str]) -> None:
        """Write into `upper`, an existing folder above `lower` (topmost first)."""
        self._upper = upper
        self.tree = MergedTree((upper, *lower))

    def make_directory(self, path: str, attributes: Attributes) -> str:
        """Make a folder and its missing parents (mode 0755 unless told); returns its path without links.

        Raises:
            PathProblem: a file stands in the way.
        """
        resolved = self.tree.resolve(path)
        node = self.tree.lookup(resolved)
        if node and not node.is_directory:
            raise PathProblem(f"{path} is a file, where a folder is needed; choose another destination")
        parts = [part for part in resolved.split("/") if part]
        for depth in range(1, len(parts) + 1):
            self._materialise("/" + "/".join(parts[:depth]), attributes)
        return resolved

    def copy(self, node: Node, path: str, attributes: Attributes) -> None:
        """Put a copy of a file, link or folder's own entry at `path`; a folder there is merged with.

        Raises:
            PathProblem: a folder would replace a file, or a file a folder.
        """
        folder, _, name = path.rpartition("/")
        parent = self.make_directory(folder or "/", Attributes(uid=attributes.uid, gid=attributes.gid))
        path = f"{parent.rstrip('/')}/{name}"
        present = self.tree.lookup(path, follow=node.is_directory)
        if node.is_directory:
            if present and not present.is_directory:
                raise PathProblem(f"{path} is a file, and a folder is to be copied there; choose another destination")
            target = self.make_directory(path, Attributes())
            self._set_attributes(self._upper + target, node, attributes)
            return
        if present and present.is_directory:
            raise PathProblem(f"{path} is a folder, and a file is to be copied there; choose another destination")
        target = self._upper + path
        if os.path.lexists(target):
            os.unlink(target)  # noqa: PTH108 - paths here are strings beneath the upper folder throughout
        if node.is_symlink:
            os.symlink(os.readlink(node.source), target)  # noqa: PTH115, PTH211
        elif stat.S_ISREG(node.status.st_mode):
            _copy_content(node.source, target)
        elif stat.S_ISFIFO(node.status.st_mode):
            os.mkfifo(target)
        else:
            raise PathProblem(f"{node.path} is a socket or device, which cannot be copied; leave it out")
        self._set_attributes(target, node, attributes)

    def write_file(self, path: str, content: bytes, attributes: Attributes) -> None:
        """Write a file of the given content (mode 0644 unless told), replacing a file at `path`."""
        folder, _, name = path.rpartition("/")
        parent = self.make_directory(folder or "/", Attributes(uid=attributes.uid, gid=attributes.gid))
        target = f"{self._upper}{parent.rstrip('/')}/{name}"
        present = self.tree.lookup(f"{parent.rstrip('/')}/{name}", follow=False)
        if present and present.is_directory:
            raise PathProblem(f"{path} is a folder, and a file is to be written there; choose another destination")
        if os.path.lexists(target):
            os.unlink(target)  # noqa: PTH108
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), attributes.uid or 0, attributes.gid or 0)
            os.fchmod(file.fileno(), 0o644 if attributes.mode is None else attributes.mode)

    def _materialise(self, path: str, attributes: Attributes) -> None:
        """Make sure that the folder `path`, free of links, exists in the upper layer, like its lower self if any."""
        target = self._upper + path
        node = self.tree.lookup(path, follow=False)
        if node and node.source == target:
            return
        hides = os.path.lexists(target)  # a whiteout: what was below stays deleted
        if hides:
            os.unlink(target)  # noqa: PTH108
        os.mkdir(target, 0o755)  # noqa: PTH102
        if hides:
            os.setxattr(target, OPAQUE_XATTR, b"y")
        if node:
            self._set_attributes(target, node, Attributes())
        else:
            os.chown(target, attributes.uid or 0, attributes.gid or 0)
            os.chmod(target, 0o755 if attributes.mode is None else attributes.mode)  # noqa: PTH101

    @staticmethod
    def _set_attributes(target: str, node: Node, attributes: Attributes) -> None:
        status = node.status
        uid = status.st_uid if attributes.uid is None else attributes.uid
        gid = status.st_gid if attributes.gid is None else attributes.gid
        os.chown(target, uid, gid, follow_symlinks=False)
        if not node.is_symlink:
            os.chmod(target, stat.S_IMODE(status.st_mode) if attributes.mode is None else attributes.mode)  # noqa: PTH101
        for name in os.listxattr(node.source, follow_symlinks=False):
            if name.startswith(_COPIED_XATTRS):
                os.setxattr(target, name, os.getxattr(node.source, name, follow_symlinks=False), follow_symlinks=False)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _is_opaque(folder: str) -> bool:
    try:
        return os.getxattr(folder, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _copy_content(source: str, target: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(reader, "rb") as source_file, os.fdopen(os.open(target, flags, 0o600), "wb") as target_file:
        shutil.copyfileobj(source_file, target_file, 1024 * 1024)
