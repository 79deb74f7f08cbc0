"""What the OCI command line keeps of a container: one folder below its root, and the process itself.

`state.json` is written once the container is created; whether it runs is read from the kernel each time.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from orch_runtime.config.compiler import check_id
from orch_runtime.errors import AlreadyExists, InvalidConfig, KernelError, NotFound

START_SOCKET = "start.sock"
STATE_FILE = "state.json"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Record:
    """The state file. `start_time` (clock ticks since boot) tells the process from a later one of the same number."""

    id: str
    oci_version: str
    bundle: str
    rootfs: str
    created: str
    owner: str
    pid: int
    start_time: int
    cgroup: str
    annotations: dict[str, str] = field(default_factory=dict)


def process_state(pid: int) -> tuple[str, int]:
    """Return (state letter, start time) of a process from /proc, ("", 0) where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[19])


class Store:
    """The folder with all containers of one `--root`."""

    def __init__(self, root: str) -> None:
        self.root = root

    def folder(self, container_id: str) -> str:
        """Return the container's folder; it need not exist."""
        return f"{self.root}/{check_id(container_id)}"

    def make(self, container_id: str) -> str:
        """Make the container's folder.

        Raises:
            AlreadyExists: the id is taken.
        """
        folder = self.folder(container_id)
        try:
            os.makedirs(self.root, 0o700, exist_ok=True)
            os.mkdir(folder, 0o711)
        except FileExistsError as error:
            raise AlreadyExists(f"container {container_id} exists; delete it or take another id") from error
        except OSError as error:
            raise KernelError("mkdir", error.errno or 0, folder) from error
        return folder

    def save(self, record: Record) -> None:
        """Write the state file; its rename is what makes the container exist."""
        folder = self.folder(record.id)
        temporary = f"{folder}/{STATE_FILE}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
        os.rename(temporary, f"{folder}/{STATE_FILE}")

    def load(self, container_id: str) -> Record:
        """Read the state file.

        Raises:
            NotFound: there is no such container.
        """
        try:
            with open(f"{self.folder(container_id)}/{STATE_FILE}", encoding="utf-8") as file:
                return Record(**json.load(file))
        except (OSError, InvalidConfig) as error:
            raise NotFound(f"container {container_id} does not exist below {self.root}") from error

    def config(self, container_id: str) -> dict[str, Any]:
        """Return the config the container was made from."""
        with open(f"{self.folder(container_id)}/{CONFIG_FILE}", encoding="utf-8") as file:
            document: dict[str, Any] = json.load(file)
        return document

    def remove(self, container_id: str) -> None:
        """Remove the container's folder."""
        folder = self.folder(container_id)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)

    def all(self) -> list[Record]:
        """Return every container, oldest first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.root):
                with contextlib.suppress(NotFound):
                    found.append(self.load(name))
        return sorted(found, key=lambda record: record.created)

    def status(self, record: Record) -> str:
        """Return "created", "running" or "stopped" ("paused" is the cgroup's to tell)."""
        letter, start_time = process_state(record.pid)
        if letter in ("", "Z", "X") or start_time != record.start_time:
            return "stopped"
        return "created" if os.path.exists(f"{self.folder(record.id)}/{START_SOCKET}") else "running"


def oci_state(record: Record, status: str) -> dict[str, Any]:
    """Return the state object of the OCI runtime specification (runtime.md, "State")."""
    state: dict[str, Any] = {
        "ociVersion": record.oci_version,
        "id": record.id,
        "status": status,
        "pid": 0 if status == "stopped" else record.pid,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "owner": record.owner,
    }
    if record.annotations:
        state["annotations"] = record.annotations
    return state
