"""Secrets of a build as files, for the time of a step, on a tmpfs.

A build that is killed leaves its folder behind; the next one removes it, told by the lock that nobody holds any more.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from orch_agent.build.errors import BuildError
from orch_agent.build.mount_specs import MountSpec
from orch_agent.images import files

SECRET_BYTES_MAX = 500 * 1024
"""As the cluster's own secrets (docker's limit)."""
DEFAULT_FOLDER = Path("/dev/shm")  # noqa: S108 - a tmpfs, and the folder made there is private
_PREFIX = "orch-build-secrets-"


class SecretFiles:
    """The secrets that one build was given."""

    def __init__(self, contents: Mapping[str, bytes], folder: Path) -> None:
        """Hand out `contents` by id; files stand below the folder that `opened` made."""
        self._contents = contents
        self._folder = folder

    def content(self, name: str) -> bytes | None:
        """A secret by its id; None if the build was not given it."""
        return self._contents.get(name)

    @contextlib.contextmanager
    def file(self, spec: MountSpec) -> Iterator[Path]:
        """A file with the secret that `spec` names, with its owner and mode; removed afterwards."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / secrets.token_hex(8)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._contents[spec.id])
                os.fchown(file.fileno(), spec.uid, spec.gid)
                os.fchmod(file.fileno(), 0o400 if spec.mode is None else spec.mode)
            yield path
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(contents: Mapping[str, bytes], parent: Path | None) -> Iterator[SecretFiles]:
    """The secrets of a build, with a private folder below `parent`, a tmpfs.

    Raises:
        BuildError: a secret is too large.
    """
    for name, content in contents.items():
        if len(content) > SECRET_BYTES_MAX:
            raise BuildError(f"the secret {name} has more than {SECRET_BYTES_MAX} bytes; give a smaller one")
    if not contents:
        yield SecretFiles({}, Path())
        return
    parent = parent or DEFAULT_FOLDER
    _sweep(parent)
    folder = parent / f"{_PREFIX}{secrets.token_hex(8)}"
    folder.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield SecretFiles(contents, folder)
    finally:
        files.remove_tree(folder)
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # its owner may be removing it, or hold it
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                files.remove_tree(folder)
            finally:
                os.close(descriptor)
