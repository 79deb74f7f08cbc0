"""Archives of images that orch writes: read again here, by other tools, and by nodes that have a part already."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from orch_agent.images import digests, reference
from orch_agent.images.errors import ArchiveRefused, DigestMismatch, ImageNotFound
from orch_agent.images.model import ConfigDocument, ImageConfig, write_config
from orch_agent.images.registry.pull import pull
from orch_agent.images.registry.settings import Settings
from orch_agent.images.saving import Saving
from orch_agent.images.store import ImageStore
from unit.images.archives import ARCHITECTURE, docker_save, entry, folder, tar
from unit.images.registries import DOCKER_REGISTRY, RealRegistry, image


def built(store: ImageStore, name: str, *contents: bytes) -> str:
    """An image with a layer for each content, as a build makes them; returns its id."""
    diff_ids: list[str] = []
    with store.ingesting():
        chain = None
        for number, content in enumerate(contents):
            stage = store.layers.stage()
            (stage / "tree").mkdir()
            (stage / "tree" / f"file{number}").write_bytes(content)
            layer = store.layers.adopt(stage / "tree", chain)
            chain = layer.chain_id
            diff_ids.append(layer.diff_id)
        document = ConfigDocument(ImageConfig(architecture=ARCHITECTURE), tuple(diff_ids), (), "")
        return store.register(write_config(document), references=(reference.parse(name),)).id


def saved(store: ImageStore, *names: str, leave_out: tuple[str, ...] = (), made_here: bool = False) -> bytes:
    written = io.BytesIO()
    Saving(store, written.write, leave_out=leave_out, made_here=made_here, settings=Settings()).save(names)
    return written.getvalue()


def members(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        return found.getnames()


def other_store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "other", durable=False)


def test_what_is_saved_is_loaded_as_the_same_image(store: ImageStore, tmp_path: Path) -> None:
    """With its names, and byte by byte the same when it is saved again there."""
    first, second = built(store, "web:1", b"base", b"one"), built(store, "web:2", b"base", b"two")
    store.tag("web:2", "web:latest")
    archive = saved(store, "web:1", "web:2", "web:latest")
    assert len([name for name in members(archive) if name.startswith("blobs/")]) == 2 + 3 + 2, "base stands in it once"
    other = other_store(tmp_path)
    assert [info.id for info in other.load(io.BytesIO(archive))] == [first, second]
    assert other.resolve("web:latest").id == second
    assert saved(other, "web:1", "web:2", "web:latest") == archive
    by_id = other_store(tmp_path / "by-id")
    by_id.load(io.BytesIO(saved(store, first)))
    assert by_id.resolve(first).references == (), "saved by its id, it has no name"


def test_it_is_an_oci_layout_too(store: ImageStore) -> None:
    """index.json leads to each blob by digest and size, and names the image as containerd does."""
    built(store, "web:1", b"base")
    with tarfile.open(fileobj=io.BytesIO(saved(store, "web:1"))) as archive:

        def blob(descriptor: dict[str, object]) -> bytes:
            file = archive.extractfile(f"blobs/sha256/{digests.hex_of(str(descriptor['digest']))}")
            assert file is not None
            raw = file.read()
            assert digests.of_bytes(raw) == descriptor["digest"]
            assert len(raw) == descriptor["size"]
            return raw

        index = archive.extractfile("index.json")
        assert index is not None
        (entry_,) = json.loads(index.read())["manifests"]
        assert entry_["annotations"] == {"io.containerd.image.name": "docker.io/library/web:1"}
        manifest = json.loads(blob(entry_))
        blob(manifest["config"])
        for layer in manifest["layers"]:
            blob(layer)
        layout = archive.extractfile("oci-layout")
        assert layout is not None
        assert json.loads(layout.read()) == {"imageLayoutVersion": "1.0.0"}


@pytest.mark.skipif(shutil.which("podman") is None, reason="needs podman")
def test_podman_loads_both_forms(store: ImageStore) -> None:
    """Another project's tool finds the image by its name and its id, in docker's form and in OCI's."""
    image_id = built(store, "web:1", b"base", b"top")
    for form in ("docker-archive", "oci-archive"):
        with tempfile.TemporaryDirectory(prefix="pm") as place:  # podman wants short paths
            archive = Path(place) / "web.tar"
            archive.write_bytes(saved(store, "web:1"))
            words = ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--tmpdir", f"{place}/tmp",
                     "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]  # fmt: skip
            pulled = subprocess.run(
                [*words, "pull", "-q", f"{form}:{archive}"], capture_output=True, text=True, timeout=60, check=False
            )
            assert pulled.stdout.split() == [digests.hex_of(image_id)], pulled.stderr
            subprocess.run([*words, "rmi", "--all", "--force"], capture_output=True, timeout=60, check=True)


def test_layers_that_are_there_are_left_out(store: ImageStore, tmp_path: Path) -> None:
    """A node that has the base is sent the rest; one that has not cannot take it, and keeps nothing."""
    base, whole = built(store, "base:1", b"base" * 10_000), built(store, "web:1", b"base" * 10_000, b"one")
    has_base = other_store(tmp_path)
    has_base.load(io.BytesIO(saved(store, "base:1")))
    rest = tmp_path / "rest.tar"
    rest.write_bytes(saved(store, whole, leave_out=tuple(has_base.layers.chain_ids(100))))
    assert rest.stat().st_size < 20_000
    assert has_base.accept(rest, whole, "web:1").references == ("web:1",)
    assert has_base.resolve("base:1").id == base
    empty = other_store(tmp_path / "empty")
    with pytest.raises(ArchiveRefused, match="does not hold"):
        empty.accept(rest, whole, "web:1")
    assert empty.list() == ()
    assert empty.layers.chain_ids(100) == []


def test_a_node_takes_the_image_it_asked_for_alone(store: ImageStore, tmp_path: Path) -> None:
    """Another image is refused, and names in the archive count for nothing."""
    wanted, another = built(store, "postgres:16", b"one"), built(store, "web:1", b"two")
    other = other_store(tmp_path)
    path = tmp_path / "sent.tar"
    path.write_bytes(saved(store, "web:1"))
    with pytest.raises(DigestMismatch, match="is not the image"):
        other.accept(path, wanted, "web:1")
    path.write_bytes(saved(store, "web:1", "postgres:16"))
    with pytest.raises(DigestMismatch, match="is not the image"):
        other.accept(path, another, "web:1")
    path.write_bytes(saved(store, "postgres:16"))
    assert other.accept(path, wanted, "mine:1").references == ("mine:1",)
    assert [info.references for info in other.list()] == [("mine:1",)]


def test_an_imported_root_file_system_can_be_saved(store: ImageStore, tmp_path: Path) -> None:
    """Its digest is that of its files as orch packs them, whatever tool packed the tar that came."""
    strange = tar(entry("./etc/motd", b"hello", uname="somebody", mtime=5), folder("./etc"), form=tarfile.GNU_FORMAT)
    info = store.import_rootfs(io.BytesIO(strange), "root:1")
    other = other_store(tmp_path)
    other.load(io.BytesIO(saved(store, "root:1")))
    assert other.resolve("root:1").id == info.id


def test_a_layer_that_cannot_be_made_again_is_refused(store: ImageStore) -> None:
    """One that came in an archive of another tool, whose bytes are gone: it says what to do."""
    layer = tar(entry("f", b"x", uname="somebody"), form=tarfile.GNU_FORMAT)
    store.load(io.BytesIO(docker_save(([layer], ["strange:1"]))))
    with pytest.raises(DigestMismatch, match="load the archive there"):
        saved(store, "strange:1")


@pytest.mark.skipif(DOCKER_REGISTRY is None, reason="needs docker-registry")
def test_a_pulled_image(store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers are fetched once more; another node is sent to the registry for them, at once."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with RealRegistry(tmp_path) as registry:
        layer = tar(entry("f", b"x" * 5000, uname="somebody"), form=tarfile.GNU_FORMAT)
        registry.push("team/app", "1", image([layer]))
        name = f"{registry.host}/team/app:1"
        pulled = pull(store, name, lambda _text: None, Settings())
        with pytest.raises(ImageNotFound, match=f"came from {registry.host}/team/app"):
            saved(store, pulled.id, made_here=True)
        other = other_store(tmp_path)
        other.load(io.BytesIO(saved(store, name)))
        assert other.resolve(name).id == pulled.id


def test_nothing_is_written_for_an_image_that_is_not_there(store: ImageStore) -> None:
    """The first byte comes after every name was found."""
    built(store, "web:1", b"base")
    written = io.BytesIO()
    with pytest.raises(ImageNotFound):
        Saving(store, written.write).save(["web:1", "web:2"])
    assert written.getvalue() == b""
