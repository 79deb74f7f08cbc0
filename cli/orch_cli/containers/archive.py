"""Local files to a tar and back, by docker's rules for what a copy is called at its destination."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from orch_cli.errors import CliError

COPY_BYTES = 1 << 20


def source_name(path: str) -> str:
    """What the copy of a local file or folder is called: the last part of its path, also of ``.`` and ``..``."""
    return Path(os.path.abspath(path)).name or "root"


def is_folder(path: str, *, follow_link: bool) -> bool:
    """Whether a local path is a folder; a link is one if it is followed.

    Raises:
        CliError: nothing is there.
    """
    try:
        return stat.S_ISDIR(os.stat(path, follow_symlinks=follow_link).st_mode)
    except OSError as error:
        raise CliError(f"cannot copy {path}", error.strerror or str(error), "check the path") from error


def pack(path: str, name: str, target: BinaryIO, *, follow_link: bool) -> list[str]:
    """Writes a tar of a local file or folder; returns notes on what was left out.

    Args:
        path: what to pack.
        name: what it is called in the tar.
        target: takes the tar.
        follow_link: pack what a link at the end of the path points to.
    """
    notes: list[str] = []

    def choose(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if info.isdev() and not info.isfifo():
            notes.append(f"{info.name} is a device and was left out")
            return None
        return info

    real = os.path.realpath(path) if follow_link or path.endswith("/") else path
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, bufsize=COPY_BYTES) as tar:
        tar.add(real, arcname=name, filter=choose)
    return notes


class Unpacker:
    """Places the tar of one file or folder.

    Args:
        destination: as the user wrote it.
        contents_only: put what is in the folder there, not the folder.
        keep_owners: owners and special modes as in the container; otherwise the user's.
    """

    def __init__(self, destination: str, *, contents_only: bool, keep_owners: bool) -> None:
        self._destination = destination
        self._contents_only = contents_only
        self._keep_owners = keep_owners
        self._base = Path()
        self._root = ""
        self._folders: list[tuple[Path, tarfile.TarInfo]] = []

    def unpack(self, source: BinaryIO) -> None:
        """Reads the tar to its end.

        Raises:
            CliError: something of it cannot be placed; what came before is there.
        """
        with tarfile.open(fileobj=source, mode="r|", bufsize=COPY_BYTES) as tar:
            for number, info in enumerate(tar):
                if number == 0:
                    self._begin(info)
                self._place(info, tar)
        for path, info in reversed(self._folders):
            with _explained(path):
                os.chmod(path, info.mode & 0o777)
                os.utime(path, (info.mtime, info.mtime))

    def _begin(self, first: tarfile.TarInfo) -> None:
        """Docker's rules: into a folder that is there, over a file that is there, else under a new name."""
        path = Path(self._destination)
        self._root = first.name.split("/")[0]
        if path.is_dir():
            whole = first.isdir() and (self._contents_only or self._root == ".")
            self._base = path if whole else path / self._root
        elif path.exists():
            if first.isdir():
                raise CliError(f"cannot copy to {path}", "a folder cannot be copied over a file", "name a folder")
            self._base = path
        elif self._destination.endswith("/") and not first.isdir():
            raise CliError(f"cannot copy to {self._destination}", "there is no such folder", "make it, or leave out /")
        elif not path.absolute().parent.is_dir():
            raise CliError(f"cannot copy to {path}", f"there is no folder {path.parent}", "make it first")
        else:
            self._base = path

    def _target(self, name: str) -> Path:
        parts = name.split("/")
        if parts[0] != self._root or any(part in ("", "..") for part in parts[1:]):
            raise CliError("cannot copy", f"the node sent the name {name!r}, which leads elsewhere", "tell your admin")
        target = self._base
        for part in parts[1:]:
            # No link that the copy itself has brought may lead out of it.
            if target != self._base and target.is_symlink():
                raise CliError("cannot copy", f"{target} is a link, and files were sent below it", "tell your admin")
            target /= part
        return target

    def _place(self, info: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        path = self._target(info.name)
        with _explained(path):
            if info.isdir():
                if not path.is_dir() or (path.is_symlink() and path != self._base):
                    path.mkdir(mode=0o700)
                    self._folders.append((path, info))
                self._set_owner(path, info)
                return
            if path.is_symlink() or (path.exists() and not path.is_dir() and not info.isreg()):
                path.unlink()
            if info.isreg():
                content = tar.extractfile(info)
                assert content is not None
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file, COPY_BYTES)
                self._set_owner(path, info)
                path.chmod(info.mode & (0o7777 if self._keep_owners else 0o777))
                os.utime(path, (info.mtime, info.mtime))
            elif info.issym():
                path.symlink_to(info.linkname)
                self._set_owner(path, info)
            elif info.islnk():
                path.hardlink_to(self._target(info.linkname))
            elif info.isfifo():
                os.mkfifo(path, stat.S_IMODE(info.mode))

    def _set_owner(self, path: Path, info: tarfile.TarInfo) -> None:
        if self._keep_owners:
            os.chown(path, info.uid, info.gid, follow_symlinks=False)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        todo = "what came before it has been copied; correct it and repeat"
        raise CliError(f"cannot write {path}", error.strerror or str(error), todo) from error
