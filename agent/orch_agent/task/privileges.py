"""A task's privileges on this node: whether the node's policy allows them, and what they make of the configuration."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from orch_agent.errors import TaskFailure
from orch_agent.task.templates import NodeFacts, expand
from orch_proto import objects_pb2 as objects
from orch_proto import privileges
from orch_proto import types_pb2 as types
from orch_runtime.capabilities import NUMBERS

MAX_DEVICES = 1024
#: Folders of /dev that every container has of its own, and nodes that it gets anyway.
_OWN = frozenset({"pts", "shm", "mqueue", "fd", "stdin", "stdout", "stderr", "core", "console", "ptmx"})
_STANDARD = frozenset({"null", "zero", "full", "random", "urandom", "tty"})


def check_policy(task: objects.Task, policies: Collection[str], node: NodeFacts) -> None:
    """Refuses what the node's policy does not allow, whatever a manager thought; links in sources are followed.

    Raises:
        TaskFailure: naming the word that the policy lacks.
    """
    spec = task.spec.container
    asked = list(privileges.wanted(spec))
    for mount in spec.mounts:
        if mount.type == types.MOUNT_TYPE_BIND:
            real = os.path.realpath(expand(mount.source, task, node))
            if privileges.is_sensitive(real, read_only=mount.read_only):
                asked.append(f"{privileges.BIND}{real}")
    refused = privileges.first_refused(asked, policies)
    if refused:
        raise TaskFailure(
            f"the policy of this node does not allow {refused}; start orchd there with --allow {refused}",
            types.FAILURE_REASON_START,
        )


def own_capabilities() -> frozenset[str]:
    """What this node can give at most: a daemon in a container of somebody else's lacks some capabilities itself."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapPrm:"):
            mask = int(line.split()[1], 16)
            return frozenset(name for name, number in NUMBERS.items() if mask >> number & 1)
    return frozenset(NUMBERS)


def open_up(config: dict[str, Any], task: objects.Task) -> None:
    """Gives a configuration the devices that the task asks for and, if it is privileged, everything.

    Raises:
        TaskFailure: a device is not there.
    """
    spec = task.spec.container
    linux = config["linux"]
    devices = [device for mapping in spec.devices for device in _mapped(mapping)]
    if spec.privileges.privileged:
        if not spec.privileges.seccomp:
            linux.pop("seccomp", None)
        config["process"]["noNewPrivileges"] = False
        mine = own_capabilities()
        sets = config["process"]["capabilities"]
        config["process"]["capabilities"] = {kind: [name for name in sets[kind] if name in mine] for kind in sets}
        linux["maskedPaths"] = []
        linux["readonlyPaths"] = []
        linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
        for mount in config["mounts"]:
            if mount["type"] in ("sysfs", "cgroup"):
                mount["options"] = ["rw" if option == "ro" else option for option in mount["options"]]
        devices = [*_host_devices(), *devices]
    else:
        linux["resources"]["devices"] += [
            {
                "allow": True,
                "type": device["type"],
                "major": device["major"],
                "minor": device["minor"],
                "access": access,
            }
            for mapping in spec.devices
            for device, access in ((one, mapping.permissions or "rwm") for one in _mapped(mapping))
        ]
    if devices:
        linux["devices"] = list({device["path"]: device for device in devices}.values())


def _mapped(mapping: types.DeviceMapping) -> Iterator[dict[str, Any]]:
    """The device of a mapping, or those below the folder that it names."""
    target = mapping.container_path or mapping.host_path
    source = Path(mapping.host_path)
    if source.is_dir():
        for path in sorted(source.rglob("*"))[:MAX_DEVICES]:
            if (found := _device(path, f"{target}/{path.relative_to(source)}")) is not None:
                yield found
        return
    found = _device(source, target)
    if found is None:
        raise TaskFailure(
            f"device {mapping.host_path} is not there on this node, or is no device; check the path, or constrain the "
            "service to nodes that have it",
            types.FAILURE_REASON_START,
        )
    yield found


def _device(path: Path, target: str) -> dict[str, Any] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return None
    return {
        "path": target,
        "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }


def _host_devices(folder: Path = Path("/dev")) -> list[dict[str, Any]]:
    """Every device of the node but those that a container has anyway."""
    found: list[Mapping[str, Any]] = []
    folders = [folder]
    while folders:
        for entry in sorted(folders.pop().iterdir()):
            if entry.name in _OWN or (entry.parent == folder and entry.name in _STANDARD) or entry.is_symlink():
                continue
            if entry.is_dir():
                folders.append(entry)
            elif (device := _device(entry, str(entry))) is not None and len(found) < MAX_DEVICES:
                found.append(device)
    return [dict(device) for device in found]
