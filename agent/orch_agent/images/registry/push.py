"""Pushing: an image of the store under a name of a registry.

The store keeps layers unpacked. A layer that orch built is packed again to the very bytes its digest names. Of one that
came from elsewhere that is not certain: what was pulled is taken from where it was, within the registry if it is the
same one; what was loaded is pushed only if its digest comes out right, or if the registry has it already.
"""

import hashlib
import json
import tempfile
import threading
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from orch_agent.images import digests, reference
from orch_agent.images.digests import CHUNK_BYTES
from orch_agent.images.errors import DigestMismatch, InvalidReference
from orch_agent.images.layers import Layer
from orch_agent.images.model import ImageInfo
from orch_agent.images.registry import credentials, manifests
from orch_agent.images.registry.client import RegistryClient
from orch_agent.images.registry.download import Downloads
from orch_agent.images.registry.errors import RegistryError
from orch_agent.images.registry.manifests import MANIFEST_TYPES, Descriptor, Manifest
from orch_agent.images.registry.pull import Progress
from orch_agent.images.registry.settings import Settings, read_settings
from orch_agent.images.store import ImageStore
from orch_agent.images.tarwrite import write_layer

_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_GZIP_WINDOW = 31  # zlib: 15 bits of window, and a gzip header, which it writes without a time
_LEVEL = 6


def push(store: ImageStore, name: str, progress: Progress, settings: Settings | None = None) -> ImageInfo:
    """Upload an image under its own name, as far as the registry has not got it.

    Raises:
        InvalidReference: the name has a digest, which nobody can choose.
        ImageNotFound: there is no such image here.
        RegistryError: the registry, or the way to it, refused.
        DigestMismatch: a layer cannot be made again as it came.
    """
    target = reference.parse(name)
    if target.digest or target.tag is None:
        raise InvalidReference(f"cannot push {name!r}: a digest is computed, not given; push a name with a tag")
    image = store.resolve(name)
    settings = settings or read_settings()
    client = RegistryClient(target, settings, credentials.find, pushes=True)
    try:
        progress(f"The push refers to repository [{target.name}]")
        with store.ingesting():
            raw, kind = _Pushing(target.registry, store, client, settings, progress).bring(image)
        client.push_manifest(target.tag, raw, kind)
        progress(f"{target.tag}: digest: {digests.of_bytes(raw)} size: {len(raw)}")
    finally:
        client.close()
    return image


@dataclass(frozen=True, slots=True)
class _Packed:
    """A layer's archive in a nameless file."""

    file: BinaryIO
    digest: str
    diff_id: str
    size_bytes: int


class _Pushing:
    def __init__(
        self, registry: str, store: ImageStore, client: RegistryClient, settings: Settings, progress: Progress
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._store = store
        self._client = client
        self._progress = progress

    def bring(self, image: ImageInfo) -> tuple[bytes, str]:
        """Have all blobs of an image in the registry; returns the manifest to name, and its kind."""
        original = self._original(image)
        known = original[1].layers if original else (None,) * len(image.chain_ids)
        layers = [
            self._layer(chain_id, diff_id, came_as)
            for chain_id, diff_id, came_as in zip(image.chain_ids, image.diff_ids, known, strict=True)
        ]
        config_raw = self._store.config_raw(image)
        if not self._client.has_blob(image.id):
            self._client.push_blob(image.id, config_raw, len(config_raw))
        if original and layers == list(original[1].layers):
            kind = str(json.loads(original[0]).get("mediaType") or MANIFEST_TYPES[0])
            return original[0], kind
        config = Descriptor(image.id, len(config_raw), _CONFIG_TYPE)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPES[0],
            "config": _written(config),
            "layers": [_written(layer) for layer in layers],
        }
        return json.dumps(manifest, separators=(",", ":")).encode(), MANIFEST_TYPES[0]

    def _original(self, image: ImageInfo) -> tuple[bytes, Manifest] | None:
        """The manifest that the image came with, if it came with one."""
        raw = self._store.manifest_raw(image)
        found = manifests.read(raw, "") if raw else None
        return (raw, found) if isinstance(found, Manifest) else None

    def _layer(self, chain_id: str, diff_id: str, came_as: Descriptor | None) -> Descriptor:
        short = digests.hex_of(diff_id)[:12]
        if came_as is not None and self._client.has_blob(came_as.digest):
            self._progress(f"{short}: Layer already exists")
            return came_as
        layer = self._store.layers.get(chain_id)
        if layer is not None and layer.origin and (brought := self._from_origin(layer, short)) is not None:
            return brought
        with tempfile.TemporaryFile(dir=self._store.root / "staging") as file:
            packed = self._pack(chain_id, file)
            if packed.diff_id != diff_id:
                raise DigestMismatch(
                    f"cannot push the layer {diff_id[:19]}: it came in an archive, only its unpacked files are kept, "
                    "and packed again they are not the same bytes; build the image here, or push it from where it is"
                )
            described = Descriptor(packed.digest, packed.size_bytes, _LAYER_TYPE)
            if self._client.has_blob(packed.digest):
                self._progress(f"{short}: Layer already exists")
            else:
                self._client.push_blob(packed.digest, packed.file, packed.size_bytes)
                self._progress(f"{short}: Pushed")
        return described

    def _from_origin(self, layer: Layer, short: str) -> Descriptor | None:
        """A layer that was pulled: the registry takes it from where it was, or it is fetched from there once more."""
        origin = reference.parse(layer.origin)
        assert origin.digest is not None
        described = Descriptor(origin.digest, layer.origin_bytes, layer.origin_type)
        if self._client.has_blob(described.digest):
            self._progress(f"{short}: Layer already exists")
            return described
        if origin.registry == self._registry and self._client.mount_blob(described.digest, origin.repository):
            self._progress(f"{short}: Mounted from {origin.repository}")
            return described
        source = RegistryClient(origin, self._settings, credentials.find)
        try:
            downloads = Downloads(self._store.root / "downloads", threading.Event())
            with downloads.fetched(source, described, lambda _bytes: None) as file:
                self._client.push_blob(described.digest, file, described.size_bytes)
        except RegistryError as error:
            self._progress(f"{short}: cannot be had from {origin.name} any more ({error})")
            return None
        finally:
            source.close()
        self._progress(f"{short}: Copied from {origin.name}")
        return described

    def _pack(self, chain_id: str, file: BinaryIO) -> _Packed:
        plain, squeezed = hashlib.sha256(), hashlib.sha256()
        squeeze = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        size_bytes = 0

        def write(data: bytes) -> None:
            nonlocal size_bytes
            squeezed.update(data)
            file.write(data)
            size_bytes += len(data)

        def take(data: bytes) -> None:
            plain.update(data)
            view = memoryview(data)
            for start in range(0, len(view), CHUNK_BYTES):
                write(squeeze.compress(view[start : start + CHUNK_BYTES]))

        write_layer(str(self._store.layers.tree(chain_id)), take)
        write(squeeze.flush())
        return _Packed(file, f"sha256:{squeezed.hexdigest()}", f"sha256:{plain.hexdigest()}", size_bytes)


def _written(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size_bytes}
