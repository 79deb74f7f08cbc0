"""Pulling: from a name to an image in the store.

The image becomes visible when all of it is there and checked: manifest and config by digest, each layer by the digest
of its archive and, unpacked, by that in the config.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from typing import BinaryIO

from orch_agent.images import digests, reference
from orch_agent.images.archive import host_architecture
from orch_agent.images.errors import ArchiveRefused, ImageNotFound, LimitExceeded
from orch_agent.images.limits import DEFAULT_ARCHIVE_LIMITS, DEFAULT_UNPACK_LIMITS
from orch_agent.images.model import ImageInfo, read_config
from orch_agent.images.reference import DEFAULT_TAG, Reference
from orch_agent.images.registry import credentials, manifests
from orch_agent.images.registry.client import Document, RegistryClient
from orch_agent.images.registry.download import Downloads, PullStopped
from orch_agent.images.registry.manifests import Descriptor, Manifest
from orch_agent.images.registry.settings import Settings, read_settings
from orch_agent.images.store import ImageStore

#: Blobs fetched at once, as docker does.
PARALLEL = 3
Progress = Callable[[str], None]
#: A download that is open, and its file.
_Entered = tuple[AbstractContextManager[BinaryIO], BinaryIO]


def resolve(name: str, settings: Settings | None = None) -> str:
    """The name with the digest that the registry has for it now: what a deploy pins.

    Raises:
        InvalidReference: it is no name.
        RegistryError: the registry does not say.
    """
    wanted = reference.parse(name)
    client = RegistryClient(wanted, settings or read_settings(), credentials.find)
    try:
        found = client.manifest(wanted.digest or wanted.tag or DEFAULT_TAG)
    finally:
        client.close()
    return replace(wanted, tag=None, digest=found.digest).canonical


def pull(store: ImageStore, name: str, progress: Progress, settings: Settings | None = None) -> ImageInfo:
    """Fetch what a name means in its registry, as far as it is not here, and keep it under that name.

    Raises:
        InvalidReference: it is no name.
        RegistryError: the registry, or the way to it, refused.
        ArchiveRefused: what came is malformed, hostile, or not for this machine.
    """
    wanted = reference.parse(name)
    client = RegistryClient(wanted, settings or read_settings(), credentials.find)
    stop = threading.Event()
    try:
        progress(f"{wanted.tag or wanted.digest}: Pulling from {wanted.familiar_name}")
        named = client.manifest(wanted.digest or wanted.tag or DEFAULT_TAG)
        document, manifest = _manifest(client, named)
        names = _names(wanted, named)
        present = _present(store, wanted, document)
        with store.ingesting():
            config_raw = client.document(manifest.config)
            downloads = Downloads(store.root / "downloads", stop)
            layers = _Layers(wanted.name, store, client, downloads, stop=stop, progress=progress)
            layers.bring(manifest, config_raw)
            info = store.register(config_raw, references=names, manifest_raw=document.raw)
        progress(f"Digest: {named.digest}")
        state = "Image is up to date" if present else "Downloaded newer image"
        progress(f"Status: {state} for {wanted.familiar}")
    finally:
        stop.set()
        client.close()
    store.collect_garbage()
    return info


def _manifest(client: RegistryClient, named: Document) -> tuple[Document, Manifest]:
    document = named
    for _ in range(DEFAULT_ARCHIVE_LIMITS.index_depth):
        found = manifests.read(document.raw, document.media_type)
        if isinstance(found, Manifest):
            return document, found
        document = client.manifest(found.digest)
    raise LimitExceeded("the image's indexes are nested too deeply; push the image again")


def _names(wanted: Reference, named: Document) -> tuple[Reference, ...]:
    """The digest that the registry knows it by, which a deploy pins, and its tag. An index's is not its manifest's."""
    by_digest = replace(wanted, tag=None, digest=named.digest)
    return (by_digest, wanted) if wanted.digest is None else (by_digest,)


def _present(store: ImageStore, wanted: Reference, document: Document) -> bool:
    try:
        return store.resolve(wanted.canonical).manifest_digest == document.digest
    except ImageNotFound:
        return False


class _Layers:
    """Brings the layers that are missing: fetched side by side, unpacked in order."""

    def __init__(
        self,
        name: str,
        store: ImageStore,
        client: RegistryClient,
        downloads: Downloads,
        *,
        stop: threading.Event,
        progress: Progress,
    ) -> None:
        self._name = name
        self._store = store
        self._client = client
        self._downloads = downloads
        self._stop = stop
        self._progress = progress

    def bring(self, manifest: Manifest, config_raw: bytes) -> None:
        """Have all layers of an image in the store."""
        document = read_config(config_raw)
        if len(document.diff_ids) != len(manifest.layers):
            raise ArchiveRefused(
                f"the image has {len(manifest.layers)} layers but its config names {len(document.diff_ids)}; "
                "push it again"
            )
        if document.config.os != "linux" or document.config.architecture not in ("", host_architecture()):
            raise ArchiveRefused(
                f"the image is for {document.config.os}/{document.config.architecture}, this node is "
                f"linux/{host_architecture()}; use another tag"
            )
        self._downloads.sweep()
        chains = digests.chain_ids(document.diff_ids)
        missing = []
        for layer, diff_id, chain_id in zip(manifest.layers, document.diff_ids, chains, strict=True):
            if self._store.layers.get(chain_id):
                self._progress(f"{_short(layer)}: Already exists")
            else:
                missing.append((layer, diff_id, chain_id))
        under_way: list[Future[_Entered] | None] = []
        with ExitStack() as cleanup:
            cleanup.callback(_abandon, under_way)
            pool = cleanup.enter_context(ThreadPoolExecutor(PARALLEL, thread_name_prefix="pull"))
            cleanup.callback(pool.shutdown, wait=False, cancel_futures=True)
            cleanup.callback(self._stop.set)
            first_of: dict[str, str] = {}
            for layer, _, chain_id in missing:
                # The same archive twice is fetched twice, one after the other: the first removes its file.
                first_of.setdefault(layer.digest, chain_id)
                under_way.append(pool.submit(self._enter, layer) if first_of[layer.digest] == chain_id else None)
            for place, (layer, diff_id, chain_id) in enumerate(missing):
                fetching, under_way[place] = under_way[place], None
                fetched, file = fetching.result() if fetching is not None else self._enter(layer)
                with ExitStack() as leaving:
                    leaving.push(fetched.__exit__)
                    self._store.layers.unpack(
                        file,
                        diff_id=diff_id,
                        chain_id=chain_id,
                        limits=DEFAULT_UNPACK_LIMITS,
                        origin=(f"{self._name}@{layer.digest}", layer.size_bytes, layer.media_type),
                    )
                self._progress(f"{_short(layer)}: Pull complete")

    def _enter(self, layer: Descriptor) -> _Entered:
        fetched = self._downloads.fetched(self._client, layer, lambda _bytes: None)
        file = fetched.__enter__()
        self._progress(f"{_short(layer)}: Download complete")
        return fetched, file


def _abandon(under_way: list[Future[_Entered] | None]) -> None:
    """Let go of what was fetched and is not wanted any more; its bytes stay for next time."""
    for fetching in under_way:
        if fetching is not None and not fetching.cancelled() and fetching.exception() is None:
            stopped = PullStopped("the pull was stopped")
            with suppress(PullStopped):
                fetching.result()[0].__exit__(PullStopped, stopped, None)


def _short(layer: Descriptor) -> str:
    return digests.hex_of(layer.digest)[:12]
