"""The table of images and their names: one file, replaced as a whole."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orch_agent.images import files
from orch_agent.images.errors import StoreCorrupt

_VERSION = 1


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One image in the table."""

    id: str
    chain_ids: tuple[str, ...]
    size_bytes: int
    manifest_digest: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """The whole table: images by id, ids by canonical reference."""

    images: Mapping[str, IndexEntry] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)

    def names_of(self, image_id: str) -> tuple[str, ...]:
        """Canonical references that name an image, sorted."""
        return tuple(sorted(name for name, target in self.references.items() if target == image_id))

    def with_image(self, entry: IndexEntry, names: tuple[str, ...]) -> "Index":
        """The table with an image added and names pointed at it."""
        return Index({**self.images, entry.id: entry}, {**self.references, **dict.fromkeys(names, entry.id)})

    def without_names(self, names: tuple[str, ...]) -> "Index":
        """The table without some names; their images stay."""
        return Index(self.images, {name: target for name, target in self.references.items() if name not in names})

    def without_image(self, image_id: str) -> "Index":
        """The table without an image and its names."""
        return Index(
            {key: entry for key, entry in self.images.items() if key != image_id},
            {name: target for name, target in self.references.items() if target != image_id},
        )


def read(path: Path) -> Index:
    """Read the table; a missing file is an empty one.

    Raises:
        StoreCorrupt: the file is not a table of a version that this program knows.
    """
    try:
        raw = json.loads(path.read_bytes())
        if raw["version"] != _VERSION:
            raise StoreCorrupt(f"{path} has version {raw['version']}, this orch reads {_VERSION}; use the newer orch")
        images = {
            image_id: IndexEntry(image_id, tuple(item["chain_ids"]), item["size_bytes"], item["manifest_digest"])
            for image_id, item in raw["images"].items()
        }
        return Index(images, dict(raw["references"]))
    except FileNotFoundError:
        return Index()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreCorrupt(f"{path} is unreadable ({error!r}); remove it and load the images again") from error


def write(path: Path, index: Index, *, durable: bool) -> None:
    """Replace the table."""
    raw = {
        "version": _VERSION,
        "images": {
            entry.id: {
                "chain_ids": list(entry.chain_ids),
                "size_bytes": entry.size_bytes,
                "manifest_digest": entry.manifest_digest,
            }
            for entry in index.images.values()
        },
        "references": dict(index.references),
    }
    files.write_atomically(path, json.dumps(raw, indent=1, sort_keys=True).encode(), durable=durable)
