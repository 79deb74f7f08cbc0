"""Network namespaces: make, enter and leave, keep by bind mount.

Only for a single-threaded process: entering a namespace affects the calling thread, and sockets keep
the namespace in which they were opened.
"""

# pathlib is not loaded in this small process
# ruff: noqa: PTH108, PTH116, PTH123

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator

from orch_network.errors import KernelError
from orch_network.kernel import syscalls

_SIOCGSKNS = 0x894C
_SELF = "/proc/thread-self/ns/net"


class Namespaces:
    """The process's way into other network namespaces and back to its own ("home")."""

    def __init__(self) -> None:
        self.home_fd = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
        self._nsfs_device = os.fstat(self.home_fd).st_dev

    def close(self) -> None:
        """Release the reference to the home namespace."""
        os.close(self.home_fd)

    @contextlib.contextmanager
    def inside(self, namespace_fd: int) -> Iterator[None]:
        """Run the body in another namespace. Not coming home ends the process: nothing after it would be right."""
        syscalls.enter_network(namespace_fd)
        try:
            yield
        finally:
            self._go_home()

    @contextlib.contextmanager
    def inside_new(self) -> Iterator[int]:
        """Make a namespace and run the body in it; yields its fd, which the caller owns (closed if the body fails)."""
        syscalls.unshare_network()
        namespace_fd = -1
        try:
            namespace_fd = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
            yield namespace_fd
        except BaseException:
            if namespace_fd >= 0:
                os.close(namespace_fd)
            raise
        finally:
            self._go_home()

    def _go_home(self) -> None:
        try:
            syscalls.enter_network(self.home_fd)
        except KernelError as failure:
            os.write(2, f"orch-netd: cannot return to the node's network namespace: {failure}\n".encode())
            os._exit(70)

    def is_namespace(self, path: str) -> bool:
        """Whether a namespace is mounted at ``path``."""
        try:
            return os.stat(path).st_dev == self._nsfs_device
        except FileNotFoundError:
            return False


def open_namespace(path: str) -> int:
    """Open the namespace mounted at ``path``; the caller owns the fd."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as failure:
        raise KernelError(f"open {path}", failure.errno or errno.EIO) from failure


def namespace_of_socket(sock: socket.socket) -> int:
    """An fd of the namespace in which ``sock`` was opened (ioctl SIOCGSKNS); the caller owns it."""
    try:
        return fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
    except OSError as failure:
        raise KernelError("ioctl(SIOCGSKNS)", failure.errno or errno.EIO) from failure


def same_namespace(first_fd: int, second_fd: int) -> bool:
    """Whether two fds refer to one namespace."""
    first, second = os.fstat(first_fd), os.fstat(second_fd)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def keep(namespace_fd: int, path: str) -> None:
    """Bind-mount a namespace at ``path`` so that it outlives this process."""
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444))
    syscalls.bind_mount(f"/proc/self/fd/{namespace_fd}", path)


def release(path: str) -> None:
    """Undo ``keep``, however often it was done; a path that is not there is fine."""
    while True:
        try:
            syscalls.unmount(path)
        except KernelError as failure:
            if failure.number == errno.ENOENT:
                return
            if failure.number != errno.EINVAL:
                raise
            break
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def write_sysctl(name: str, value: str) -> None:
    """Set ``net.…`` of the current namespace, e.g. ``ipv4/ip_forward``."""
    path = f"/proc/sys/net/{name}"
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError as failure:
        raise KernelError(f"write {value} to {path}", failure.errno or errno.EIO) from failure


def read_sysctl(name: str) -> str:
    """Read ``net.…`` of the current namespace; the empty string if this kernel has no such setting."""
    try:
        with open(f"/proc/sys/net/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
