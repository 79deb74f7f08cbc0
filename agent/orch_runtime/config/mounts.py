"""`mounts` of an OCI config: options to flags, and which mounts can be staged ahead of the container."""

from __future__ import annotations

import json
import posixpath
import zlib

from orch_runtime.config.memo import remembered
from orch_runtime.config.reader import Reader
from orch_runtime.errors import InvalidConfig
from orch_runtime.plan import MountPlan, StagePlan

# Option name to (mount(2) flag, mount attribute, sets or clears).
_FLAGS: dict[str, tuple[int, int, bool]] = {
    "ro": (1, 1, True),
    "rw": (1, 1, False),
    "nosuid": (2, 2, True),
    "suid": (2, 2, False),
    "nodev": (4, 4, True),
    "dev": (4, 4, False),
    "noexec": (8, 8, True),
    "exec": (8, 8, False),
    "noatime": (1024, 0x10, True),
    "strictatime": (1 << 24, 0x20, True),
    "relatime": (1 << 21, 0, True),
    "rro": (1, 1, True),
}
_PROPAGATION = {"private": 1 << 18, "rprivate": 1 << 18, "slave": 1 << 19, "rslave": 1 << 19}
_NO_MEANING = {"defaults", "newinstance", "async", "diratime", "nolazytime", "tmpcopyup-off"}
FILESYSTEMS = {"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}
# Roots of the kernel's trees that need nothing of the container's own files. /sys is not among them: sysfs shows the
# network namespace of whoever mounts it, which is known only when the request comes.
STAGED_ROOTS = ("/proc", "/dev", "/sys/fs/cgroup")


def normal_path(path: str, where: str) -> str:
    """Return an absolute path without . or doubled slashes; .. is refused."""
    if not path.startswith("/"):
        raise InvalidConfig(where, f"must be an absolute path, not {path!r}")
    if ".." in path.split("/"):
        raise InvalidConfig(where, f"must not contain '..': {path!r}")
    return "/" + posixpath.normpath(path).lstrip("/")


def read_mount(reader: Reader) -> MountPlan:
    """Read one entry of `mounts`."""
    target = normal_path(reader.text("destination"), reader.where("destination"))
    if target == "/":
        raise reader.fail("destination", "cannot be '/': the rootfs is mounted there")
    kind = reader.text("type", "")
    source = reader.text("source", "")
    flags = attributes = propagation = 0
    data: list[str] = []
    bind = kind == "bind"
    recursive = False
    for position, option in enumerate(reader.texts("options", 64)):
        if option in ("bind", "rbind"):
            bind = True
            recursive = option == "rbind"
        elif option in _FLAGS:
            flag, attribute, on = _FLAGS[option]
            flags = flags | flag if on else flags & ~flag
            attributes = attributes | attribute if on else attributes & ~attribute
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option in ("shared", "rshared", "unbindable", "runbindable", "idmap", "ridmap", "tmpcopyup"):
            raise InvalidConfig(f"{reader.where('options')}[{position}]", f"{option} is not supported by this runtime")
        elif option not in _NO_MEANING:
            data.append(option)
    reader.ignore("options")
    reader.finish()
    if bind:
        if data:
            raise reader.fail("options", f"{data[0]!r} is not an option of a bind mount")
        source = normal_path(source, reader.where("source"))
        kind = "bind"
    elif kind not in FILESYSTEMS:
        raise reader.fail("type", f"{kind!r} is not supported; known are bind, {', '.join(sorted(FILESYSTEMS))}")
    if kind == "cgroup2":
        kind = "cgroup"
    return {
        "kind": kind,
        "source": source or kind,
        "target": target,
        "flags": flags,
        "data": ",".join(data),
        "attributes": attributes,
        "propagation": propagation,
        "recursive": recursive,
        "options": [[key, value] for key, _, value in (entry.partition("=") for entry in data)],
    }


def beneath(path: str, root: str) -> bool:
    """Tell whether path is root or below it."""
    return path == root or path.startswith(root + "/")


def _stage_key(stages: list[StagePlan]) -> str:
    return f"{zlib.crc32(json.dumps(stages, sort_keys=True).encode()):08x}-{len(stages)}"


def split_stage(
    mounts: list[MountPlan], masked: list[str], readonly: list[str]
) -> tuple[list[StagePlan], str, list[MountPlan], list[str], list[str]]:
    """Take out of the mounts what can be made before the container is known.

    Returns the stages with a key that is equal for equal stages, and the mounts and paths that remain. A bind below a
    staged root stays behind and is mounted later, on top; kernel file systems listed after such a bind stay behind
    too, so that the order of the config holds.
    """
    stages: list[StagePlan] = []
    rest = list(mounts)
    for root in STAGED_ROOTS:
        first = next((mount for mount in rest if beneath(mount["target"], root)), None)
        if first is None or first["target"] != root or first["kind"] == "bind":
            continue
        taken: list[MountPlan] = []
        for mount in rest:
            if not beneath(mount["target"], root):
                continue
            if mount["kind"] == "bind" or (taken and mount["target"] == root):
                break
            taken.append(mount)
        rest = [mount for mount in rest if mount not in taken]
        over = [mount["target"] for mount in rest]
        stage_masked = [path for path in masked if beneath(path, root) and path not in over]
        stage_readonly = [path for path in readonly if beneath(path, root) and path not in over]
        masked = [path for path in masked if path not in stage_masked]
        readonly = [path for path in readonly if path not in stage_readonly]
        stages.append({"target": root, "mounts": taken, "masked": stage_masked, "readonly": stage_readonly})
    key = remembered("stages", stages, lambda: _stage_key(stages))
    return stages, key, rest, masked, readonly
