"""Named local volumes of a node: folders that outlive the tasks which use them.

A volume is made at its first use, and takes over what the image has at that path, with owners and modes, while it is
still empty (docker's rule; `nocopy` switches it off). On disk: `NAME/_data` beside `NAME/volume.json`.
"""

import json
import os
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orch_agent.images import files
from orch_agent.images.clock import timestamp
from orch_agent.images.merged import Attributes, LayerWriter, MergedTree, PathProblem

VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}\Z")
_DATA = "_data"
_DESCRIPTION = "volume.json"
_POPULATING = "populating"


class VolumeError(Exception):
    """Base of what can go wrong with volumes; raised itself when the image's content cannot be taken over."""


class VolumeNotFound(VolumeError):  # noqa: N818 - named for the condition, as in every errors.py
    """Raised when there is no volume of that name on this node."""


class VolumeInUse(VolumeError):  # noqa: N818
    """Raised when a volume is to be removed although a task mounts it."""


class InvalidVolumeName(VolumeError):  # noqa: N818
    """Raised for a name that could not be a folder's."""


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume."""

    name: str
    path: str
    """The folder with its content, on the host."""
    labels: Mapping[str, str]
    created: str
    """RFC 3339."""


class VolumeStore:
    """The volumes beneath one folder; safe for several threads and processes."""

    def __init__(self, root: Path) -> None:
        """Open the folder `root`, making it if missing, and sweep what a crash left half made or half removed."""
        self._root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o701)  # passable: tasks reach their volume through it
        with files.locked(root / ".lock"):
            for leftover in root.glob(".staging-*"):
                files.remove_tree(leftover)

    def ensure(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        image_layers: Sequence[str] = (),
        image_path: str = "",
        nocopy: bool = False,
    ) -> Volume:
        """The volume `name`, made if missing; an existing one keeps its labels.

        While it is empty and `nocopy` is not set, the content of the folder `image_path` in `image_layers` (topmost
        first) is copied into it.

        Raises:
            InvalidVolumeName: the name is not one.
            VolumeError: the image's content cannot be copied.
        """
        folder = self._folder(name)
        with files.locked(self._root / ".lock"):
            if not (folder / _DESCRIPTION).exists():
                self._make(folder, labels or {})
        # Copying may take long: other volumes are not made to wait for it.
        if image_layers and image_path and not nocopy:
            with files.locked(folder / ".lock"):
                self._populate(name, folder, image_layers, image_path)
        return self._read(name, folder)

    def inspect(self, name: str) -> Volume:
        """The volume `name`.

        Raises:
            VolumeNotFound: there is none.
        """
        return self._read(name, self._folder(name))

    def list(self) -> tuple[Volume, ...]:
        """All volumes, sorted by name."""
        names = sorted(path.name for path in self._root.iterdir() if (path / _DESCRIPTION).exists())
        return tuple(self._read(name, self._root / name) for name in names)

    def remove(self, name: str, *, in_use: Collection[str]) -> None:
        """Remove a volume with its content; `in_use` are the names that tasks mount.

        Raises:
            VolumeNotFound: there is none.
            VolumeInUse: a task mounts it.
        """
        folder = self._folder(name)
        self._read(name, folder)
        if name in in_use:
            raise VolumeInUse(f"volume {name} is mounted by a task; remove the service that uses it first")
        trash = self._root / f".staging-{secrets.token_hex(8)}"
        with files.locked(self._root / ".lock"):
            folder.rename(trash)
        files.remove_tree(trash)

    def _make(self, folder: Path, labels: Mapping[str, str]) -> None:
        stage = self._root / f".staging-{secrets.token_hex(8)}"
        data = stage / _DATA
        data.mkdir(parents=True)
        stage.chmod(0o701)
        data.chmod(0o755)
        (stage / _DESCRIPTION).write_text(json.dumps({"labels": dict(labels), "created": timestamp()}))
        stage.rename(folder)

    def _populate(self, name: str, folder: Path, layers: Sequence[str], path: str) -> None:
        """Copy the image's folder in; a mark stands meanwhile, so that a crash on the way is repaired."""
        data = folder / _DATA
        mark = folder / _POPULATING
        if mark.exists():
            for child in data.iterdir():
                files.remove_tree(child)
        if any(data.iterdir()):
            return
        try:
            tree = MergedTree(layers)
            source = tree.lookup(path)
            if source is None or not source.is_directory:
                return
            mark.touch()
            writer = LayerWriter(str(data), ())
            for node in tree.walk(source):
                writer.copy(node, node.path[len(source.path.rstrip("/")) :], Attributes())
        except PathProblem as error:
            raise VolumeError(f"volume {name} cannot take over {path} of the image: {error}") from error
        os.chown(data, source.status.st_uid, source.status.st_gid)
        data.chmod(source.status.st_mode & 0o7777)
        mark.unlink()

    def _read(self, name: str, folder: Path) -> Volume:
        try:
            raw = json.loads((folder / _DESCRIPTION).read_bytes())
            return Volume(name, str(folder / _DATA), dict(raw["labels"]), raw["created"])
        except FileNotFoundError:
            raise VolumeNotFound(f"no volume {name!r} on this node; list them by orch volume ls") from None
        except (ValueError, KeyError, TypeError) as error:
            raise VolumeError(
                f"{folder / _DESCRIPTION} is unreadable ({error!r}); restore it, or remove {folder}"
            ) from error

    def _folder(self, name: str) -> Path:
        if not VOLUME_NAME.match(name):
            raise InvalidVolumeName(
                f"{name[:100]!r} is not a volume's name; begin with a letter or digit, then letters, digits, _ . -"
            )
        return self._root / name
