"""Makes an image from the tar of a root file system, such as debootstrap's."""

from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from orch_agent.build.changes import apply_changes
from orch_agent.images.archive import host_architecture
from orch_agent.images.clock import timestamp
from orch_agent.images.layers import LayerStore
from orch_agent.images.limits import UnpackLimits
from orch_agent.images.model import ConfigDocument, HistoryEntry, ImageConfig

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def import_rootfs(
    tar: BinaryIO | Path, layers: LayerStore, limits: UnpackLimits, changes: Collection[str]
) -> ConfigDocument:
    """Unpack the tar as the one layer of an image and return the image's config.

    Raises:
        ArchiveRefused: the tar is malformed, hostile or too large.
        DockerfileError: a change is not one of the instructions that only set configuration.
    """
    config = apply_changes(ImageConfig(env=(DEFAULT_PATH,), architecture=host_architecture()), changes)
    if isinstance(tar, Path):
        with tar.open("rb") as file:
            layer = layers.unpack_rootfs(file, limits=limits)
    else:
        layer = layers.unpack_rootfs(tar, limits=limits)
    created = timestamp()
    history = (HistoryEntry(created_by="orch image import", empty_layer=False, created=created),)
    return ConfigDocument(config, (layer.diff_id,), history, created)
