"""What the agent remembers of a task across its own death: the task as assigned, what it needs, its last status.

Records live below the run directory (a tmpfs): they are gone after a reboot of the node, as are the containers they
speak of. A task whose record is gone although the leader knows that it had started is reported as lost, never started
a second time.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from orch_agent.task import files
from orch_agent.task import needs as task_needs
from orch_agent.task.needs import Needs
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types
from orch_rpc import logs

log = logs.get("worker")
_TASK = "task.pb"
_STATUS = "status.pb"
_NEEDS = "needs.pb"
_TOLD = "told"


@dataclass(frozen=True, slots=True)
class Record:
    """A remembered task; the status is None when none was written yet."""

    task: objects.Task
    status: types.TaskStatus | None
    needs: Needs = field(default_factory=Needs)
    #: Whether a leader has taken note of its end.
    told: bool = False


class Records:
    """The records of a node's tasks, one folder each; the folder holds the task's other files too."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, task_id: str) -> Path:
        """Where a task's record and files are."""
        return self._root / task_id

    def write_task(self, task: objects.Task, needs: Needs) -> None:
        """Remembers a task as it is assigned, and what it needs."""
        folder = self.folder(task.id)
        folder.mkdir(mode=0o700, exist_ok=True)
        _replace(folder / _NEEDS, task_needs.to_bytes(needs))
        # Last: a folder without it is no record.
        _replace(folder / _TASK, task.SerializeToString())

    def write_status(self, task_id: str, status: types.TaskStatus) -> None:
        """Remembers the last status of a task whose record is there."""
        _replace(self.folder(task_id) / _STATUS, status.SerializeToString())

    def mark_told(self, task_id: str) -> None:
        """Remembers that a leader has taken note of a task's end; nothing when there is no record of the task."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder(task_id) / _TOLD).touch()

    def forget(self, task_id: str) -> None:
        """Removes everything remembered of a task."""
        files.remove_task_files(self.folder(task_id))

    def load(self) -> list[Record]:
        """All remembered tasks; what cannot be read is dropped and said so."""
        records = []
        for folder in sorted(self._root.iterdir()):
            try:
                task = objects.Task.FromString((folder / _TASK).read_bytes())
                status_file = folder / _STATUS
                status = types.TaskStatus.FromString(status_file.read_bytes()) if status_file.exists() else None
                needs_file = folder / _NEEDS
                needs = task_needs.from_bytes(needs_file.read_bytes()) if needs_file.exists() else Needs()
            except (OSError, DecodeError) as error:
                log.warning("record.unreadable", task=folder.name, why=str(error))
                files.remove_task_files(folder)
                continue
            records.append(Record(task, status, needs, (folder / _TOLD).exists()))
        return records


def _replace(path: Path, data: bytes) -> None:
    # Plain calls: four of these stand between the assignment of a task and its start.
    aside = f"{path}.new"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
    os.rename(aside, path)  # noqa: PTH104 -- as above
