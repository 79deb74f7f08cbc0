"""Directories reached strictly beneath a root: by descriptors, component by component, never through a link."""

import errno
import os
import stat
from typing import Self

from orch_agent.images.errors import ArchiveRefused
from orch_runtime.kernel.user_namespace import in_user_namespace

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CACHED_DIRECTORIES = 32
OVERLAY_PREFIX = "user.overlay." if in_user_namespace() else "trusted.overlay."
"""Where overlayfs keeps its marks: root of a user namespace may not write attributes of the host's root."""
OPAQUE_XATTR = f"{OVERLAY_PREFIX}opaque"
"""Overlayfs's mark on a folder that hides what is below it."""


def split_path(path: str, *, depth_max: int) -> tuple[str, ...]:
    """The components of an archive's path; leading slashes and single dots mean nothing.

    Raises:
        ArchiveRefused: it has a `..` or too many components.
    """
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ArchiveRefused(
            f"the archive's path {path[:200]!r} climbs with '..', which could leave its folder; "
            "make it without such paths"
        )
    if len(parts) > depth_max:
        raise ArchiveRefused(f"the archive's path {path[:200]!r} is deeper than {depth_max} folders; make it flatter")
    return parts


class Beneath:
    """Opens directories beneath a root and keeps the latest ones open, as archives list neighbours together."""

    def __init__(self, root: str) -> None:
        self._root_fd = os.open(root, _OPEN_DIRECTORY)
        self._open: dict[tuple[str, ...], int] = {}

    def close(self) -> None:
        """Close every descriptor."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        os.close(self._root_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def directory(self, parts: tuple[str, ...], *, create: bool) -> int:
        """A descriptor of the directory `parts`, valid until the next call; missing ones are made with mode 0755.

        Raises:
            ArchiveRefused: a component is not a directory (a link is not followed), or is missing without `create`.
        """
        if not parts:
            return self._root_fd
        cached = self._open.get(parts)
        if cached is not None:
            return cached
        depth = next((n for n in range(len(parts) - 1, 0, -1) if parts[:n] in self._open), 0)
        descriptor = self._open[parts[:depth]] if depth else self._root_fd
        owned = False
        for index in range(depth, len(parts)):
            child = self._step(descriptor, parts, index, create=create)
            if owned:
                os.close(descriptor)
            descriptor, owned = child, True
        self._remember(parts, descriptor)
        return descriptor

    def forget(self, parts: tuple[str, ...]) -> None:
        """Drop descriptors at or below `parts`, because that directory was replaced."""
        for key in [key for key in self._open if key[: len(parts)] == parts]:
            os.close(self._open.pop(key))

    def _remember(self, parts: tuple[str, ...], descriptor: int) -> None:
        if len(self._open) >= _CACHED_DIRECTORIES:
            oldest = next(iter(self._open))
            os.close(self._open.pop(oldest))
        self._open[parts] = descriptor

    def _step(self, descriptor: int, parts: tuple[str, ...], index: int, *, create: bool) -> int:
        name = parts[index]
        hides_below = False
        try:
            return os.open(name, _OPEN_DIRECTORY, dir_fd=descriptor)
        except FileNotFoundError:
            if not create:
                raise _refused(parts, index, "does not exist") from None
        except NotADirectoryError:
            if not (create and self._is_whiteout(descriptor, name)):
                raise _refused(parts, index, "is a link or a file, and links are never followed") from None
            os.unlink(name, dir_fd=descriptor)
            hides_below = True
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                raise _refused(parts, index, "is a link or its name is too long") from None
            raise
        os.mkdir(name, 0o755, dir_fd=descriptor)
        child = os.open(name, _OPEN_DIRECTORY, dir_fd=descriptor)
        os.fchmod(child, 0o755)  # whatever the umask
        if hides_below:
            os.setxattr(child, OPAQUE_XATTR, b"y")
        return child

    @staticmethod
    def _is_whiteout(descriptor: int, name: str) -> bool:
        return is_whiteout(os.stat(name, dir_fd=descriptor, follow_symlinks=False))


def is_whiteout(status: os.stat_result) -> bool:
    """Whether a file is overlayfs's mark for "deleted here": a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _refused(parts: tuple[str, ...], index: int, why: str) -> ArchiveRefused:
    path = "/".join(parts)[:200]
    where = "/".join(parts[: index + 1])[:200]
    return ArchiveRefused(f"the archive's entry {path!r} cannot be placed: {where!r} {why}; make the archive again")
