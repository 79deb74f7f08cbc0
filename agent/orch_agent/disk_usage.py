"""What takes up this node's disk: images, containers' own layers, volumes, the build cache, unfinished downloads."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from orch_agent.images.snapshots import Snapshots
from orch_agent.images.store import ImageStore
from orch_agent.volumes import VolumeStore
from orch_proto import node_pb2 as calls

_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own (stat(2))


def disk_usage(
    images: ImageStore,
    snapshots: Snapshots,
    volumes: VolumeStore,
    *,
    images_in_use: Collection[str],
    volumes_in_use: Collection[str],
    running: Collection[str],
) -> list[calls.DiskUsage]:
    """Measure; blocking, as it walks through the folders of volumes and containers.

    Args:
        images: the node's images; a layer that several share counts once.
        snapshots: what containers wrote.
        volumes: named volumes.
        images_in_use: ids of the images that tasks run.
        volumes_in_use: names of the volumes that tasks mount.
        running: ids of the tasks that are alive.
    """
    stored = images.list()
    by_image = {image.id: image.chain_ids for image in stored}
    needed = {chain for image_id in images_in_use for chain in by_image.get(image_id, ())}
    of_images = {chain for chains in by_image.values() for chain in chains}
    of_steps = {step.chain_id for step in images.steps.records() if step.chain_id} - of_images
    sizes = {chain: layer.size_bytes for chain in of_images | of_steps if (layer := images.layers.get(chain))}
    containers = {folder.name: _tree_bytes(folder) for folder in snapshots.folders()}
    of_volumes = {volume.name: _tree_bytes(Path(volume.path)) for volume in volumes.list()}
    parts = [_file_bytes(path) for path in _entries(images.root / "downloads")]
    step_bytes = sum(sizes.get(chain, 0) for chain in of_steps)
    image_bytes = sum(sizes.get(chain, 0) for chain in of_images)
    return [
        calls.DiskUsage(
            kind="Images",
            total=len(stored),
            active=len(by_image.keys() & set(images_in_use)),
            size_bytes=image_bytes,
            reclaimable_bytes=image_bytes - sum(sizes.get(chain, 0) for chain in needed),
        ),
        _of("Containers", containers, running),
        _of("Local Volumes", of_volumes, volumes_in_use),
        calls.DiskUsage(
            kind="Build Cache",
            total=sum(1 for _ in images.steps.records()),
            size_bytes=step_bytes,
            reclaimable_bytes=step_bytes,
        ),
        calls.DiskUsage(kind="Downloads", total=len(parts), size_bytes=sum(parts), reclaimable_bytes=sum(parts)),
    ]


def _of(kind: str, sizes: dict[str, int], active: Collection[str]) -> calls.DiskUsage:
    return calls.DiskUsage(
        kind=kind,
        total=len(sizes),
        active=len(sizes.keys() & set(active)),
        size_bytes=sum(sizes.values()),
        reclaimable_bytes=sum(size for name, size in sizes.items() if name not in active),
    )


def _tree_bytes(folder: Path) -> int:
    """Blocks of all that is beneath a folder; a file with several names counts once."""
    seen: set[tuple[int, int]] = set()
    total_bytes = 0
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:  # it went meanwhile
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total_bytes += status.st_blocks * _BLOCK_BYTES
    return total_bytes


def _entries(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.exists() else ()


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        return 0
