"""Reads archives of images: `docker save` (manifest.json) and OCI image layouts (index.json), in a tar.

Sources: OCI image specification, image-layout.md, image-index.md, manifest.md; docker's image tar format 1.2. The tar
may come as a stream and compressed; it is then written aside first, as its table of contents comes last. Layers are
checked by digest while they are unpacked into a folder of their own, and kept only when the digest is right.
"""

import json
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from orch_agent.images import digests, reference
from orch_agent.images.compression import opened
from orch_agent.images.digests import CHUNK_BYTES, HashingReader
from orch_agent.images.errors import ArchiveRefused, DigestMismatch, InvalidReference, LimitExceeded
from orch_agent.images.layers import LayerStore
from orch_agent.images.limits import ArchiveLimits, UnpackLimits
from orch_agent.images.model import read_config
from orch_agent.images.tarstream import EntryKind, TarStream

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}
_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_FULL_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_LINKS_MAX = 8


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image whose layers are in the store, ready to be registered."""

    config_raw: bytes
    manifest_raw: bytes
    references: tuple[reference.Reference, ...]


def host_architecture() -> str:
    """This machine's architecture by its name in image configs."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def load(
    source: BinaryIO | Path, layers: LayerStore, staging: Path, limits: ArchiveLimits, unpack_limits: UnpackLimits
) -> Iterator[LoadedImage]:
    """Yield each image of an archive after its layers were checked and kept.

    Raises:
        ArchiveRefused: the archive is malformed, hostile, too large, or has no image for this machine.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield from load(file, layers, staging, limits, unpack_limits)
        return
    with _Members(source, staging, limits) as members:
        images = _docker_images(members) if "manifest.json" in members else _oci_images(members, limits)
        for count, image in enumerate(images, start=1):
            if count > limits.images:
                raise LimitExceeded(f"the archive has more than {limits.images} images; load it in parts")
            _unpack(members, image, layers, limits, unpack_limits)
            yield LoadedImage(image.config_raw, image.manifest_raw, image.references)


@dataclass(frozen=True, slots=True)
class _LayerBlob:
    member: str
    digest: str | None
    """Digest of the bytes as archived; None where only the config's diffID names the layer."""


@dataclass(frozen=True, slots=True)
class _ArchivedImage:
    config_raw: bytes
    manifest_raw: bytes
    layers: tuple[_LayerBlob, ...]
    references: tuple[reference.Reference, ...]


def _unpack(
    members: "_Members", image: _ArchivedImage, layers: LayerStore, limits: ArchiveLimits, unpack_limits: UnpackLimits
) -> None:
    document = read_config(image.config_raw)
    if len(document.diff_ids) != len(image.layers):
        raise ArchiveRefused(
            f"the archive's image has {len(image.layers)} layers but its config names {len(document.diff_ids)}; "
            "make the archive again"
        )
    if len(image.layers) > limits.layers:
        raise LimitExceeded(f"the archive's image has more than {limits.layers} layers; build it with fewer steps")
    if document.config.os != "linux" or document.config.architecture not in ("", host_architecture()):
        raise ArchiveRefused(
            f"the archive's image is for {document.config.os}/{document.config.architecture}, "
            f"this node is linux/{host_architecture()}; load an image made for it"
        )
    chains = digests.chain_ids(document.diff_ids)
    for blob, diff_id, chain_id in zip(image.layers, document.diff_ids, chains, strict=True):
        if layers.get(chain_id):
            continue
        if blob.digest is not None and blob.digest != diff_id:  # else the diffID says the same, in one pass
            members.check(blob.member, blob.digest)
        layers.unpack(members.open(blob.member), diff_id=diff_id, chain_id=chain_id, limits=unpack_limits)


# ---- docker save ------------------------------------------------------------------------------------


def _docker_images(members: "_Members") -> Iterator[_ArchivedImage]:
    manifest = _json(members.document("manifest.json"), "manifest.json")
    if not isinstance(manifest, list) or not manifest:
        raise _malformed("manifest.json is not a list of images")
    for item in manifest:
        config_name = _text(_mapping(item, "manifest.json").get("Config"), "manifest.json: Config")
        config_raw = members.document(config_name)
        digest = _digest_in_name(config_name)
        if digest and digests.of_bytes(config_raw) != digest:
            raise DigestMismatch(f"the archive's {config_name} does not have the digest of its name; copy it again")
        layers = tuple(
            _LayerBlob(name, _digest_in_name(name))
            for name in (_text(layer, "manifest.json: Layers[]") for layer in _sequence(item.get("Layers"), "Layers"))
        )
        tags = tuple(_text(tag, "manifest.json: RepoTags[]") for tag in _sequence(item.get("RepoTags"), "RepoTags"))
        yield _ArchivedImage(config_raw, b"", layers, tuple(_reference(tag) for tag in tags))


def _digest_in_name(name: str) -> str | None:
    """The digest that a member's name promises: `blobs/sha256/HEX`, or `HEX.json` in older archives."""
    leaf = name.removeprefix("blobs/sha256/").removesuffix(".json")
    is_hex = len(leaf) == 64 and all(character in "0123456789abcdef" for character in leaf)
    return f"sha256:{leaf}" if is_hex else None


# ---- OCI layout -------------------------------------------------------------------------------------


def _oci_images(members: "_Members", limits: ArchiveLimits) -> Iterator[_ArchivedImage]:
    if "index.json" not in members:
        raise ArchiveRefused(
            "the archive has neither manifest.json nor index.json, so it holds no image; load takes what docker save "
            "or an OCI tool wrote, orch image import takes the tar of a root file system"
        )
    index = _mapping(_json(members.document("index.json"), "index.json"), "index.json")
    found = False
    for descriptor in _sequence(index.get("manifests"), "index.json: manifests"):
        names = _names_of(_mapping(descriptor, "index.json: manifests[]"))
        image = _oci_image(members, descriptor, names, limits.index_depth)
        if image is not None:
            found = True
            yield image
    if not found:
        raise ArchiveRefused(
            f"the archive has no image for linux/{host_architecture()}; make one for it, e.g. with --platform"
        )


def _oci_image(
    members: "_Members", descriptor: Mapping[str, Any], names: tuple[reference.Reference, ...], depth: int
) -> _ArchivedImage | None:
    if depth == 0:
        raise LimitExceeded("the archive's indexes are nested too deeply; make the archive again")
    raw = members.blob(descriptor)
    document = _mapping(_json(raw, "a manifest"), "a manifest")
    media_type = descriptor.get("mediaType") or document.get("mediaType")
    if media_type in _INDEX_TYPES:
        inner = [_mapping(item, "an index") for item in _sequence(document.get("manifests"), "an index: manifests")]
        chosen = [item for item in inner if _fits(item)]
        return _oci_image(members, chosen[0], names, depth - 1) if chosen else None
    if media_type not in _MANIFEST_TYPES:
        raise ArchiveRefused(f"the archive has a manifest of the kind {media_type!r}; orch loads OCI and docker images")
    if not _fits(descriptor):
        return None
    config = _mapping(document.get("config"), "a manifest: config")
    layers = []
    for layer in _sequence(document.get("layers"), "a manifest: layers"):
        kind = _text(_mapping(layer, "a manifest: layers[]").get("mediaType"), "a manifest: layers[].mediaType")
        if ".tar" not in kind or "nondistributable" in kind or "foreign" in kind:
            raise ArchiveRefused(
                f"the archive has a layer of the kind {kind!r}, which orch does not unpack; convert it"
            )
        layers.append(_LayerBlob(members.blob_name(layer), _text(layer.get("digest"), "layers[].digest")))
    return _ArchivedImage(members.blob(config), raw, tuple(layers), names)


def _fits(descriptor: Mapping[str, Any]) -> bool:
    """Whether a manifest is for this machine; one that names no platform is decided by its config."""
    wanted = _mapping(descriptor.get("platform"), "platform")
    return not wanted or (wanted.get("os"), wanted.get("architecture")) == ("linux", host_architecture())


def _names_of(descriptor: Mapping[str, Any]) -> tuple[reference.Reference, ...]:
    """The image's name by its annotations; a bare word there is only a tag and names nothing."""
    annotations = _mapping(descriptor.get("annotations"), "annotations")
    full = annotations.get(_FULL_NAME) or annotations.get(_REF_NAME) or ""
    text = _text(full, "annotations")
    return (_reference(text),) if ":" in text or "/" in text else ()


# ---- the tar ----------------------------------------------------------------------------------------


class _Region:
    """Reads one member of the outer tar."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._left = size

    def read(self, size: int, /) -> bytes:
        if self._left == 0:
            return b""
        self._file.seek(self._offset)
        data = self._file.read(min(size, self._left))
        if not data:
            raise _malformed("it ends within a file")
        self._offset += len(data)
        self._left -= len(data)
        return data


class _Members:
    """The files of the outer tar by name, in a seekable file without compression."""

    def __init__(self, source: BinaryIO, staging: Path, limits: ArchiveLimits) -> None:
        self._limits = limits
        # A nameless file: it vanishes with the process.
        self._file = tempfile.TemporaryFile(dir=staging)  # noqa: SIM115 - closed by __exit__
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        bounds = UnpackLimits(entries=limits.members, unpacked_bytes=limits.unpacked_bytes)
        try:
            self._spool(TarStream(opened(source)[1], bounds))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._links

    def _spool(self, entries: TarStream) -> None:
        for entry in entries:
            name = entry.name.removeprefix("./")
            if entry.kind is EntryKind.FILE:
                offset = self._file.tell()
                while data := entries.read(CHUNK_BYTES):
                    self._file.write(data)
                self._places[name] = (offset, entry.size)
            elif entry.kind is EntryKind.SYMLINK:
                # Older `docker save` writes a layer that occurs twice as a link to its first copy.
                self._links[name] = _joined(name, entry.target)
            elif entry.kind is EntryKind.HARD_LINK:
                self._links[name] = entry.target.removeprefix("./")

    def open(self, name: str) -> _Region:
        wanted = name
        for _ in range(_LINKS_MAX):
            if name in self._places:
                return _Region(self._file, *self._places[name])
            if name not in self._links:
                break
            name = self._links[name]
        raise _malformed(f"it names the file {wanted[:200]!r}, which it does not hold")

    def document(self, name: str) -> bytes:
        region = self.open(name)
        parts = []
        size = 0
        while data := region.read(CHUNK_BYTES):
            parts.append(data)
            size += len(data)
            if size > self._limits.document_bytes:
                raise LimitExceeded(
                    f"the archive's {name[:200]} has more than {self._limits.document_bytes} bytes; make it again"
                )
        return b"".join(parts)

    def blob_name(self, descriptor: Mapping[str, Any]) -> str:
        name = "blobs/sha256/" + digests.hex_of(_text(descriptor.get("digest"), "a descriptor: digest"))
        size = descriptor.get("size")
        if name in self._places and size is not None and self._places[name][1] != size:
            raise DigestMismatch(
                f"the archive's {name} has another size than its descriptor says; copy the archive again"
            )
        return name

    def blob(self, descriptor: Mapping[str, Any]) -> bytes:
        name = self.blob_name(descriptor)
        raw = self.document(name)
        if digests.of_bytes(raw) != descriptor["digest"]:
            raise DigestMismatch(f"the archive's {name} does not have the digest of its name; copy the archive again")
        return raw

    def check(self, name: str, digest: str) -> None:
        """Compare a member's bytes with a digest."""
        reader = HashingReader(self.open(name))
        reader.drain()
        if reader.digest() != digest:
            raise DigestMismatch(f"the archive's {name} does not have the digest of its name; copy the archive again")


def _joined(name: str, target: str) -> str:
    """Where a link within the archive leads; used as a key of a table, never as a path."""
    parts = name.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _reference(text: str) -> reference.Reference:
    try:
        return reference.parse(text)
    except InvalidReference as error:
        raise _malformed(f"it names an image {text[:200]!r} ({error})") from error


def _json(raw: bytes, name: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"{name} is not JSON ({error})") from error


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _malformed(f"{name} is not an object")
    return value


def _sequence(value: object, name: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _malformed(f"{name} is not a list")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _malformed(f"{name} is not a string")
    return value


def _malformed(why: str) -> ArchiveRefused:
    return ArchiveRefused(f"the archive of images is malformed: {why}; make or copy it again")
