"""The images of a node: found by name or id, added, named, removed; layers shared between them.

On disk, below the store's root:

    blobs/sha256/HEX    config and manifest documents, by digest
    layers/SHORT/       one unpacked layer: `diff/`, and `layer.json` with its whole chain id
    images.json         the table of images and names
    cache/              the layer of each build step, by what went into the step (steps.py)
    empty/              the layer of images that have none, as overlayfs needs one
    staging/            work in progress, swept when nobody works
    lock, ingest.lock   see below

Several processes may use one store. `lock` is held for each change of the table. `ingest.lock` is held shared while
something is loaded, imported or built, and alone by whoever removes unreferenced layers and leftovers, so that a layer
cannot vanish between its arrival and its image's entry in the table; if somebody works, removing waits for the next
occasion. A crash leaves files in `staging/` only.
"""

import contextlib
import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orch_agent.images import archive, digests, files, index, reference, rootfs
from orch_agent.images.errors import DigestMismatch, ImageInUse, ImageNotFound, InvalidReference, StoreCorrupt
from orch_agent.images.index import Index, IndexEntry
from orch_agent.images.layers import LayerStore
from orch_agent.images.limits import DEFAULT_ARCHIVE_LIMITS, DEFAULT_UNPACK_LIMITS, ArchiveLimits, UnpackLimits
from orch_agent.images.model import ConfigDocument, ImageInfo, read_config, write_config
from orch_agent.images.steps import StepCache

_ID = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})\Z")
_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True)
class Removal:
    """What `ImageStore.remove` did."""

    untagged: tuple[str, ...]
    deleted_id: str | None
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes of an image's files: those it has in common with other images, and those only it needs."""

    shared_bytes: int
    unique_bytes: int


class ImageStore:
    """The entrance to a node's images; see the module's text for the layout and the locks."""

    def __init__(
        self,
        root: Path,
        *,
        durable: bool = True,
        unpack_limits: UnpackLimits = DEFAULT_UNPACK_LIMITS,
        archive_limits: ArchiveLimits = DEFAULT_ARCHIVE_LIMITS,
    ) -> None:
        """Open the store at `root`, making it if missing, and sweep what a crash left.

        With `durable` an image that was reported survives a loss of power; without it the disk is not waited for.
        """
        self.root = root
        self._durable = durable
        self._unpack_limits = unpack_limits
        self._archive_limits = archive_limits
        self._table = root / "images.json"
        self._blobs = root / "blobs" / "sha256"
        self._staging = root / "staging"
        for folder in (root, self._blobs, root / "layers", self._staging, root / "cache", root / "empty"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (root / "empty").chmod(0o755)
        self.layers = LayerStore(root / "layers", self._staging, durable=durable)
        self.steps = StepCache(root / "cache")
        self.collect_garbage()

    # ---- finding --------------------------------------------------------------------------------

    def resolve(self, name_or_id: str) -> ImageInfo:
        """The image of a name in any of its forms, of an id, or of an id's unique beginning (4 digits or more).

        Raises:
            ImageNotFound: with the nearest names, and how to get an image.
        """
        table = index.read(self._table)
        return self._info(table, self._find(table, name_or_id))

    def list(self) -> tuple[ImageInfo, ...]:
        """All images, named ones first, sorted by name."""
        table = index.read(self._table)
        infos = [self._info(table, entry) for entry in table.images.values()]
        return tuple(sorted(infos, key=lambda info: (not info.references, info.references, info.id)))

    def lower_dirs(self, image: ImageInfo) -> tuple[str, ...]:
        """The folders of an image's layers for an overlay, topmost first.

        Raises:
            StoreCorrupt: a layer is missing.
        """
        return self.lower_dirs_of(image.chain_ids)

    def lower_dirs_of(self, chain_ids: tuple[str, ...]) -> tuple[str, ...]:
        """The folders of stacked layers, topmost first; an empty folder where there is no layer.

        Raises:
            StoreCorrupt: a layer is missing.
        """
        for chain_id in chain_ids:
            if self.layers.get(chain_id) is None:
                raise StoreCorrupt(f"the layer {chain_id} is missing from {self.root}; remove and load its image again")
        trees = tuple(str(self.layers.tree(chain_id)) for chain_id in reversed(chain_ids))
        return trees or (str(self.root / "empty"),)

    def document(self, image: ImageInfo) -> ConfigDocument:
        """The image's whole config document, with its history."""
        return read_config(self._read_blob(image.id))

    def config_raw(self, image: ImageInfo) -> bytes:
        """The image's configuration, byte by byte."""
        return self._read_blob(image.id)

    def manifest_raw(self, image: ImageInfo) -> bytes:
        """The manifest that the image came with, byte by byte; empty: it was made here."""
        return self._read_blob(image.manifest_digest) if image.manifest_digest else b""

    def mark_used(self, image_id: str) -> None:
        """Note that the image is used now: what was used the longest time ago goes first when the disk is full."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._blobs / digests.hex_of(image_id))

    def last_used_s(self, image_id: str) -> float:
        """When the image came or was last used, Unix time; 0 if it is not here."""
        try:
            return (self._blobs / digests.hex_of(image_id)).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def disk_usage(self) -> Mapping[str, DiskUsage]:
        """Shared and own bytes of each image, by id."""
        table = index.read(self._table)
        users: dict[str, int] = {}
        for entry in table.images.values():
            for chain_id in entry.chain_ids:
                users[chain_id] = users.get(chain_id, 0) + 1
        sizes = {chain_id: layer.size_bytes for chain_id in users if (layer := self.layers.get(chain_id))}
        return {
            entry.id: DiskUsage(
                shared_bytes=sum(sizes.get(chain, 0) for chain in entry.chain_ids if users[chain] > 1),
                unique_bytes=sum(sizes.get(chain, 0) for chain in entry.chain_ids if users[chain] == 1),
            )
            for entry in table.images.values()
        }

    # ---- adding ---------------------------------------------------------------------------------

    def load(self, source: BinaryIO | Path) -> tuple[ImageInfo, ...]:
        """Load every image of a `docker save` archive or OCI layout in a tar (plain, gzip, xz, bzip2, zstd).

        An image becomes visible only when all its digests were checked; images before a bad one stay loaded.

        Raises:
            ArchiveRefused: the archive is malformed, hostile or too large.
        """
        with self.ingesting():
            found = archive.load(source, self.layers, self._staging, self._archive_limits, self._unpack_limits)
            infos = tuple(
                self.register(image.config_raw, references=image.references, manifest_raw=image.manifest_raw)
                for image in found
            )
        self.collect_garbage()
        return infos

    def accept(self, source: Path, image_id: str, name: str) -> ImageInfo:
        """Take in the one image that was asked for from an archive that another node made; layers may be left out.

        It gets the name `name` and no other, whatever the archive says.

        Raises:
            ArchiveRefused: the archive is malformed, hostile or too large, or has another image.
            InvalidReference: the name is not one.
        """
        parsed = reference.parse(name)
        with self.ingesting():
            found = archive.load(source, self.layers, self._staging, self._archive_limits, self._unpack_limits)
            raws = [image.config_raw for image in found]
            if [digests.of_bytes(raw) for raw in raws] != [image_id]:
                raise DigestMismatch(f"what was sent for {name} is not the image {image_id[:19]}; look at that node")
            info = self.register(raws[0], references=() if parsed.digest else (parsed,))
        self.collect_garbage()
        return info

    def import_rootfs(self, tar: BinaryIO | Path, name: str | None, *, changes: Collection[str] = ()) -> ImageInfo:
        """Make an image of one layer from the tar of a root file system (plain, gzip, xz, bzip2, zstd).

        `changes` are Dockerfile lines such as `CMD ["sh"]`, `ENV A=1` that set the image's configuration.

        Raises:
            ArchiveRefused: the tar is malformed, hostile or too large.
            InvalidReference: the name is not one.
        """
        names = (reference.parse(name),) if name else ()
        with self.ingesting():
            document = rootfs.import_rootfs(tar, self.layers, self._unpack_limits, changes)
            info = self.register(write_config(document), references=names)
        self.collect_garbage()
        return info

    def register(
        self, config_raw: bytes, *, references: Collection[reference.Reference] = (), manifest_raw: bytes = b""
    ) -> ImageInfo:
        """Add an image whose layers are in the store; the caller is within `ingesting()`.

        Raises:
            StoreCorrupt: a layer is not in the store.
        """
        document = read_config(config_raw)
        chains = digests.chain_ids(document.diff_ids)
        size_bytes = 0
        for chain_id in chains:
            layer = self.layers.get(chain_id)
            if layer is None:
                raise StoreCorrupt(
                    f"the layer {chain_id} is missing although it was just unpacked; load the image again"
                )
            size_bytes += layer.size_bytes
        image_id = self._write_blob(config_raw)
        manifest_digest = self._write_blob(manifest_raw) if manifest_raw else ""
        entry = IndexEntry(image_id, chains, size_bytes, manifest_digest)
        with files.locked(self.root / "lock"):
            table = index.read(self._table).with_image(entry, tuple(ref.canonical for ref in references))
            index.write(self._table, table, durable=self._durable)
        return self._info(table, entry)

    def tag(self, source: str, target: str) -> ImageInfo:
        """Give an image a further name; a name that pointed elsewhere moves.

        Raises:
            ImageNotFound: there is no image `source`.
            InvalidReference: `target` is not a name, or has a digest.
        """
        new = reference.parse(target)
        if new.digest:
            raise InvalidReference(f"cannot tag as {target!r}: a digest is computed, not given; leave out the @ part")
        with files.locked(self.root / "lock"):
            table = index.read(self._table)
            entry = self._find(table, source)
            table = table.with_image(entry, (new.canonical,))
            index.write(self._table, table, durable=self._durable)
        return self._info(table, entry)

    # ---- removing -------------------------------------------------------------------------------

    def remove(self, name_or_id: str, *, in_use: Collection[str], force: bool = False) -> Removal:
        """Remove a name; with the last one, the image and the layers that nothing else needs.

        `in_use` are the ids of images that tasks run from. They are never deleted; with `force` such an image only
        loses its name. An id of an image with several names needs `force` too.

        Raises:
            ImageNotFound: there is no such image.
            ImageInUse: tasks or several names hold it, and `force` was not given.
        """
        with files.locked(self.root / "lock"):
            table = index.read(self._table)
            entry = self._find(table, name_or_id)
            names = table.names_of(entry.id)
            by_name = self._canonical_in(table, name_or_id)
            going = _going_with(by_name, names) if by_name else names
            last = len(going) == len(names)
            if not by_name and len(names) > 1 and not force:
                raise ImageInUse(
                    f"image {name_or_id} has {len(names)} names ({', '.join(_familiar(names))}); "
                    "remove them by name, or use --force"
                )
            used = entry.id in in_use
            if last and used and not force:
                raise ImageInUse(
                    f"image {name_or_id} is used by a task; remove its service first, or use --force to untag"
                )
            deleted = last and not used
            table = table.without_image(entry.id) if deleted else table.without_names(going)
            index.write(self._table, table, durable=self._durable)
        freed_bytes = self.collect_garbage() if deleted else 0
        return Removal(_familiar(going), entry.id if deleted else None, freed_bytes)

    def collect_garbage(self) -> int:
        """Remove leftovers and layers that neither an image nor the build cache needs; returns freed bytes.

        Does nothing (and returns 0) while a process loads, imports or builds: the end of that work collects.
        """
        with files.locked_if_free(self.root / "ingest.lock") as alone:
            if not alone:
                return 0
            with files.locked(self.root / "lock"):
                table = index.read(self._table)
            for leftover in self._staging.iterdir():
                files.remove_tree(leftover)
            for folder in (self.root, self._blobs, self.root / "cache"):
                for leftover in folder.glob(".*"):
                    files.remove_tree(leftover)
            kept_blobs = {
                digests.hex_of(digest) for e in table.images.values() for digest in (e.id, e.manifest_digest) if digest
            }
            for blob in self._blobs.iterdir():
                if blob.name not in kept_blobs:
                    blob.unlink()
            needed = {chain_id for entry in table.images.values() for chain_id in entry.chain_ids}
            needed |= {step.chain_id for step in self.steps.records() if step.chain_id}
            return self.layers.remove_unreferenced(needed)

    @contextlib.contextmanager
    def ingesting(self) -> Iterator[None]:
        """Keep layers from being collected while an image is being made; many may work at once."""
        with files.locked(self.root / "ingest.lock", shared=True):
            yield

    # ---- inside ---------------------------------------------------------------------------------

    def _find(self, table: Index, name_or_id: str) -> IndexEntry:
        canonical = self._canonical_in(table, name_or_id)
        if canonical:
            return table.images[table.references[canonical]]
        matches = self._by_id(table, name_or_id)
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ImageNotFound(f"{name_or_id!r} begins the ids of {len(matches)} images; write more digits of the id")
        known = _familiar(tuple(table.references))
        near = difflib.get_close_matches(name_or_id, known, _SUGGESTIONS, 0.6)
        hint = f"did you mean {' or '.join(near)}? Otherwise " if near else ""
        raise ImageNotFound(
            f"no image {name_or_id!r} on this node; {hint}get it by "
            "orch image pull, orch image load, orch image import or orch image build"
        )

    @staticmethod
    def _canonical_in(table: Index, name: str) -> str | None:
        try:
            parsed = reference.parse(name)
        except InvalidReference:
            return None
        if parsed.canonical in table.references:
            return parsed.canonical
        if parsed.digest is None:
            return None
        for canonical, image_id in table.references.items():
            same_name = reference.parse(canonical).name == parsed.name
            if same_name and parsed.digest in (image_id, table.images[image_id].manifest_digest):
                return canonical
        return None

    @staticmethod
    def _by_id(table: Index, text: str) -> tuple[IndexEntry, ...]:
        match = _ID.match(text)
        if not match:
            return ()
        start = f"sha256:{match.group(1)}"
        return tuple(entry for key, entry in table.images.items() if key.startswith(start))

    def _info(self, table: Index, entry: IndexEntry) -> ImageInfo:
        document = read_config(self._read_blob(entry.id))
        return ImageInfo(
            id=entry.id,
            references=_familiar(table.names_of(entry.id)),
            config=document.config,
            diff_ids=document.diff_ids,
            chain_ids=entry.chain_ids,
            size_bytes=entry.size_bytes,
            created=document.created,
            manifest_digest=entry.manifest_digest,
        )

    def _read_blob(self, digest: str) -> bytes:
        path = self._blobs / digests.hex_of(digest)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise StoreCorrupt(f"{path} is missing; remove the image and load it again") from None
        if digests.of_bytes(raw) != digest:
            raise StoreCorrupt(f"{path} is damaged: its content has another digest; remove the image and load it again")
        return raw

    def _write_blob(self, raw: bytes) -> str:
        digest = digests.of_bytes(raw)
        path = self._blobs / digests.hex_of(digest)
        if path.exists():
            os.utime(path)
        else:
            files.write_atomically(path, raw, durable=self._durable)
        return digest


def _going_with(name: str, names: Collection[str]) -> tuple[str, ...]:
    """A name, and with the last tag of its repository the digests that a registry knew it by."""
    repository = reference.parse(name).name
    alike = [other for other in names if other != name and reference.parse(other).name == repository]
    return (name,) if any("@" not in other for other in alike) else (name, *alike)


def _familiar(names: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(reference.parse(name).familiar for name in names))
