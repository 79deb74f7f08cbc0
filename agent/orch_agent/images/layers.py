"""Layers of a node: each unpacked once, under the name of the stack it completes, and never changed again.

A layer's folder is named by the first characters of its chain id, because overlayfs wants the folders of all layers
in one page of options; the whole chain id stands in its `layer.json` and is compared.
"""

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from orch_agent.images import digests, files
from orch_agent.images.compression import opened
from orch_agent.images.digests import ByteSource, HashingReader
from orch_agent.images.errors import ArchiveRefused, DigestMismatch, StoreCorrupt
from orch_agent.images.extract import Extractor
from orch_agent.images.limits import UnpackLimits
from orch_agent.images.tarstream import TarStream
from orch_agent.images.tarwrite import write_layer

_FOLDER_NAME_CHARACTERS = 13  # 65 bits in base 32; a clash is detected, not assumed away
_DESCRIPTION = "layer.json"
_TREE = "diff"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in the store.

    Attributes:
        origin: where its archive came from, `registry/repository@digest`; empty: not from a registry.
        origin_bytes: size of that archive.
        origin_type: its media type.
    """

    chain_id: str
    diff_id: str
    entries: int
    size_bytes: int
    origin: str = ""
    origin_bytes: int = 0
    origin_type: str = ""


class LayerStore:
    """The unpacked layers beneath one folder; callers hold the ingest lock while they add."""

    def __init__(self, root: Path, staging: Path, *, durable: bool) -> None:
        """Keep layers in `root`; `staging` is a folder on the same file system, swept by the owner."""
        self._root = root
        self._staging = staging
        self._durable = durable

    def stage(self) -> Path:
        """A new empty folder in the staging area."""
        folder = self._staging / secrets.token_hex(8)
        folder.mkdir()
        return folder

    def tree(self, chain_id: str) -> Path:
        """The folder with the layer's files, for the lower side of an overlay."""
        return self._folder(chain_id) / _TREE

    def get(self, chain_id: str) -> Layer | None:
        """The layer that completes the stack `chain_id`, or None if it is not here.

        Raises:
            StoreCorrupt: its description is unreadable or speaks of another stack.
        """
        path = self._folder(chain_id) / _DESCRIPTION
        try:
            layer = Layer(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise StoreCorrupt(
                f"{path} is unreadable ({error}); remove that folder and load the image again"
            ) from error
        if layer.chain_id != chain_id:
            raise StoreCorrupt(f"{path} belongs to {layer.chain_id}, not to {chain_id}; remove the image that has it")
        return layer

    def chain_ids(self, most: int) -> list[str]:
        """The chain ids of the layers that are here, at most so many; what is unreadable or just going is left out."""
        found: list[str] = []
        with os.scandir(self._root) as entries:
            for entry in entries:
                if len(found) == most:
                    break
                try:
                    found.append(str(json.loads((Path(entry.path) / _DESCRIPTION).read_bytes())["chain_id"]))
                except (OSError, ValueError, TypeError, KeyError):
                    continue
        return found

    def unpack(
        self,
        source: ByteSource,
        *,
        diff_id: str,
        chain_id: str,
        limits: UnpackLimits,
        origin: tuple[str, int, str] = ("", 0, ""),
    ) -> Layer:
        """Unpack a layer's archive, compressed or not, check it and keep it; for `origin` see `Layer`.

        Raises:
            DigestMismatch: the archive is not the layer `diff_id`; nothing is kept.
            ArchiveRefused: it is malformed or hostile; nothing is kept.
        """
        present = self.get(chain_id)
        if present:
            return present
        stage = self.stage()
        try:
            tree = _new_tree(stage)
            hashing = HashingReader(opened(source)[1])
            unpacked = Extractor(str(tree), limits, whiteouts=True).extract(TarStream(hashing, limits))
            hashing.drain()
            if hashing.digest() != diff_id:
                raise DigestMismatch(
                    f"the archive's layer {diff_id} has the content of {hashing.digest()}; "
                    "copy or make the archive again"
                )
            return self._keep(stage, Layer(chain_id, diff_id, unpacked.entries, unpacked.size_bytes, *origin))
        finally:
            files.remove_tree(stage)

    def unpack_rootfs(self, source: ByteSource, *, limits: UnpackLimits) -> Layer:
        """Unpack a root file system's tar as a lowest layer; its digest is found on the way.

        Raises:
            ArchiveRefused: it is malformed, cut off, empty or hostile; nothing is kept.
        """
        stage = self.stage()
        try:
            tree = _new_tree(stage)
            hashing = HashingReader(opened(source)[1])
            unpacked = Extractor(str(tree), limits, whiteouts=False).extract(
                TarStream(hashing, limits, require_end=True)
            )
            hashing.drain()
            if not unpacked.entries:
                raise ArchiveRefused(
                    "the archive of the root file system is empty; make it again, e.g. by tar -C DIR -c ."
                )
            # The digest of the tar that we would write of it, not of the one that came: so it can be pushed, saved and
            # given to other nodes, for which the files are packed again.
            packed = hashlib.sha256()
            write_layer(str(tree), packed.update)
            diff_id = f"sha256:{packed.hexdigest()}"
            present = self.get(diff_id)
            return present or self._keep(stage, Layer(diff_id, diff_id, unpacked.entries, unpacked.size_bytes))
        finally:
            files.remove_tree(stage)

    def adopt(self, tree: Path, parent_chain: str | None) -> Layer:
        """Make a step's written folder a layer: it is moved, not copied; its digest is that of its tar.

        `tree` must be in a folder made by `stage`, and is gone afterwards.
        """
        digest = hashlib.sha256()
        written = write_layer(str(tree), digest.update)
        diff_id = f"sha256:{digest.hexdigest()}"
        chain_id = digests.of_bytes(f"{parent_chain} {diff_id}".encode()) if parent_chain else diff_id
        present = self.get(chain_id)
        if present:
            files.remove_tree(tree)
            return present
        stage = self.stage()
        try:
            tree.rename(stage / _TREE)
            return self._keep(stage, Layer(chain_id, diff_id, written.entries, written.size_bytes))
        finally:
            files.remove_tree(stage)

    def remove_unreferenced(self, referenced: Collection[str]) -> int:
        """Remove every layer whose chain id is not in `referenced`; returns the bytes of their files.

        The caller holds the ingest lock alone, so that no layer is removed between its arrival and its image's.
        """
        kept = {self._folder(chain_id).name for chain_id in referenced}
        freed_bytes = 0
        with os.scandir(self._root) as entries:
            folders = [Path(entry.path) for entry in entries if entry.name not in kept]
        for folder in folders:
            try:
                freed_bytes += Layer(**json.loads((folder / _DESCRIPTION).read_bytes())).size_bytes
            except (OSError, ValueError, TypeError):
                freed_bytes += 0  # a folder without a description is debris: its size is unknown
            trash = self._staging / secrets.token_hex(8)
            folder.rename(trash)
            files.remove_tree(trash)
        return freed_bytes

    def _folder(self, chain_id: str) -> Path:
        raw = bytes.fromhex(digests.hex_of(chain_id))
        return self._root / base64.b32encode(raw).decode().lower()[:_FOLDER_NAME_CHARACTERS]

    def _keep(self, stage: Path, layer: Layer) -> Layer:
        (stage / _DESCRIPTION).write_text(json.dumps(asdict(layer)))
        if self._durable:
            files.sync_tree(stage)
        folder = self._folder(layer.chain_id)
        try:
            stage.rename(folder)
        except OSError:
            # Another process was faster with the same layer; what stands there is complete, as it arrived by rename.
            if self.get(layer.chain_id) is None:
                raise
        if self._durable:
            files.sync_directory(self._root)
        return layer


def _new_tree(stage: Path) -> Path:
    tree = stage / _TREE
    tree.mkdir()
    tree.chmod(0o755)  # the root folder of the task, whatever the umask
    return tree
