"""A container's file systems, put together in its own mount namespace below the rootfs, then made the root.

Every target is resolved beneath the rootfs by openat2 (RESOLVE_IN_ROOT) and mounts are attached by descriptor: no
symbolic link of an image, and no program racing with us in a shared volume, leads a mount elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat

from orch_runtime.child.failure import SetupFailed
from orch_runtime.child.rootfs import make_device, make_readonly, open_existing
from orch_runtime.child.stage import default_devices, default_links
from orch_runtime.errors import KernelError
from orch_runtime.kernel import mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.oci.mount_options import OciMount
    from orch_runtime.oci.spec import ContainerSpec

_STRICT_TARGETS = ("/proc", "/sys")
_HARDENED = mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV | mounts.MOUNT_ATTR_NOEXEC
_MS_MOVE = 8192
_UNBINDABLE = 1 << 17  # MS_UNBINDABLE
_SHARED_TYPES = mounts.MS_SLAVE | mounts.MS_PRIVATE | 1 << 20 | 1 << 17


def _parent_mount(path: str) -> str:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def enter_rootfs(spec: ContainerSpec) -> int:
    """Separate this mount namespace from the host's and mount the rootfs on itself; returns its root's descriptor."""
    separation = spec.rootfs_propagation or (mounts.MS_SLAVE | mounts.MS_REC)
    if separation & _UNBINDABLE:
        # The rootfs could not be cloned out of such mounts; the root becomes one at the end.
        separation = separation & ~_UNBINDABLE | mounts.MS_PRIVATE
    mounts.mount("", "/", "", separation)
    # pivot_root refuses a root whose parent mount is shared.
    if spec.rootfs_propagation & 1 << 20:
        mounts.mount("", _parent_mount(os.path.realpath(spec.rootfs)), "", mounts.MS_PRIVATE)
    tree = mounts.open_tree(mounts.AT_FDCWD, spec.rootfs, mounts.OPEN_TREE_CLONE | mounts.AT_RECURSIVE)
    place = os.open(spec.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.move_mount_fd(tree, place, "rootfs")
    os.close(place)
    if not spec.rootfs_propagation & 1 << 20:
        mounts.set_mount_attributes(tree, 0, propagation=mounts.MS_PRIVATE, name="rootfs")
    # The mount's own root: the path may lead below, to what it covers.
    return tree


def _copy_up(root_fd: int, target: str, tree: int) -> None:
    """Copy what the rootfs has at the target into a new tmpfs (crun's and podman's option tmpcopyup)."""
    source = open_existing(root_fd, target)
    if source < 0 or not mounts.is_directory(source):
        return
    import shutil  # noqa: PLC0415 -- hardly any mount asks for it

    top, place = f"/proc/self/fd/{source}", f"/proc/self/fd/{tree}"
    shutil.copytree(top, place, symlinks=True, dirs_exist_ok=True)
    for folder, _, files in os.walk(top):
        for name in ["", *files]:
            path = os.path.join(folder, name) if name else folder
            status = os.lstat(path) if name else os.stat(path)
            copy = os.path.join(place, os.path.relpath(path, top)) if path != top else place
            os.chown(copy, status.st_uid, status.st_gid, follow_symlinks=not name)
    os.close(source)


def _bind_tree(mount: OciMount) -> int:
    flags = mounts.OPEN_TREE_CLONE | (mounts.AT_RECURSIVE if mount.recursive_bind else 0)
    try:
        return mounts.open_tree(mounts.AT_FDCWD, mount.source, flags)
    except KernelError as error:
        if error.number != errno.EINVAL or mount.recursive_bind:
            raise
    # A mount locked by a less privileged namespace cannot be copied without those on top of it.
    return mounts.open_tree(mounts.AT_FDCWD, mount.source, mounts.OPEN_TREE_CLONE | mounts.AT_RECURSIVE)


def _attach(tree: int, mount: OciMount, root_fd: int) -> None:
    fd = mounts.open_target(
        root_fd, mount.target, directory=mounts.is_directory(tree), no_symlinks=mount.target in _STRICT_TARGETS
    )
    mounts.move_mount_fd(tree, fd, f"{mount.source} on {mount.target}")
    os.close(fd)


def _settle(tree: int, mount: OciMount) -> None:
    if mount.set_attributes or mount.clear_attributes:
        mounts.set_mount_attributes(
            tree, mount.set_attributes, clear=mount.clear_attributes, name=f"options of {mount.target}"
        )
    if mount.recursive_set or mount.recursive_clear:
        mounts.set_mount_attributes(
            tree, mount.recursive_set, clear=mount.recursive_clear, recursive=True, name=f"options of {mount.target}"
        )
    if mount.propagation:
        mounts.set_mount_attributes(
            tree, 0, propagation=mount.propagation, recursive=mount.propagation_recursive, name=mount.target
        )


def _mount_cgroups(
    mount: OciMount, root_fd: int, controllers: list[tuple[str, str]], group: str, *, own_namespace: bool
) -> None:
    """Mount the container's view of its groups: by a cgroup namespace where it has one, else its folders bound."""
    if controllers[0][0] == "":
        if own_namespace:
            tree = mounts.detached_filesystem("cgroup2", [], 0)
        else:
            tree = mounts.open_tree(mounts.AT_FDCWD, f"/sys/fs/cgroup{group}", mounts.OPEN_TREE_CLONE)
        _attach(tree, mount, root_fd)
        _settle(tree, mount)
        os.close(tree)
        return
    top = mounts.detached_filesystem("tmpfs", [("mode", "755"), ("size", "64k")], _HARDENED & ~1)
    _attach(top, mount, root_fd)
    for name, options in controllers:
        os.mkdir(name, 0o755, dir_fd=top)
        place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
        if own_namespace:
            pairs = [(option, "") for option in options.split(",")]
            tree = mounts.detached_filesystem("cgroup", pairs, _HARDENED & ~1)
        else:
            tree = mounts.open_tree(mounts.AT_FDCWD, f"/sys/fs/cgroup/{name}{group}", mounts.OPEN_TREE_CLONE)
        mounts.move_mount_fd(tree, place, name)
        _settle(tree, mount)
        os.close(place)
        os.close(tree)
    _settle(top, mount)
    os.close(top)


def _filesystem(mount: OciMount) -> int:
    try:
        # The source is only a name here, which mountinfo shows.
        named = [("source", mount.source)] if mount.source else []
        return mounts.detached_filesystem(mount.kind, [*named, *mount.options], mount.set_attributes & ~0x200000)
    except KernelError as error:
        # A user namespace may show no sysfs of a network namespace that is not its own: the host's is bound instead.
        if mount.kind != "sysfs" or error.number != errno.EPERM:
            raise
    return mounts.open_tree(mounts.AT_FDCWD, "/sys", mounts.OPEN_TREE_CLONE | mounts.AT_RECURSIVE)


def mount_all(spec: ContainerSpec, root_fd: int, controllers: list[tuple[str, str]], group: str) -> None:
    """Mount everything that the config lists, in its order."""
    own_cgroups = "cgroup" in spec.new_namespaces or any(kind == "cgroup" for kind, _ in spec.joined_namespaces)
    for mount in spec.mounts:
        if mount.kind in ("cgroup", "cgroup2"):
            _mount_cgroups(mount, root_fd, controllers, group, own_namespace=own_cgroups)
            continue
        tree = _bind_tree(mount) if mount.kind == "bind" else _filesystem(mount)
        if mount.copy_up:
            _copy_up(root_fd, mount.target, tree)
        _attach(tree, mount, root_fd)
        _settle(tree, mount)
        os.close(tree)


def make_devices(spec: ContainerSpec, root_fd: int) -> None:
    """Make the default devices, the config's own, and the usual links (OCI runtime-linux, "Dev symbolic links")."""
    wanted: dict[str, tuple[object, ...]] = {
        f"/dev/{name}": (f"/dev/{name}", stat.S_IFCHR | 0o666, major, minor, 0, 0)
        for name, major, minor in default_devices()
    }
    wanted.update({str(device[0]): device for device in spec.devices})
    for path, device in wanted.items():
        try:
            make_device(root_fd, list(device))
        except SetupFailed as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            _bind_device(root_fd, path)
        except OSError as error:
            raise SetupFailed(f"device {path}: {error.strerror}") from error
    dev_fd = mounts.open_target(root_fd, "/dev", directory=True)
    for name, target in default_links():
        try:
            os.symlink(target, name, dir_fd=dev_fd)
        except FileExistsError:
            if name == "ptmx":
                _replace_ptmx(dev_fd, target)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise SetupFailed(f"link /dev/{name}: {error.strerror}") from error
    os.close(dev_fd)


def _replace_ptmx(dev_fd: int, target: str) -> None:
    """Make /dev/ptmx lead to the container's own devpts, but leave one that was mounted there."""
    try:
        os.unlink("ptmx", dir_fd=dev_fd)
        os.symlink(target, "ptmx", dir_fd=dev_fd)
    except OSError:
        return


def _bind_device(root_fd: int, path: str) -> None:
    """Bind the host's device where nodes cannot be made: in user namespaces."""
    tree = mounts.open_tree(mounts.AT_FDCWD, path, mounts.OPEN_TREE_CLONE)
    fd = mounts.open_target(root_fd, path, directory=False)
    mounts.move_mount_fd(tree, fd, path)
    os.close(fd)
    os.close(tree)


def open_null() -> int:
    """Open the host's /dev/null as a tree to mask files with; to be called before the change of root."""
    return mounts.open_tree(mounts.AT_FDCWD, "/dev/null", mounts.OPEN_TREE_CLONE)


def restrict(spec: ContainerSpec, root_fd: int) -> None:
    """Mask paths and make paths read-only; those that do not exist are left alone."""
    for path in spec.readonly:
        make_readonly(root_fd, path)
    for path in spec.masked:
        fd = open_existing(root_fd, path)
        if fd < 0:
            continue
        if mounts.is_directory(fd):
            tree = mounts.detached_filesystem("tmpfs", [("size", "4k"), ("mode", "755")], _HARDENED)
        else:
            tree = open_null()
        mounts.move_mount_fd(tree, fd, path)
        os.close(tree)
        os.close(fd)


def change_root(spec: ContainerSpec, root_fd: int, *, pivot: bool) -> None:
    """Make the rootfs the root; without pivot_root the host's tree stays mounted, out of reach of names."""
    os.fchdir(root_fd)
    if pivot:
        mounts.pivot_root(".", ".")
        # The old root lies on top of ".": its unmounting must not reach the host.
        mounts.mount("", ".", "", mounts.MS_SLAVE | mounts.MS_REC)
        mounts.unmount(".")
        os.chdir("/")
    else:
        mounts.mount(".", "/", "", _MS_MOVE)
        os.chroot(".")
        os.chdir("/")
    own = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if spec.rootfs_propagation & _SHARED_TYPES:
        kind = spec.rootfs_propagation & _SHARED_TYPES
        recursive = bool(spec.rootfs_propagation & mounts.MS_REC)
        mounts.set_mount_attributes(
            own, 0, propagation=kind, recursive=recursive and kind != _UNBINDABLE, name="rootfs"
        )
    if spec.rootfs_readonly:
        mounts.set_mount_attributes(own, mounts.MOUNT_ATTR_RDONLY, name="rootfs")
    os.close(own)


def make_folder(root_fd: int, path: str) -> None:
    """Make a folder beneath the root where it is missing."""
    os.close(mounts.open_target(root_fd, path, directory=True))


def mount_console(slave_fd: int) -> None:
    """Bind the program's terminal on /dev/console."""
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    place = mounts.open_target(root_fd, "/dev/console", directory=False)
    tree = mounts.open_tree(slave_fd, "", mounts.AT_EMPTY_PATH | mounts.OPEN_TREE_CLONE)
    mounts.move_mount_fd(tree, place, "/dev/console")
    for fd in (root_fd, place, tree):
        os.close(fd)
