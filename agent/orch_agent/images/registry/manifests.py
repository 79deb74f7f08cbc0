"""Manifests and indexes of images, read with every bound checked.

Sources: OCI image specification 1.1, manifest.md and image-index.md; Docker's image manifest version 2, schema 2.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orch_agent.images import digests
from orch_agent.images.archive import host_architecture
from orch_agent.images.errors import ArchiveRefused, LimitExceeded
from orch_agent.images.limits import DEFAULT_ARCHIVE_LIMITS, DEFAULT_UNPACK_LIMITS

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"
_INDEX_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Some content by its digest and size."""

    digest: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def read(raw: bytes, media_type: str) -> Manifest | Descriptor:
    """A manifest, or what an index has for this machine.

    Args:
        raw: the document.
        media_type: as the registry named it; the document's own word counts first.

    Raises:
        ArchiveRefused: it is malformed, of an unknown kind, or has nothing for this machine.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise _malformed("it is not an object")
    kind = document.get("mediaType") or media_type.partition(";")[0].strip()
    if kind in INDEX_TYPES:
        return _choose(document)
    if kind in MANIFEST_TYPES:
        return _manifest(document)
    if str(kind).startswith(_SCHEMA_1) or document.get("schemaVersion") == 1:
        raise ArchiveRefused("the image's manifest is of schema 1, which orch does not take; push the image again")
    raise ArchiveRefused(f"the manifest is of the kind {str(kind)[:100]!r}; orch takes images of OCI and docker")


def _choose(document: Mapping[str, Any]) -> Descriptor:
    entries = document.get("manifests")
    if not isinstance(entries, list) or len(entries) > _INDEX_ENTRIES:
        raise _malformed(f"an index without a list of at most {_INDEX_ENTRIES} manifests")
    offered: list[str] = []
    for entry in entries:
        platform = entry.get("platform") if isinstance(entry, dict) else None
        platform = platform if isinstance(platform, dict) else {}
        if not platform or (platform.get("os"), platform.get("architecture")) == ("linux", host_architecture()):
            return _descriptor(entry, DEFAULT_ARCHIVE_LIMITS.document_bytes)
        offered.append(f"{platform.get('os')}/{platform.get('architecture')}")
    raise ArchiveRefused(
        f"the image is not made for linux/{host_architecture()}, which this node is, but for "
        f"{', '.join(offered)[:200] or 'nothing'}; use another tag"
    )


def _manifest(document: Mapping[str, Any]) -> Manifest:
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise _malformed("it has no list of layers")
    if len(layers) > DEFAULT_ARCHIVE_LIMITS.layers:
        raise LimitExceeded(
            f"the image has more than {DEFAULT_ARCHIVE_LIMITS.layers} layers; build it with fewer steps"
        )
    read_layers = tuple(_descriptor(layer, DEFAULT_UNPACK_LIMITS.unpacked_bytes) for layer in layers)
    for layer in read_layers:
        if ".tar" not in layer.media_type or "nondistributable" in layer.media_type or "foreign" in layer.media_type:
            raise ArchiveRefused(f"the image has a layer of the kind {layer.media_type!r}, which orch does not unpack")
    return Manifest(_descriptor(document.get("config"), DEFAULT_ARCHIVE_LIMITS.document_bytes), read_layers)


def _descriptor(value: object, at_most_bytes: int) -> Descriptor:
    if not isinstance(value, dict):
        raise _malformed("a descriptor is not an object")
    digest, size, kind = value.get("digest"), value.get("size"), value.get("mediaType", "")
    if not isinstance(digest, str) or not isinstance(kind, str) or isinstance(size, bool) or not isinstance(size, int):
        raise _malformed("a descriptor has no digest, size and kind")
    digests.hex_of(digest)
    if not 0 <= size <= at_most_bytes:
        raise LimitExceeded(f"the image names content of {size} bytes, and {at_most_bytes} are allowed there")
    return Descriptor(digest, size, kind[:200])


def _malformed(why: str) -> ArchiveRefused:
    return ArchiveRefused(f"the image's manifest is malformed: {why}; push the image again")
