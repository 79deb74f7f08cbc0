"""Makes archives for tests: tars entry by entry, `docker save` archives, OCI layouts."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable
from typing import Any

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One entry; `fields` set attributes of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, **({"mode": 0o755} | fields))


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def digest(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def config_of(layers: Iterable[bytes], **inner: Any) -> bytes:
    return json.dumps(
        {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": inner,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
    ).encode()


def docker_save(*images: tuple[list[bytes], list[str]], config: bytes | None = None) -> bytes:
    """An archive as docker 20 writes it: each image is its layers' tars and its names."""
    files: dict[str, bytes] = {}
    manifest = []
    for layers, names in images:
        raw = config or config_of(layers)
        config_name = f"{digest(raw)[7:]}.json"
        files[config_name] = raw
        paths = []
        for layer in layers:
            path = f"{digest(layer)[7:20]}/layer.tar"
            files[path] = layer
            paths.append(path)
        manifest.append({"Config": config_name, "RepoTags": names, "Layers": paths})
    files["manifest.json"] = json.dumps(manifest).encode()
    return tar(*(entry(name, content) for name, content in files.items()))


def oci_layout(
    layers: list[bytes],
    name: str,
    *,
    compress: bool = True,
    nested: bool = False,
    spoil: bool = False,
    platforms: tuple[str, ...] = (),
) -> bytes:
    """An OCI image layout; `nested` puts an index of platforms between; `spoil` changes a byte of the last layer."""
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def blob(raw: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        files[f"blobs/sha256/{digest(raw)[7:]}"] = raw
        return {"mediaType": media_type, "digest": digest(raw), "size": len(raw), **more}

    kind = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if compress else "")
    blobs = [gzip.compress(layer, mtime=0) if compress else layer for layer in layers]
    layer_descriptors = [blob(raw, kind) for raw in blobs]
    config = blob(config_of(layers), "application/vnd.oci.image.config.v1+json")
    manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": layer_descriptors}).encode()
    annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "latest"}
    top = blob(manifest, OCI_MANIFEST, annotations=annotations)
    if nested:
        others = [
            blob(b'{"other":"%s"}' % arch.encode(), OCI_MANIFEST, platform={"os": "linux", "architecture": arch})
            for arch in platforms
        ]
        ours = {**top, "platform": {"os": "linux", "architecture": ARCHITECTURE}}
        index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*others, ours]}).encode()
        top = blob(index, OCI_INDEX, annotations=annotations)
    if spoil:
        path = f"blobs/sha256/{digest(blobs[-1])[7:]}"
        raw = bytearray(files[path])
        raw[len(raw) // 2] ^= 1
        files[path] = bytes(raw)
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    return tar(*(entry(path, content) for path, content in files.items()))
