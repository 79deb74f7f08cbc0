"""Registries for tests, on loopback: Debian's docker-registry, and one of our own that misbehaves on request."""

import base64
import gzip
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import urllib3

from unit.images.archives import ARCHITECTURE, OCI_INDEX, OCI_MANIFEST, config_of, digest

DOCKER_REGISTRY = shutil.which("docker-registry")
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DEADLINE_S = 15.0


@dataclass
class Content:
    """What an image consists of, as a registry keeps it."""

    manifest: bytes
    media_type: str
    blobs: dict[str, bytes]
    layers: list[bytes] = field(default_factory=list)


def image(
    layers: list[bytes],
    *,
    squeeze: Callable[[bytes], bytes] = lambda raw: gzip.compress(raw, mtime=0),
    kind: str = OCI_MANIFEST,
    config: bytes | None = None,
) -> Content:
    """An image of these layers' tars."""
    docker = kind == DOCKER_MANIFEST
    layer_kind = "application/vnd." + ("docker.image.rootfs.diff.tar.gzip" if docker else "oci.image.layer.v1.tar+gzip")
    blobs: dict[str, bytes] = {}

    def blob(raw: bytes, media_type: str) -> dict[str, Any]:
        blobs[digest(raw)] = raw
        return {"mediaType": media_type, "digest": digest(raw), "size": len(raw)}

    described = [blob(squeeze(layer), layer_kind) for layer in layers]
    config_kind = "application/vnd." + ("docker.container.image.v1+json" if docker else "oci.image.config.v1+json")
    document = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": blob(config or config_of(layers), config_kind),
        "layers": described,
    }
    return Content(json.dumps(document).encode(), kind, blobs, layers)


def index(content: Content, *others: str, ours: bool = True) -> bytes:
    """An index with an image for this machine among those for others."""
    entries = [
        {
            "mediaType": content.media_type,
            "digest": digest(f"other {name}".encode()),
            "size": 7,
            "platform": {"os": "linux", "architecture": name},
        }
        for name in others
    ]
    if ours:
        entries.append(
            {
                "mediaType": content.media_type,
                "digest": digest(content.manifest),
                "size": len(content.manifest),
                "platform": {"os": "linux", "architecture": ARCHITECTURE},
            }
        )
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


class RealRegistry:
    """Debian's docker-registry, a process of its own.

    Args:
        folder: for its state.
        tls: certificate and key, if it shall speak TLS.
    """

    def __init__(self, folder: Path, tls: tuple[Path, Path] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"localhost:{probe.getsockname()[1]}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        http: dict[str, Any] = {"addr": f"127.0.0.1:{self.host.rpartition(':')[2]}"}
        if tls:
            http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        config = folder / "registry.yml"
        state = {"filesystem": {"rootdirectory": str(folder / "registry")}}
        config.write_text(json.dumps({"version": 0.1, "log": {"level": "error"}, "storage": state, "http": http}))
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._pool = urllib3.PoolManager(cert_reqs="CERT_NONE", retries=False, timeout=DEADLINE_S)

    def start(self) -> None:
        """Run it; return when it answers."""
        assert DOCKER_REGISTRY is not None
        command = [DOCKER_REGISTRY, "serve", str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                self._pool.request("GET", f"{self.url}/v2/")
            except urllib3.exceptions.HTTPError:
                assert time.monotonic() < until_s, "the registry does not come up"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it; what it has stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._pool.clear()

    def push(self, repository: str, tag: str, content: Content) -> str:
        """Upload an image; returns the digest of its manifest."""
        for name, raw in content.blobs.items():
            begun = self._pool.request("POST", f"{self.url}/v2/{repository}/blobs/uploads/")
            assert begun.status == 202, begun.data
            place = begun.headers["Location"]
            place = f"{place}{'&' if '?' in place else '?'}digest={name}"
            done = self._pool.request("PUT", place, body=raw, headers={"Content-Type": "application/octet-stream"})
            assert done.status == 201, done.data
        return self.push_manifest(repository, tag, content.manifest, content.media_type)

    def push_manifest(self, repository: str, tag: str, raw: bytes, media_type: str) -> str:
        """Upload a manifest or an index."""
        url = f"{self.url}/v2/{repository}/manifests/{tag}"
        done = self._pool.request("PUT", url, body=raw, headers={"Content-Type": media_type})
        assert done.status == 201, done.data
        return str(done.headers["Docker-Content-Digest"])


class BadRegistry:
    """Serves what it is given, by the specification, except for what it is told to do wrong.

    Attributes:
        break_after: bytes after which each answer with a blob breaks off; 0: never.
        with_ranges: whether it can begin in the middle.
        user: name and password that it wants; anonymous callers get a token too when `anonymous`.
        blobs_at: another registry's address that it sends callers to for blobs.
        pause_s: between two pieces of a blob.
        seen: what was asked: path and headers.
    """

    def __init__(self) -> None:
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.break_after = 0
        self.with_ranges = True
        self.user: tuple[str, str] | None = None
        self.anonymous = False
        self.blobs_at = ""
        self.pause_s = 0.0
        self.status = 0
        self.served_bytes = 0
        self.seen: list[tuple[str, dict[str, str]]] = []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                with suppress(BrokenPipeError, ConnectionResetError):
                    registry.serve(self)

            do_HEAD = do_GET  # noqa: N815 -- the name is the library's

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, name: str, content: Content, raw: bytes | None = None, media_type: str = "") -> str:
        """Have an image under a tag; `raw` is an index that leads to it."""
        self.blobs.update(content.blobs)
        self.manifests[digest(content.manifest)] = (content.manifest, content.media_type)
        top = (raw, media_type) if raw is not None else (content.manifest, content.media_type)
        self.manifests[name] = self.manifests[digest(top[0])] = top
        return digest(top[0])

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = handler.path
        self.seen.append((path, dict(handler.headers.items())))
        if path.startswith("/token"):
            self._token(handler)
            return
        said = handler.headers.get("Authorization", "")
        if self.user and said != "Bearer good":
            realm = f'Bearer realm="http://{self.host}/token",service="test",scope="ignored"'
            self._send(handler, 401, b"{}", {"WWW-Authenticate": realm})
        elif self.status:
            self._send(handler, self.status, b'{"errors":[{"code":"X","message":"not today"}]}', {})
        elif match := re.fullmatch(r"/v2/.+/manifests/([^/]+)", path):
            raw, kind = self.manifests.get(match[1], (b'{"errors":[{"message":"manifest unknown"}]}', ""))
            self._send(handler, 200 if kind else 404, raw, {"Content-Type": kind or "application/json"})
        elif match := re.fullmatch(r"/v2/.+/blobs/([^/]+)", path):
            if self.blobs_at:
                self._send(handler, 307, b"", {"Location": f"http://{self.blobs_at}{path}"})
            else:
                self._blob(handler, self.blobs[match[1]])
        else:
            self._send(handler, 404, b"", {})

    def _token(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = base64.b64encode(":".join(self.user or ("", "")).encode()).decode()
        said = handler.headers.get("Authorization", "")
        good = said == f"Basic {wanted}" or (self.anonymous and not said)
        self._send(handler, 200 if good else 401, b'{"token":"good"}' if good else b"{}", {})

    def _blob(self, handler: BaseHTTPRequestHandler, raw: bytes) -> None:
        begin = handler.headers.get("Range", "")
        status = 200
        if begin and self.with_ranges:
            raw, status = raw[int(begin.removeprefix("bytes=").rstrip("-")) :], 206
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        part = raw[: self.break_after] if self.break_after else raw
        for start in range(0, len(part), 4096):
            handler.wfile.write(part[start : start + 4096])
            self.served_bytes += len(part[start : start + 4096])
            if self.pause_s:
                handler.wfile.flush()
                time.sleep(self.pause_s)
        if len(part) < len(raw):
            handler.close_connection = True

    def _send(self, handler: BaseHTTPRequestHandler, status: int, raw: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(raw)
