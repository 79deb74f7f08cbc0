"""Blobs on their way to this node: resumed where they broke off, kept until their layer is unpacked.

A blob is written to `downloads/HEX.part` below the store. What a broken connection, a kill or a loss of power leaves
there is gone on with next time; it is never used before the digest of the whole was checked. Files that nobody has
touched for a day are removed at the next pull.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import urllib3

from orch_agent.images import digests
from orch_agent.images.digests import CHUNK_BYTES
from orch_agent.images.errors import DigestMismatch, ImageError
from orch_agent.images.registry.client import RegistryClient
from orch_agent.images.registry.errors import RegistryUnreachable
from orch_agent.images.registry.manifests import Descriptor

#: Connections in a row that break off without bringing a byte.
ATTEMPTS = 5
_PAUSE_FIRST_S = 0.2
_STALE_S = 24 * 3600.0


class PullStopped(ImageError):  # noqa: N818 -- it says it all
    """The pull that wanted the blob has ended."""


class Downloads:
    """The folder of blobs under way; several processes may use it at once.

    Args:
        folder: on the store's file system.
        stop: set when nobody wants them any more.
    """

    def __init__(self, folder: Path, stop: threading.Event) -> None:
        self._folder = folder
        self._stop = stop
        folder.mkdir(mode=0o700, exist_ok=True)

    def sweep(self) -> None:
        """Remove what was left behind long ago."""
        now_s = time.time()
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                if now_s - path.stat().st_mtime > _STALE_S and _try_lock(file):
                    path.unlink()

    @contextlib.contextmanager
    def fetched(
        self, client: RegistryClient, wanted: Descriptor, progress: Callable[[int], None]
    ) -> Iterator[BinaryIO]:
        """The blob, whole and checked, from its beginning; its file is removed at the end if all went well.

        Args:
            client: where it is.
            wanted: what it is.
            progress: told of each piece's bytes.

        Raises:
            RegistryError: it cannot be had. What there is of it stays for next time.
            DigestMismatch: it is not what it should be; nothing of it stays.
        """
        path = self._folder / f"{digests.hex_of(wanted.digest)}.part"
        with self._locked(path) as file:
            self._complete(client, wanted, file, path, progress)
            file.seek(0)
            yield file
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[BinaryIO]:
        """The file, ours alone. Another that has just finished it removed it: then it is a new one."""
        while not self._stop.is_set():
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
                if not _try_lock(file):
                    self._stop.wait(0.1)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                        yield file
                        return
        raise PullStopped("the pull was stopped")

    def _complete(
        self,
        client: RegistryClient,
        wanted: Descriptor,
        file: BinaryIO,
        path: Path,
        progress: Callable[[int], None],
    ) -> None:
        hashing = hashlib.sha256()
        have = 0
        while have < wanted.size_bytes and (data := file.read(min(CHUNK_BYTES, wanted.size_bytes - have))):
            hashing.update(data)
            have += len(data)
        progress(have)
        failures = 0
        while have < wanted.size_bytes:
            before = have
            try:
                answer, resumes = client.blob(wanted, have)
                try:
                    if not resumes:
                        hashing, have = hashlib.sha256(), 0
                    file.seek(have)
                    for data in self._pieces(answer, wanted.size_bytes - have):
                        file.write(data)
                        hashing.update(data)
                        have += len(data)
                        progress(len(data))
                finally:
                    answer.close()
                why: object = "the connection ended early"
            except (urllib3.exceptions.HTTPError, OSError) as error:
                why = error
            if have < wanted.size_bytes:
                failures = 0 if have > before else failures + 1
                if failures >= ATTEMPTS:
                    raise RegistryUnreachable(
                        f"cannot get {wanted.digest[:19]}: {' '.join(str(why).split())[:200]}, {failures} times in a "
                        f"row after {have} of {wanted.size_bytes} bytes; what is there is kept, try again later"
                    )
                self._stop.wait(_PAUSE_FIRST_S * 2**failures)
        file.truncate(wanted.size_bytes)
        file.flush()
        if f"sha256:{hashing.hexdigest()}" != wanted.digest:
            path.unlink(missing_ok=True)
            raise DigestMismatch(
                f"what the registry gave as {wanted.digest} has the digest sha256:{hashing.hexdigest()}; "
                "nothing of it is used; look after that registry, or its mirror"
            )

    def _pieces(self, answer: urllib3.BaseHTTPResponse, at_most_bytes: int) -> Iterator[bytes]:
        left = at_most_bytes
        while left and (data := answer.read(min(CHUNK_BYTES, left))):
            if self._stop.is_set():
                raise PullStopped("the pull was stopped")
            left -= len(data)
            yield data


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
