"""Mounts: by path, and by file descriptor (detached trees), and path resolution that cannot leave a root."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

from orch_runtime.errors import KernelError
from orch_runtime.kernel.calls import (
    SYS_FSCONFIG,
    SYS_FSMOUNT,
    SYS_FSOPEN,
    SYS_MOUNT_SETATTR,
    SYS_MOVE_MOUNT,
    SYS_OPEN_TREE,
    SYS_OPENAT2,
    SYS_PIVOT_ROOT,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_ulong,
    c_void_p,
    function,
    raise_errno,
    syscall,
)

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8

RESOLVE_NO_MAGICLINKS = 2
RESOLVE_NO_SYMLINKS = 4
RESOLVE_IN_ROOT = 0x10

PROC_SUPER_MAGIC = 0x9FA0
CGROUP2_SUPER_MAGIC = 0x63677270

_mount = function("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = function("umount2", c_char_p, c_int)
_statfs = function("statfs", c_char_p, c_void_p)
_pivot_root = syscall(c_char_p, c_char_p)
_openat2 = syscall(c_int, c_char_p, c_void_p, c_size_t)
_open_tree = syscall(c_int, c_char_p, c_uint)
_move_mount = syscall(c_int, c_char_p, c_int, c_char_p, c_uint)
_mount_setattr = syscall(c_int, c_char_p, c_uint, c_void_p, c_size_t)
_fsopen = syscall(c_char_p, c_uint)
_fsconfig = syscall(c_int, c_uint, c_char_p, c_char_p, c_int)
_fsmount = syscall(c_int, c_uint, c_uint)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount `source` on `target` by path."""
    if _mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, os.fsencode(data) if data else None) < 0:
        raise_errno(f"mount {kind or source} on", target)


def unmount(target: str, flags: int = MNT_DETACH) -> None:
    """Unmount by path."""
    if _umount2(os.fsencode(target), flags) < 0:
        raise_errno("umount", target)


def pivot_root(new: str, put_old: str) -> None:
    """Make the mount `new` the root and move the old root to `put_old`; both may be "."."""
    if _pivot_root(SYS_PIVOT_ROOT, os.fsencode(new), os.fsencode(put_old)) < 0:
        raise_errno("pivot_root")


def pivot_root_here() -> None:
    """Make the working directory, a mount, the root, and detach the old root with all below it."""
    pivot_root(".", ".")
    unmount(".")
    os.chdir("/")


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0, *, resolve: int = 0) -> int:
    """Open `path` as if root_fd were /: no symlink, no .. and no absolute link leads out (openat2, RESOLVE_IN_ROOT).

    Raises:
        KernelError: with call "openat2".
    """
    how = ctypes.create_string_buffer(
        struct.pack("=3Q", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve), 24
    )
    while True:
        fd = int(_openat2(SYS_OPENAT2, root_fd, os.fsencode(path), ctypes.addressof(how), 24))
        if fd >= 0:
            return fd
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            raise_errno("openat2", path)


def open_target(root_fd: int, path: str, *, directory: bool, no_symlinks: bool = False) -> int:
    """Open a mount target beneath root_fd as O_PATH, making missing folders, and the file if it is to be one.

    Raises:
        KernelError: the path cannot be resolved or made (dangling symlink, file where a folder is needed).
    """
    resolve = RESOLVE_NO_SYMLINKS if no_symlinks else 0
    try:
        return open_in_root(root_fd, path, os.O_PATH, resolve=resolve)
    except KernelError as error:
        if error.number != errno.ENOENT:
            raise
    parent_fd = os.dup(root_fd)
    walked = ""
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names:
        raise KernelError("resolve", errno.EINVAL, path)
    for position, name in enumerate(names):
        walked = f"{walked}/{name}"
        try:
            fd = open_in_root(root_fd, walked, os.O_PATH, resolve=resolve)
        except KernelError as error:
            if error.number != errno.ENOENT:
                raise
            try:
                if directory or position < len(names) - 1:
                    os.mkdir(name, 0o755, dir_fd=parent_fd)
                else:
                    os.close(
                        os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644, dir_fd=parent_fd)
                    )
            except OSError as failure:
                raise KernelError("create mount target", failure.errno or 0, path) from failure
            fd = open_in_root(root_fd, walked, os.O_PATH, resolve=resolve)
        os.close(parent_fd)
        parent_fd = fd
    return parent_fd


def is_directory(fd: int) -> bool:
    """Tell whether an (O_PATH) descriptor is a folder."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    """Open a mount, or with OPEN_TREE_CLONE a detached copy of it."""
    fd = int(_open_tree(SYS_OPEN_TREE, dir_fd, os.fsencode(path), flags | OPEN_TREE_CLOEXEC))
    if fd < 0:
        raise_errno("open_tree", path)
    return fd


def move_mount_fd(source_fd: int, target_fd: int, name: str = "") -> None:
    """Attach the detached tree source_fd at target_fd; `name` is for the error text."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    if _move_mount(SYS_MOVE_MOUNT, source_fd, b"", target_fd, b"", flags) < 0:
        raise_errno("move_mount", name)


def move_mount_path(source: str, target_fd: int) -> None:
    """Move the mount at path `source`, with everything below it, to target_fd."""
    if _move_mount(SYS_MOVE_MOUNT, AT_FDCWD, os.fsencode(source), target_fd, b"", MOVE_MOUNT_T_EMPTY_PATH) < 0:
        raise_errno("move_mount", source)


def set_mount_attributes(
    fd: int, attributes: int, *, clear: int = 0, propagation: int = 0, recursive: bool = False, name: str = ""
) -> None:
    """Change attributes and propagation of the mount that fd stands for (mount_setattr)."""
    buffer = ctypes.create_string_buffer(struct.pack("=4Q", attributes, clear, propagation, 0), 32)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    if _mount_setattr(SYS_MOUNT_SETATTR, fd, b"", flags, ctypes.addressof(buffer), 32) < 0:
        raise_errno("mount_setattr", name)


def _explanation(context: int) -> str:
    """Return what the kernel wrote about a failure into the file system context (fsopen(2))."""
    try:
        return os.read(context, 512).decode(errors="replace").strip()
    except OSError:
        return ""


def detached_filesystem(kind: str, options: list[tuple[str, str]], attributes: int = 0) -> int:
    """Make a file system that is mounted nowhere yet; an option with an empty value is a flag.

    Raises:
        KernelError: with the option that the kernel refused.
    """
    context = int(_fsopen(SYS_FSOPEN, kind.encode(), 1))
    if context < 0:
        raise_errno("fsopen", kind)
    try:
        for key, value in options:
            command = FSCONFIG_SET_STRING if value else FSCONFIG_SET_FLAG
            encoded = os.fsencode(value) if value else None
            if _fsconfig(SYS_FSCONFIG, context, command, key.encode(), encoded, 0) < 0:
                number = ctypes.get_errno()
                raise KernelError(f"fsconfig {kind} {key}", number, f"{value} {_explanation(context)}".rstrip())
        if _fsconfig(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0) < 0:
            number = ctypes.get_errno()
            raise KernelError(f"create file system {kind}", number, _explanation(context))
        fd = int(_fsmount(SYS_FSMOUNT, context, 1, attributes))
        if fd < 0:
            raise_errno("fsmount", kind)
        return fd
    finally:
        os.close(context)


def filesystem_magic(path: str) -> int:
    """Return f_type of the file system at path."""
    buffer = ctypes.create_string_buffer(256)
    if _statfs(os.fsencode(path), ctypes.addressof(buffer)) < 0:
        raise_errno("statfs", path)
    return int(struct.unpack_from("=q", buffer.raw)[0])
