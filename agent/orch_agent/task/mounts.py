"""Where a task's mounts come from: volumes, host paths, tmpfs, and the volumes that its image declares."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orch_agent.errors import TaskFailure
from orch_agent.images.model import ImageInfo
from orch_agent.task.files import BindFile
from orch_agent.task.templates import NodeFacts, expand
from orch_agent.volumes import VolumeError, VolumeStore
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types

OciMount = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TaskMounts:
    """Mounts in OCI's form, and the anonymous volumes made for this task alone."""

    mounts: tuple[OciMount, ...]
    anonymous_volumes: tuple[str, ...]


def bind_file(bind: BindFile) -> OciMount:
    """A file of the task as an OCI mount."""
    access = "ro" if bind.read_only else "rw"
    return {
        "destination": bind.target,
        "type": "bind",
        "source": str(bind.source),
        "options": ["bind", access, "nosuid", "nodev", "rprivate"],
    }


def anonymous_name(task_id: str, target: str) -> str:
    """The name of the volume that stands for an unnamed one of a task; the same each time it is asked for."""
    return f"anon-{task_id}-{zlib.crc32(target.encode()):08x}"


def make_mounts(
    task: objects.Task,
    image: ImageInfo,
    lower_dirs: Sequence[str],
    *,
    node: NodeFacts,
    volumes: VolumeStore,
) -> TaskMounts:
    """Makes the volumes that the task needs and lists its mounts, in the order of their targets.

    Raises:
        TaskFailure: a source is missing or cannot be used.
    """
    mounts: dict[str, OciMount] = {}
    anonymous = []
    for mount in task.spec.container.mounts:
        target = os.path.normpath(expand(mount.target, task, node))
        source = expand(mount.source, task, node)
        match mount.type:
            case types.MOUNT_TYPE_BIND:
                mounts[target] = _bind(mount, source, target)
            case types.MOUNT_TYPE_TMPFS:
                mounts[target] = _tmpfs(mount, target)
            case types.MOUNT_TYPE_VOLUME:
                if not source:
                    source = anonymous_name(task.id, target)
                    anonymous.append(source)
                mounts[target] = _volume(mount, source, target, lower_dirs, volumes)
            case _:
                raise TaskFailure(
                    f"mount at {target}: this node cannot mount type {types.MountType.Name(mount.type)}",
                    types.FAILURE_REASON_MOUNT,
                )
    for declared in image.config.volumes:
        target = os.path.normpath(declared)
        if target not in mounts:
            source = anonymous_name(task.id, target)
            anonymous.append(source)
            mounts[target] = _volume(types.Mount(), source, target, lower_dirs, volumes)
    return TaskMounts(tuple(mounts[target] for target in sorted(mounts)), tuple(anonymous))


def _bind(mount: types.Mount, source: str, target: str) -> OciMount:
    path = Path(source)
    if not path.exists():
        if not mount.bind.create_host_path:
            raise TaskFailure(
                f"mount at {target}: {source} does not exist on this node; create it, or use a named volume",
                types.FAILURE_REASON_MOUNT,
            )
        path.mkdir(parents=True, exist_ok=True)
    recursion = "bind" if mount.bind.non_recursive else "rbind"
    options = [recursion, "ro" if mount.read_only else "rw", mount.bind.propagation or "rprivate"]
    return {"destination": target, "type": "bind", "source": source, "options": options}


def _tmpfs(mount: types.Mount, target: str) -> OciMount:
    options = ["nosuid", "nodev", *mount.tmpfs.options]
    if mount.tmpfs.size_bytes:
        options.append(f"size={mount.tmpfs.size_bytes}")
    if mount.tmpfs.mode:
        options.append(f"mode={mount.tmpfs.mode:o}")
    if mount.read_only:
        options.append("ro")
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}


def _volume(mount: types.Mount, name: str, target: str, lower_dirs: Sequence[str], volumes: VolumeStore) -> OciMount:
    try:
        volume = volumes.ensure(
            name,
            labels=dict(mount.volume.labels),
            image_layers=lower_dirs,
            image_path=target,
            nocopy=mount.volume.no_copy,
        )
    except VolumeError as error:
        raise TaskFailure(f"mount at {target}: {error}", types.FAILURE_REASON_MOUNT) from error
    source = Path(volume.path)
    if mount.volume.subpath:
        source = source / mount.volume.subpath
        if not source.resolve().is_relative_to(Path(volume.path).resolve()):
            raise TaskFailure(
                f"mount at {target}: the subpath {mount.volume.subpath} leads out of volume {name}",
                types.FAILURE_REASON_MOUNT,
            )
    return {
        "destination": target,
        "type": "bind",
        "source": str(source),
        "options": ["rbind", "ro" if mount.read_only else "rw", "rprivate"],
    }
