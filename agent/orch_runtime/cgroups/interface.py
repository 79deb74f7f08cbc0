"""What the supervisor asks of control groups, whichever version the host has."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod

from orch_runtime.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.plan import LimitsPlan


def write_file(path: str, value: str) -> None:
    """Write a control file in one system call.

    Raises:
        KernelError: naming the file and the value's fate.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(f"write {value!r} to", error.errno or 0, path) from error


def read_file(path: str, otherwise: str = "") -> str:
    """Read a control file; `otherwise` when it does not exist."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return otherwise
    try:
        return os.read(fd, 65536).decode()
    except OSError:
        return otherwise
    finally:
        os.close(fd)


def read_number(path: str, otherwise: int = 0) -> int:
    """Read a file holding one number; "max" is -1."""
    text = read_file(path).strip()
    if text == "max":
        return -1
    return int(text) if text.lstrip("-").isdigit() else otherwise


def read_table(path: str) -> dict[str, int]:
    """Read lines of "key number"."""
    table: dict[str, int] = {}
    for line in read_file(path).splitlines():
        key, _, value = line.partition(" ")
        if value.lstrip("-").isdigit():
            table[key] = int(value)
    return table


def remove_tree(path: str) -> bool:
    """Remove a group and the groups a container made below it; False while the kernel still holds one (EBUSY).

    Raises:
        KernelError: anything but "busy" or "not there".
    """
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise KernelError("rmdir", error.errno or 0, path) from error
        done = True
        for name in list_groups(path):
            done = remove_tree(f"{path}/{name}") and done
        if not done:
            return False
        try:
            os.rmdir(path)
        except OSError as again:
            return again.errno == errno.ENOENT
    return True


def list_groups(path: str) -> list[str]:
    """Return the names of the groups right below path."""
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def processes_below(folder: str) -> list[int]:
    """Return the process ids of a group's folder and of those below it."""
    found = [int(line) for line in read_file(f"{folder}/cgroup.procs").split()]
    for name in list_groups(folder):
        found += processes_below(f"{folder}/{name}")
    return found


class CgroupBackend(ABC):
    """Groups by name below one parent. Methods raise KernelError unless they say otherwise."""

    version = 0

    @abstractmethod
    def create(self, name: str) -> None:
        """Make a group; one that exists is fine."""

    def adopt(self, name: str, pid: int) -> None:  # noqa: B027 -- only a back end without groups needs it
        """Learn the first process of a group."""

    @abstractmethod
    def open_for_clone(self, name: str) -> int:
        """Return a folder descriptor for CLONE_INTO_CGROUP, or -1 where the process has to join by itself."""

    @abstractmethod
    def join_paths(self, name: str) -> list[str]:
        """Return the folders whose cgroup.procs a new process has to write itself into."""

    def exec_paths(self, name: str) -> list[str]:
        """Return the folders that a process joining later (exec) has to enter."""
        return self.join_paths(name)

    @abstractmethod
    def container_mounts(self) -> list[tuple[str, str]]:
        """Return what to mount at /sys/fs/cgroup: [("", "cgroup2")], or (folder, controller options) for each."""

    @abstractmethod
    def set_limits(self, name: str, limits: LimitsPlan) -> list[str]:
        """Apply limits; returns warnings about what this kernel cannot do."""

    @abstractmethod
    def processes(self, name: str) -> list[int]:
        """Return the process ids in the group and below."""

    @abstractmethod
    def kill(self, name: str) -> None:
        """SIGKILL every process of the group, frozen or not."""

    @abstractmethod
    def freeze(self, name: str, *, frozen: bool) -> None:
        """Freeze or thaw."""

    @abstractmethod
    def oom_kills(self, name: str) -> int:
        """Return how many processes the kernel killed for want of memory in this group."""

    @abstractmethod
    def watch_oom(self, name: str) -> int:
        """Return a descriptor that becomes readable when the group runs out of memory, or -1."""

    @abstractmethod
    def stats(self, name: str) -> dict[str, int]:
        """Return usage figures; see protocol.ContainerStats for names and units."""

    @abstractmethod
    def remove(self, name: str) -> bool:
        """Remove the group; False if it is still busy."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all groups below the parent."""

    @abstractmethod
    def remove_parent(self) -> bool:
        """Remove the (empty) parent; False if something is left in it."""
