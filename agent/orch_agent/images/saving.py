"""Writes archives of images: what `docker save` writes and an OCI image layout, in one tar.

Layers stand in it without compression, under their diffIDs. The store keeps them unpacked: one that orch made is packed
again to the very bytes that its digest names, one that was pulled is fetched again from its registry, and of one that
came in an archive it is tried.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from orch_agent.images import digests, reference
from orch_agent.images.compression import opened
from orch_agent.images.digests import CHUNK_BYTES
from orch_agent.images.errors import DigestMismatch, ImageNotFound, InvalidReference
from orch_agent.images.layers import Layer
from orch_agent.images.model import ImageInfo
from orch_agent.images.registry import credentials
from orch_agent.images.registry.client import RegistryClient
from orch_agent.images.registry.download import Downloads
from orch_agent.images.registry.manifests import Descriptor
from orch_agent.images.registry.settings import Settings, read_settings
from orch_agent.images.store import ImageStore
from orch_agent.images.tarwrite import write_layer

_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_END_BYTES = 2 * tarfile.BLOCKSIZE

Write = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class _Saved:
    image: ImageInfo
    tag: str
    """The name in the archive; empty: saved by its id."""


class Saving:
    """Writes one archive.

    Args:
        store: has the images.
        write: takes the archive in pieces.
        leave_out: chain ids of layers that whoever reads has.
        made_here: refuse layers that came from a registry, at once.
        settings: of registries; read when they are needed.
    """

    def __init__(
        self,
        store: ImageStore,
        write: Write,
        *,
        leave_out: Collection[str] = (),
        made_here: bool = False,
        settings: Settings | None = None,
    ) -> None:
        self._store = store
        self._write = write
        self._leave_out = frozenset(leave_out)
        self._made_here = made_here
        self._written: set[str] = set()
        self._settings = settings

    def save(self, names: Sequence[str]) -> list[ImageInfo]:
        """Write the archive of the named images; layers in common stand in it once.

        Raises:
            ImageNotFound: one is not here, or is to be had from its registry and `made_here` was asked for.
            DigestMismatch: a layer cannot be made again as it came.
            RegistryError: a layer's registry refused.
        """
        with self._store.ingesting():
            found = [_Saved(image := self._store.resolve(name), _tag(name, image)) for name in names]
            for saved in found:
                self._check_origins(saved.image)
            images: dict[str, list[str]] = {}
            for saved in found:
                tags = images.setdefault(saved.image.id, [])
                if saved.tag and saved.tag not in tags:
                    tags.append(saved.tag)
            by_id = {saved.image.id: saved.image for saved in found}
            documents = [self._image(by_id[image_id], tags) for image_id, tags in images.items()]
        manifests = [descriptor for _, descriptors in documents for descriptor in descriptors]
        index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": manifests}
        self._document("index.json", _json(index))
        self._document("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        self._document("manifest.json", _json([entry for entry, _ in documents]))
        self._write(bytes(_END_BYTES))
        return list(by_id.values())

    def _check_origins(self, image: ImageInfo) -> None:
        if not self._made_here:
            return
        for chain_id in image.chain_ids:
            layer = self._layer(chain_id)
            if layer.origin and chain_id not in self._leave_out:
                raise ImageNotFound(f"the image is here, but came from {layer.origin.partition('@')[0]}: pull it there")

    def _image(self, image: ImageInfo, tags: list[str]) -> tuple[dict[str, object], list[dict[str, object]]]:
        """Write an image's files; returns its entries in manifest.json and in index.json."""
        config_raw = self._store.config_raw(image)
        config = self._blob(image.id, config_raw, _CONFIG_TYPE)
        layers = [
            self._packed(chain_id, diff_id) for chain_id, diff_id in zip(image.chain_ids, image.diff_ids, strict=True)
        ]
        raw = _json({"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "config": config, "layers": layers})
        manifest = self._blob(digests.of_bytes(raw), raw, _MANIFEST_TYPE)
        entry: dict[str, object] = {
            "Config": _blob_name(image.id),
            "RepoTags": tags,
            "Layers": [_blob_name(diff_id) for diff_id in image.diff_ids],
        }
        full = [reference.parse(tag).canonical for tag in tags]
        named = [{**manifest, "annotations": {"io.containerd.image.name": name}} for name in full]
        return entry, named or [manifest]

    def _layer(self, chain_id: str) -> Layer:
        self._store.lower_dirs_of((chain_id,))  # says what to do if it is missing
        layer = self._store.layers.get(chain_id)
        assert layer is not None
        return layer

    def _packed(self, chain_id: str, diff_id: str) -> dict[str, object]:
        """Write a layer unless it stands in the archive or is left out."""
        layer = self._layer(chain_id)
        if chain_id in self._leave_out or diff_id in self._written:
            return {"mediaType": _LAYER_TYPE, "digest": diff_id, "size": layer.size_bytes}
        with tempfile.TemporaryFile(dir=self._store.root / "staging") as file:
            digest = hashlib.sha256()

            def take(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            if layer.origin:
                self._fetch(layer, take)
            else:
                write_layer(str(self._store.layers.tree(chain_id)), take)
            if f"sha256:{digest.hexdigest()}" != diff_id:
                raise DigestMismatch(
                    f"cannot write the layer {diff_id[:19]}: it came in an archive, only its unpacked files are kept, "
                    "and packed again they are not the same bytes; load the archive there, or build the image here"
                )
            size_bytes = file.tell()
            file.seek(0)
            self._file(_blob_name(diff_id), file, size_bytes)
        self._written.add(diff_id)
        return {"mediaType": _LAYER_TYPE, "digest": diff_id, "size": size_bytes}

    def _fetch(self, layer: Layer, take: Write) -> None:
        """Bring a layer's archive once more from where it was pulled."""
        origin = reference.parse(layer.origin)
        assert origin.digest is not None
        self._settings = self._settings or read_settings()
        client = RegistryClient(origin, self._settings, credentials.find)
        try:
            downloads = Downloads(self._store.root / "downloads", threading.Event())
            described = Descriptor(origin.digest, layer.origin_bytes, layer.origin_type)
            with downloads.fetched(client, described, lambda _bytes: None) as file:
                plain = opened(file)[1]
                while data := plain.read(CHUNK_BYTES):
                    take(data)
        finally:
            client.close()

    # ---- the tar -----------------------------------------------------------------------------------

    def _blob(self, digest: str, raw: bytes, media_type: str) -> dict[str, object]:
        if digest not in self._written:
            self._written.add(digest)
            self._document(_blob_name(digest), raw)
        return {"mediaType": media_type, "digest": digest, "size": len(raw)}

    def _document(self, name: str, raw: bytes) -> None:
        self._write(_header(name, len(raw)) + raw + bytes(-len(raw) % tarfile.BLOCKSIZE))

    def _file(self, name: str, file: BinaryIO, size_bytes: int) -> None:
        self._write(_header(name, size_bytes))
        while data := file.read(CHUNK_BYTES):
            self._write(data)
        self._write(bytes(-size_bytes % tarfile.BLOCKSIZE))


def _tag(name: str, image: ImageInfo) -> str:
    """The name as it goes into the archive: one with a tag, or none where it was asked for by id or digest."""
    try:
        parsed = reference.parse(name)
    except InvalidReference:
        return ""
    return parsed.familiar if parsed.digest is None and parsed.familiar in image.references else ""


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{digests.hex_of(digest)}"


def _header(name: str, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8")


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
