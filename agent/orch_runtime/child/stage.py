"""First half of a container's file systems: a tiny mount namespace with the kernel's trees, made before the request.

The child moves from its copy of the host's mount table into a tmpfs that holds nothing but these trees, so that the
request itself has neither to mount them nor to tear the host's table down.
"""

from __future__ import annotations

import os
import stat

from orch_runtime.kernel import mounts
from orch_runtime.kernel.user_namespace import in_user_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.plan import MountPlan, StagePlan

ROOT_MOUNT_POINT = "/root"
NULL_DEVICE = "/null"
# OCI config-linux, "Default Devices".
_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
)
_RESTRICTED = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC


def default_devices() -> tuple[tuple[str, int, int], ...]:
    """Return (name, major, minor) of the devices every container has."""
    return _DEVICES


def default_links() -> tuple[tuple[str, str], ...]:
    """Return (name, target) of the links in every container's /dev."""
    return _LINKS


def stage_directory(index: int) -> str:
    """Return where stage number `index` stands in the tiny mount namespace."""
    return f"/s{index}"


def fill_dev(directory: str) -> None:
    """Make the six devices and the usual links."""
    for name, major, minor in _DEVICES:
        _make_character_device(f"{directory}/{name}", name, os.makedev(major, minor))
    for name, target in _LINKS:
        os.symlink(target, f"{directory}/{name}")


def _make_character_device(path: str, name: str, number: int) -> None:
    """Make a device, or in a user namespace, where the kernel makes none, bind the host's own."""
    if not in_user_namespace():
        os.mknod(path, stat.S_IFCHR | 0o666, number)
        return
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    mounts.mount(f"/dev/{name}", path, "", mounts.MS_BIND)


def _mount_cgroup(directory: str, mount: MountPlan, controllers: list[tuple[str, str]]) -> None:
    if not controllers:
        mounts.mount("tmpfs", directory, "tmpfs", _RESTRICTED | mounts.MS_RDONLY, "mode=755,size=0")
        return
    if controllers[0][0] == "":
        mounts.mount("cgroup", directory, controllers[0][1], mount["flags"])
        return
    mounts.mount("tmpfs", directory, "tmpfs", _RESTRICTED, "mode=755,size=64k")
    for name, options in controllers:
        os.mkdir(f"{directory}/{name}")
        mounts.mount("cgroup", f"{directory}/{name}", "cgroup", mount["flags"], options)
    if mount["flags"] & mounts.MS_RDONLY:
        mounts.mount("", directory, "", mounts.MS_REMOUNT | mounts.MS_BIND | mount["flags"])


def _build(stage: StagePlan, directory: str, controllers: list[tuple[str, str]]) -> None:
    root = stage["target"]
    for mount in stage["mounts"]:
        place = directory + mount["target"][len(root) :]
        if not os.path.isdir(place):
            os.makedirs(place)
        if mount["kind"] == "cgroup":
            _mount_cgroup(place, mount, controllers)
        else:
            mounts.mount(mount["source"], place, mount["kind"], mount["flags"], mount["data"])
        if mount["target"] == "/dev":
            fill_dev(place)
        if mount["target"] == "/proc" and mounts.filesystem_magic(place) != mounts.PROC_SUPER_MAGIC:
            raise OSError(f"{place} is not procfs after mounting it")


def _restrict(stage: StagePlan, directory: str) -> None:
    root = stage["target"]
    for path in stage["masked"]:
        place = directory + path[len(root) :]
        try:
            is_folder = stat.S_ISDIR(os.stat(place).st_mode)
        except OSError:
            continue
        if is_folder:
            mounts.mount("tmpfs", place, "tmpfs", _RESTRICTED | mounts.MS_RDONLY, "size=0,mode=755")
        else:
            mounts.mount("/dev/null", place, "", mounts.MS_BIND)
    for path in stage["readonly"]:
        place = directory + path[len(root) :]
        if os.path.exists(place):
            mounts.mount(place, place, "", mounts.MS_BIND | mounts.MS_REC)
            mounts.mount("", place, "", mounts.MS_BIND | mounts.MS_REMOUNT | mounts.MS_RDONLY | _RESTRICTED)


def prepare(stages: list[StagePlan], base: str, controllers: list[tuple[str, str]]) -> tuple[int, int]:
    """Build the stages below the folder `base` and make that the root of this mount namespace.

    Returns a descriptor of this mount namespace, and one of /proc/sys that is writable even where the plan makes it
    read-only (-1 without procfs).

    Raises:
        KernelError, OSError: a mount failed.
    """
    os.umask(0)
    mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)
    mounts.mount("orch", base, "tmpfs", mounts.MS_NOSUID | mounts.MS_NOEXEC, "mode=700,size=1m")
    os.mkdir(base + ROOT_MOUNT_POINT)
    _make_character_device(base + NULL_DEVICE, "null", os.makedev(1, 3))
    sysctl_fd = -1
    own_mounts_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    for index, stage in enumerate(stages):
        directory = base + stage_directory(index)
        os.mkdir(directory)
        _build(stage, directory, controllers)
        if stage["target"] == "/proc":
            sysctl_fd = os.open(f"{directory}/sys", os.O_PATH | os.O_DIRECTORY)
        _restrict(stage, directory)
    os.chdir(base)
    mounts.pivot_root_here()
    return own_mounts_fd, sysctl_fd
