"""Folders that `RUN --mount=type=cache` keeps between builds, apart from images and from the layer cache.

Each id has a folder of its own below `build-mounts/` of the image store, with `data`, which is mounted, and for
`sharing=private` further ones (`data-1`, ...) where several steps use it at once. Whoever uses one holds its lock file
shared (`locked` and `private`: alone), so that a folder in use is never removed. The kernel gives locks back when their
holder is killed.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orch_agent.build.errors import BuildError
from orch_agent.build.mount_specs import MountSpec
from orch_agent.images import files

CACHES_MAX = 100
"""Remembered caches; the least recently used go first."""
PRIVATE_MAX = 16
"""Steps that may use one private cache at once."""
WAIT_S = 3600.0
"""The longest a step waits for a locked cache: as long as a command may take."""
_POLL_S = 0.05


class CacheMounts:
    """The caches of one image store; safe for several processes."""

    def __init__(self, root: Path) -> None:
        """Keep them below `root`, made when first needed."""
        self._root = root

    @contextlib.contextmanager
    def use(self, spec: MountSpec, fill: Callable[[Path], None], stop: threading.Event) -> Iterator[Path]:
        """The folder to mount, for the time of a step; `fill` gives a new one its first content.

        Raises:
            BuildError: a locked cache was not free in time, or the build was stopped.
        """
        folder = self._root / hashlib.sha256(spec.id.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.utime(folder)
        with contextlib.ExitStack() as held:
            name = self._hold(spec, folder, held, stop)
            data = folder / name
            # Two builds may come at once: the first that gets the lock for making fills it, aside, and renames.
            with files.locked(folder / "making.lock"):
                if not data.exists():
                    aside = folder / f".{name}"
                    files.remove_tree(aside)
                    aside.mkdir()
                    fill(aside)
                    aside.chmod(0o755 if spec.mode is None else spec.mode)
                    os.chown(aside, spec.uid, spec.gid)
                    aside.rename(data)
            yield data
        self._prune()

    def _hold(self, spec: MountSpec, folder: Path, held: contextlib.ExitStack, stop: threading.Event) -> str:
        if spec.sharing == "private":
            for number in range(PRIVATE_MAX):
                name = f"data-{number}" if number else "data"
                if held.enter_context(files.locked_if_free(folder / f"{name}.lock")):
                    return name
            raise BuildError(f"the private cache {spec.id} is in use by {PRIVATE_MAX} steps; build again later")
        file = held.enter_context((folder / "data.lock").open("ab"))
        wanted = fcntl.LOCK_EX if spec.sharing == "locked" else fcntl.LOCK_SH
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(file, wanted | fcntl.LOCK_NB)
            except BlockingIOError:
                if stop.wait(_POLL_S) or time.monotonic() > deadline:
                    raise BuildError(
                        f"the cache {spec.id} was not free; another build holds it, wait for that one"
                    ) from None
            else:
                return "data"

    def _prune(self) -> None:
        folders = sorted(self._root.iterdir(), key=_used_at, reverse=True)
        for folder in folders[CACHES_MAX:]:
            with contextlib.ExitStack() as held, contextlib.suppress(FileNotFoundError):
                locks = [held.enter_context(files.locked_if_free(path)) for path in sorted(folder.glob("*.lock"))]
                if all(locks):
                    files.remove_tree(folder)


def _used_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
