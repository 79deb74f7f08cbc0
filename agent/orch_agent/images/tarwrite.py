"""Turns a layer's directory into its tar: always the same bytes for the same tree, overlayfs's marks written as OCI's.

Entries are sorted; times are whole seconds; names of users are left out. The digest of these bytes is the layer's
diffID, and pushing or saving an image writes them again.
"""

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orch_agent.images.beneath import OPAQUE_XATTR, OVERLAY_PREFIX, is_whiteout
from orch_agent.images.digests import CHUNK_BYTES
from orch_agent.images.errors import StoreCorrupt
from orch_agent.images.extract import OPAQUE_NAME, WHITEOUT_PREFIX

_MEANINGFUL_OVERLAY = (f"{OVERLAY_PREFIX}redirect", f"{OVERLAY_PREFIX}metacopy")
_LEFT_OUT = ("trusted.", "user.overlay.", "security.selinux")
_END_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Written:
    """What a layer's tar holds."""

    entries: int
    size_bytes: int
    """Bytes of the files, hard links counted once."""


def write_layer(root: str, write: Callable[[bytes], object]) -> Written:
    """Send the tar of the layer directory `root` to `write`, in pieces.

    Raises:
        StoreCorrupt: the tree uses features of overlayfs (redirects, metadata-only copies) that a tar cannot hold.
    """
    links: dict[tuple[int, int], str] = {}
    entries = 0
    size_bytes = 0
    for path, name, status in _walk(root):
        entries += 1
        if is_whiteout(status):
            folder, _, leaf = name.rpartition("/")
            write(_header(_whiteout(f"{folder}/{WHITEOUT_PREFIX}{leaf}".lstrip("/")), {}))
            continue
        info = _describe(path, name, status)
        identity = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if identity in links:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, links[identity], 0
                write(_header(info, {}))
                continue
            links[identity] = name
        xattrs = _xattrs(path)
        opaque = xattrs.pop(OPAQUE_XATTR, b"") == b"y"
        write(_header(info, xattrs))
        if info.type == tarfile.REGTYPE:
            _content(path, info.size, write)
            size_bytes += info.size
        if opaque and name:
            write(_header(_whiteout(f"{name}/{OPAQUE_NAME}"), {}))
    write(bytes(_END_BYTES))
    return Written(entries, size_bytes)


def _walk(root: str) -> Iterator[tuple[str, str, os.stat_result]]:
    """Everything beneath `root` (not itself), parents first, sorted by name at each level."""
    pending = [("", root)]
    while pending:
        name, path = pending.pop()
        status = os.lstat(path)
        if stat.S_ISSOCK(status.st_mode):
            continue  # a socket means nothing without its process, and tar has no kind for it
        if name:
            yield path, name, status
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(path) as children:
                names = sorted((child.name for child in children), reverse=True)
            pending += [(f"{name}/{child}" if name else child, f"{path}/{child}") for child in names]


def _describe(path: str, name: str, status: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    info.mtime = int(status.st_mtime)
    if stat.S_ISREG(status.st_mode):
        info.size = status.st_size
    elif stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, str(Path(path).readlink())
    elif stat.S_ISFIFO(status.st_mode):
        info.type = tarfile.FIFOTYPE
    else:
        info.type = tarfile.CHRTYPE if stat.S_ISCHR(status.st_mode) else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return info


def _whiteout(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = 0o600
    return info


def _xattrs(path: str) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    bad = [name for name in names if name in _MEANINGFUL_OVERLAY]
    if bad:
        raise StoreCorrupt(
            f"{path} was written with overlayfs's {bad[0]} feature, which a layer cannot hold; "
            "mount with redirect_dir=off and metacopy=off"
        )
    kept = [name for name in names if name == OPAQUE_XATTR or not name.startswith(_LEFT_OUT)]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(kept)}


def _header(info: tarfile.TarInfo, xattrs: dict[str, bytes]) -> bytes:
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in xattrs.items()
    }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(path: str, size: int, write: Callable[[bytes], object]) -> None:
    left = size
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while left:
            data = os.read(descriptor, min(CHUNK_BYTES, left))
            if not data:
                raise StoreCorrupt(f"{path} became shorter while it was read; nothing else may write into a layer")
            write(data)
            left -= len(data)
    finally:
        os.close(descriptor)
    if size % tarfile.BLOCKSIZE:
        write(bytes(-size % tarfile.BLOCKSIZE))
