"""Writable layers of tasks: two folders for overlayfs, made with a task and gone with it.

Removing renames the folders at once and deletes their files in the background, so that a task's removal does not wait
for the disk. The trash is a folder, not a queue in memory: what a crash leaves there is deleted after the next start.
"""

import contextlib
import os
import re
import secrets
import threading
from collections.abc import Collection
from pathlib import Path

from orch_agent.images import files

_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")


class Snapshots:
    """The writable layers beneath one folder; used by one process at a time."""

    def __init__(self, root: Path) -> None:
        """Open the folder `root`, making it if missing."""
        self._tasks = root / "tasks"
        self._trash = root / "trash"
        for folder in (self._tasks, self._trash):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._wake = threading.Condition()
        self._closing = False
        self._pending = True  # what a former process left
        self._worker = threading.Thread(target=self._empty_trash, name="snapshot-trash", daemon=True)
        self._worker.start()

    def prepare(self, task_id: str) -> tuple[str, str]:
        """The task's upper and work folders for an overlay, made if missing; asking again gives the same.

        Raises:
            ValueError: the id could not be a folder's name.
        """
        folder = self._folder(task_id)
        folder.mkdir(exist_ok=True, mode=0o700)
        upper, work = folder / "upper", folder / "work"
        upper.mkdir(exist_ok=True)
        upper.chmod(0o755)  # the task's root folder, whatever the umask
        work.mkdir(exist_ok=True, mode=0o700)
        return str(upper), str(work)

    def remove(self, task_id: str) -> None:
        """Remove a task's writable layer; a task without one is no error. Nothing may be mounted from it."""
        with contextlib.suppress(FileNotFoundError):
            self._folder(task_id).rename(self._trash / f"{task_id}.{secrets.token_hex(4)}")
        with self._wake:
            self._pending = True
            self._wake.notify_all()

    def sweep(self, live: Collection[str]) -> tuple[str, ...]:
        """Remove the layers of all tasks that are not in `live`; returns their ids."""
        with os.scandir(self._tasks) as entries:
            gone = tuple(sorted(entry.name for entry in entries if entry.name not in live))
        for task_id in gone:
            self.remove(task_id)
        return gone

    def folders(self) -> tuple[Path, ...]:
        """The folders of all tasks that have one, named by their ids."""
        return tuple(self._tasks.iterdir())

    def wait_deleted(self, timeout_s: float) -> bool:
        """Wait until the trash is empty; False if it is not in time."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._pending, timeout_s)

    def close(self) -> None:
        """Stop deleting; what is left is deleted after the next start."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._worker.join()

    def _folder(self, task_id: str) -> Path:
        if not _TASK_ID.match(task_id):
            raise ValueError(
                f"{task_id[:100]!r} is not an id of a task: use letters, digits, dots, dashes, underscores"
            )
        return self._tasks / task_id

    def _is_closing(self) -> bool:
        with self._wake:
            return self._closing

    def _empty_trash(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._pending or self._closing)
                if self._closing:
                    return
                self._pending = False
                names = list(self._trash.iterdir())
                if not names:
                    self._wake.notify_all()
                    continue
                self._pending = True
            for path in names:
                if self._is_closing():
                    return
                files.remove_tree(path)
