"""A build context as a tar: the same folder gives the same bytes, in whatever order the disk lists it."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from orch_cli.deploy.ignore import IgnoreRules
from orch_cli.errors import CliError
from orch_proto import defaults

MAX_ENTRIES: Final = 200_000
MAX_BYTES: Final = 4 * 1024**3
IGNORE_FILE: Final = ".dockerignore"
_IGNORE_BYTES: Final = 1024 * 1024
_CHUNK: Final = defaults.RELAY_CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A file that is not on disk: an inline Dockerfile."""

    name: str
    data: bytes


def read_ignore_rules(folder: str, dockerfile: str) -> IgnoreRules:
    """``<dockerfile>.dockerignore`` where there is one, else ``.dockerignore``, else nothing is ignored."""
    for name in (f"{dockerfile or 'Dockerfile'}.dockerignore", IGNORE_FILE):
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as stream:
                return IgnoreRules(stream.read(_IGNORE_BYTES))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"cannot read {name} of {folder}", str(error), "correct or remove it") from error
    return IgnoreRules("")


def _given_rules(ignore: ContextFile) -> IgnoreRules:
    try:
        return IgnoreRules(ignore.data.decode())
    except UnicodeDecodeError as error:
        raise CliError("cannot read the Dockerfile's .dockerignore", str(error), "correct or remove it") from error


def list_context(folder: str, rules: IgnoreRules, always: frozenset[str]) -> Iterator[str]:
    """Relative paths of what belongs to the context, folders before their content, sorted.

    Args:
        folder: the context.
        rules: what stays out.
        always: paths that are sent whatever the rules say: the Dockerfile.
    """
    stack = [""]
    while stack:
        current = stack.pop()
        try:
            with os.scandir(os.path.join(folder, current)) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise CliError(
                f"cannot read the build context {folder}", str(error), "check the path and its permissions"
            ) from error
        below = []
        for entry in entries:
            path = f"{current}/{entry.name}" if current else entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            ignored = path not in always and rules.ignores(path)
            if not ignored:
                yield path
            if is_folder and (
                not ignored or rules.has_exceptions or any(item.startswith(f"{path}/") for item in always)
            ):
                below.append(path)
        stack.extend(reversed(below))


class _Collector(io.RawIOBase):
    """A stream that the tar is written to and chunks are taken from."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: object) -> int:
        """Keeps the bytes until they are taken."""
        block = bytes(data)  # type: ignore[call-overload] # a buffer, by the contract of RawIOBase
        self._parts.append(block)
        self._size += len(block)
        return len(block)

    def take(self, *, everything: bool = False) -> Iterator[bytes]:
        """Whole chunks, or with ``everything`` the rest too."""
        if self._size < _CHUNK and not everything:
            return
        data = b"".join(self._parts)
        whole = len(data) if everything else len(data) - len(data) % _CHUNK
        for start in range(0, whole, _CHUNK):
            yield data[start : min(start + _CHUNK, whole)]
        self._parts, self._size = [data[whole:]], len(data) - whole


def pack_context(
    folder: str, dockerfile: str, inline: ContextFile | None, ignore: ContextFile | None = None
) -> Iterator[bytes]:
    """The context's tar in chunks of at most a relay frame; `ignore` are the ignore rules of an inline Dockerfile.

    Owners and times are left out (they differ between machines and change no layer); modes are kept.

    Raises:
        CliError: when it cannot be read, or is larger than a context may be.
    """
    if not os.path.isdir(folder):
        raise CliError(f"cannot build from {folder}", "there is no such folder", "correct build.context")
    name = dockerfile or "Dockerfile"
    if inline is None and not os.path.isfile(os.path.join(folder, name)):
        raise CliError(
            f"cannot build from {folder}", f"there is no {name} in it", "add one, or name it with dockerfile"
        )
    rules = read_ignore_rules(folder, dockerfile) if ignore is None else _given_rules(ignore)
    added = {file.name: file for file in (inline, ignore) if file is not None}
    collector = _Collector()
    entries = total = 0
    with tarfile.open(fileobj=collector, mode="w|", format=tarfile.PAX_FORMAT, bufsize=tarfile.BLOCKSIZE) as archive:
        for path in list_context(folder, rules, frozenset({name} if inline is None else ())):
            if path in added:
                continue
            entries += 1
            total += _add(archive, folder, path)
            if entries > MAX_ENTRIES or total > MAX_BYTES:
                why = f"it has more than {MAX_ENTRIES} entries" if entries > MAX_ENTRIES else "it is larger than 4 GiB"
                raise CliError(
                    f"the build context {folder} is too large", why, f"keep what is not needed out with {IGNORE_FILE}"
                )
            yield from collector.take()
        for file in added.values():
            member = tarfile.TarInfo(file.name)
            member.size = len(file.data)
            archive.addfile(member, io.BytesIO(file.data))
    yield from collector.take(everything=True)


def _add(archive: tarfile.TarFile, folder: str, path: str) -> int:
    """Adds one entry; returns the bytes of its content. Sockets, pipes and devices are no part of a context."""
    full = os.path.join(folder, path)
    try:
        status = os.lstat(full)
        member = tarfile.TarInfo(path)
        member.mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        elif stat.S_ISLNK(status.st_mode):
            member.type = tarfile.SYMTYPE
            member.linkname = os.readlink(full)
            archive.addfile(member)
        elif stat.S_ISREG(status.st_mode):
            with open(full, "rb") as stream:
                member.size = os.fstat(stream.fileno()).st_size
                archive.addfile(member, stream)
            return member.size
    except OSError as error:
        raise CliError(
            f"cannot read {full}", error.strerror or str(error), f"correct it, or keep it out with {IGNORE_FILE}"
        ) from error
    return 0
