"""Second half of a container's file systems: its rootfs and own mounts, then the change of root.

Sources are opened in the host's mount namespace as detached trees; targets are resolved beneath the rootfs and mounts
attached by descriptor, so that no symbolic link of an image, or of a program racing with us, leads anywhere else.
"""

from __future__ import annotations

import errno
import os

from orch_runtime.child.failure import SetupFailed
from orch_runtime.child.stage import NULL_DEVICE, ROOT_MOUNT_POINT, stage_directory
from orch_runtime.errors import KernelError
from orch_runtime.kernel import mounts, process
from orch_runtime.kernel.user_namespace import in_user_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.plan import MountPlan, Plan, RootfsPlan

_STRICT_TARGETS = ("/proc", "/sys")


def _overlay_by_path(rootfs: RootfsPlan, base: str) -> int:
    """Make the overlay on kernels before 6.7, whose new mount interface takes no long list of layers."""
    process.unshare(process.CLONE_NEWNS)
    mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)
    data = f"upperdir={rootfs['upper']},workdir={rootfs['work']},lowerdir={':'.join(rootfs['lower'])}"
    if in_user_namespace():
        data += ",userxattr"
    if len(data) > 4000:
        # mount(2) takes one page of options: relative names below the layers' common folder are shorter.
        common = os.path.commonpath(rootfs["lower"])
        os.chdir(common)
        relative = [os.path.relpath(path, common) for path in rootfs["lower"]]
        data = f"upperdir={rootfs['upper']},workdir={rootfs['work']},lowerdir={':'.join(relative)}"
        if in_user_namespace():
            data += ",userxattr"
    mounts.mount("overlay", base, "overlay", 0, data)
    return mounts.open_tree(mounts.AT_FDCWD, base, mounts.OPEN_TREE_CLONE)


def open_rootfs(rootfs: RootfsPlan, base: str) -> int:
    """Return the root file system as a detached tree; called in the host's mount namespace."""
    if rootfs["kind"] == "bind":
        tree = mounts.open_tree(mounts.AT_FDCWD, rootfs["path"], mounts.OPEN_TREE_CLONE | mounts.AT_RECURSIVE)
        mounts.set_mount_attributes(tree, 0, propagation=mounts.MS_PRIVATE, recursive=True)
        return tree
    options = [("lowerdir+", path) for path in rootfs["lower"]]
    options += [("upperdir", rootfs["upper"]), ("workdir", rootfs["work"])]
    if in_user_namespace():
        options.append(("userxattr", ""))
    try:
        return mounts.detached_filesystem("overlay", options)
    except KernelError as error:
        if "lowerdir+" not in error.call or error.number != errno.EINVAL:
            raise
    return _overlay_by_path(rootfs, base)


def open_bind_sources(plan: Plan) -> list[int]:
    """Open the source of each bind mount as a detached tree, -1 for other mounts; called in the host's mounts.

    In a user namespace sysfs is made here too: the kernel gives it only to those who see one already, whole.
    """
    trees = []
    for mount in plan["mounts"]:
        if mount["kind"] == "sysfs" and in_user_namespace():
            trees.append(mounts.detached_filesystem("sysfs", [], mount["attributes"]))
            continue
        if mount["kind"] != "bind":
            trees.append(-1)
            continue
        recursive = mount["recursive"]
        flags = mounts.OPEN_TREE_CLONE | (mounts.AT_RECURSIVE if recursive else 0)
        tree = mounts.open_tree(mounts.AT_FDCWD, mount["source"], flags)
        mounts.set_mount_attributes(
            tree,
            mount["attributes"],
            propagation=mount["propagation"] or mounts.MS_PRIVATE,
            recursive=recursive,
            name=mount["source"],
        )
        trees.append(tree)
    return trees


def _attach_stage(plan: Plan, root_fd: int, index: int) -> None:
    target = plan["stage"][index]["target"]
    fd = mounts.open_target(root_fd, target, directory=True, no_symlinks=target in _STRICT_TARGETS)
    mounts.move_mount_path(stage_directory(index), fd)
    os.close(fd)


def _attach_mount(mount: MountPlan, tree: int, root_fd: int) -> None:
    target = mount["target"]
    if tree < 0:
        options = [(key, value) for key, value in mount["options"]]
        tree = mounts.detached_filesystem(mount["kind"], options, mount["attributes"])
        if mount["propagation"] == mounts.MS_SLAVE:
            mounts.set_mount_attributes(tree, 0, propagation=mounts.MS_SLAVE, name=target)
    fd = mounts.open_target(root_fd, target, directory=mounts.is_directory(tree), no_symlinks=target in _STRICT_TARGETS)
    mounts.move_mount_fd(tree, fd, f"{mount['source']} on {target}")
    os.close(fd)
    os.close(tree)


def open_existing(root_fd: int, path: str) -> int:
    """Open what is at `path` beneath the root (O_PATH), -1 when there is nothing."""
    try:
        return mounts.open_in_root(root_fd, path, os.O_PATH)
    except KernelError as error:
        if error.number in (errno.ENOENT, errno.ENOTDIR):
            return -1
        raise


def _mask(root_fd: int, path: str) -> None:
    fd = open_existing(root_fd, path)
    if fd < 0:
        return
    if mounts.is_directory(fd):
        tree = mounts.detached_filesystem(
            "tmpfs",
            [("size", "4k"), ("mode", "755")],
            mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV | mounts.MOUNT_ATTR_NOEXEC,
        )
    else:
        tree = mounts.open_tree(mounts.AT_FDCWD, NULL_DEVICE, mounts.OPEN_TREE_CLONE)
    mounts.move_mount_fd(tree, fd, path)
    os.close(tree)
    os.close(fd)


def make_readonly(root_fd: int, path: str) -> None:
    """Cover a path, with all below it, by a read-only mount of itself."""
    fd = open_existing(root_fd, path)
    if fd < 0:
        return
    tree = mounts.open_tree(fd, "", mounts.AT_EMPTY_PATH | mounts.OPEN_TREE_CLONE | mounts.AT_RECURSIVE)
    mounts.set_mount_attributes(tree, mounts.MOUNT_ATTR_RDONLY, recursive=True, name=path)
    mounts.move_mount_fd(tree, fd, path)
    os.close(tree)
    os.close(fd)


def make_device(root_fd: int, device: list[object]) -> None:
    """Make a node of [path, mode, major, minor, uid, gid]; one that is there already stays."""
    path, mode, major, minor, uid, gid = device
    assert isinstance(path, str)
    assert isinstance(mode, int)
    assert isinstance(major, int)
    assert isinstance(minor, int)
    assert isinstance(uid, int)
    assert isinstance(gid, int)
    folder, _, name = path.rpartition("/")
    parent = mounts.open_target(root_fd, folder or "/", directory=True)
    try:
        os.mknod(name, mode, os.makedev(major, minor), dir_fd=parent)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        pass
    except PermissionError as error:
        raise SetupFailed(
            f"cannot make the device {path}: the kernel makes no devices in a user namespace; mount the host's instead"
        ) from error
    finally:
        os.close(parent)


def build_root(plan: Plan, rootfs_tree: int, trees: list[int]) -> None:
    """Put the container's root together, in the tiny mount namespace, and change into it."""
    place = os.open(ROOT_MOUNT_POINT, os.O_PATH | os.O_DIRECTORY)
    mounts.move_mount_fd(rootfs_tree, place, "rootfs")
    os.close(place)
    root_fd = os.open(ROOT_MOUNT_POINT, os.O_PATH | os.O_DIRECTORY)
    stages = plan["stage"]
    later = []
    for index, stage in enumerate(stages):
        if stage["target"].startswith("/sys/"):
            later.append(index)
        else:
            _attach_stage(plan, root_fd, index)
    for position, mount in enumerate(plan["mounts"]):
        _attach_mount(mount, trees[position], root_fd)
        if mount["target"] == "/sys":
            for index in later:
                _attach_stage(plan, root_fd, index)
            later = []
    for index in later:
        _attach_stage(plan, root_fd, index)
    for device in plan["devices"]:
        make_device(root_fd, device)
    for path in plan["masked"]:
        _mask(root_fd, path)
    for path in plan["readonly"]:
        make_readonly(root_fd, path)
    if plan["rootfs"]["readonly"]:
        # The working directory cannot be made any more once the root is read-only.
        _make_working_directory(root_fd, plan["process"]["cwd"])
        mounts.set_mount_attributes(root_fd, mounts.MOUNT_ATTR_RDONLY, name="rootfs")
    os.fchdir(root_fd)
    os.close(root_fd)
    mounts.pivot_root_here()


def _make_working_directory(root_fd: int, path: str) -> None:
    if path != "/":
        os.close(mounts.open_target(root_fd, path, directory=True))
