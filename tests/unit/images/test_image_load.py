import gzip
import io
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orch_agent.images.errors import ArchiveRefused, DigestMismatch, ImageNotFound, LimitExceeded
from orch_agent.images.limits import UnpackLimits
from orch_agent.images.store import ImageStore
from unit.images.archives import config_of, docker_save, entry, folder, oci_layout, tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking sets owners and makes whiteouts: needs root")
BASE = tar(folder("bin"), entry("bin/tool", b"tool", mode=0o755))
TOP = tar(entry("etc/conf", b"conf"), entry("bin/.wh.tool"))


class Pipe(io.RawIOBase):
    """A stream that cannot seek, as an upload is."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._inner = io.BytesIO(raw)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._inner.read(min(size, 1000) if size >= 0 else size)


def assert_nothing_left(store: ImageStore) -> None:
    assert store.list() == ()
    assert list((store.root / "layers").iterdir()) == []
    assert list((store.root / "staging").iterdir()) == []
    assert list((store.root / "blobs" / "sha256").iterdir()) == []


@pytest.mark.parametrize("wrap", [bytes, gzip.compress, lzma.compress])
def test_docker_archives_load_from_streams_in_every_compression(store: ImageStore, wrap: object) -> None:
    """A `docker save` archive loads from a stream that cannot seek, plain or compressed."""
    assert callable(wrap)
    (info,) = store.load(Pipe(wrap(docker_save(([BASE, TOP], ["web:1", "me/web"])))))  # type: ignore[arg-type]
    assert info.references == ("me/web:latest", "web:1")
    assert info.size_bytes == 8
    top, base = store.lower_dirs(info)
    assert Path(top, "etc/conf").read_bytes() == b"conf"
    assert Path(base, "bin/tool").read_bytes() == b"tool"
    assert store.resolve("docker.io/library/web:1").id == info.id
    assert store.resolve(info.id[:19]).id == info.id


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_oci_layouts_load(store: ImageStore, *, nested: bool, compress: bool) -> None:
    """An OCI layout loads, with compressed layers or not, and of an index of platforms the one for this machine."""
    raw = oci_layout([BASE, TOP], "host:5000/app:2", nested=nested, compress=compress, platforms=("s390x", "riscv64"))
    (info,) = store.load(io.BytesIO(raw))
    assert info.references == ("host:5000/app:2",)
    assert store.resolve(f"host:5000/app@{info.manifest_digest}").id == info.id
    assert len(store.lower_dirs(info)) == 2


def test_an_archive_of_several_images_shares_their_layers(store: ImageStore) -> None:
    """Images of one archive are all loaded, and a layer they have in common is unpacked once."""
    one, two = store.load(io.BytesIO(docker_save(([BASE], ["one"]), ([BASE, TOP], ["two"]))))
    assert [info.references for info in store.list()] == [("one:latest",), ("two:latest",)]
    assert len(list((store.root / "layers").iterdir())) == 2
    usage = store.disk_usage()
    assert (usage[one.id].shared_bytes, usage[one.id].unique_bytes) == (4, 0)
    assert (usage[two.id].shared_bytes, usage[two.id].unique_bytes) == (4, 4)


def test_loading_again_changes_nothing(store: ImageStore) -> None:
    """The same archive loaded twice is one image."""
    raw = docker_save(([BASE], ["web"]))
    assert store.load(io.BytesIO(raw)) == store.load(io.BytesIO(raw))
    assert len(store.list()) == 1


def test_a_changed_byte_of_a_layer_is_noticed(store: ImageStore) -> None:
    """A layer whose digest is not the promised one is refused, and nothing of the image stays."""
    with pytest.raises(DigestMismatch):
        store.load(io.BytesIO(oci_layout([BASE, TOP], "web:1", compress=False, spoil=True)))
    store.collect_garbage()
    assert_nothing_left(store)


def test_a_layer_that_the_config_does_not_name_is_refused(store: ImageStore) -> None:
    """The config's diffIDs decide: a `docker save` archive with another layer in it is refused."""
    with pytest.raises(DigestMismatch):
        store.load(io.BytesIO(docker_save(([TOP], ["web"]), config=config_of([BASE]))))
    store.collect_garbage()
    assert_nothing_left(store)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no archive at all" * 100,
        tar(entry("readme", b"x")),
        tar(entry("manifest.json", b"{}")),
        tar(entry("manifest.json", b"[]")),
        tar(entry("manifest.json", b"\xff")),
        tar(entry("manifest.json", b"[" * 100_000)),
        tar(entry("manifest.json", json.dumps([{"Config": "x", "Layers": []}]).encode())),
        tar(entry("manifest.json", json.dumps([{"Config": "../../etc/passwd", "Layers": []}]).encode())),
        tar(entry("manifest.json", json.dumps([{"Config": 3}]).encode())),
        tar(entry("index.json", json.dumps({"manifests": [{"digest": "sha256:../../x"}]}).encode())),
        tar(entry("index.json", b'{"manifests":[]}')),
        docker_save(([BASE], ["Not A Name"])),
        docker_save(([BASE], ["web"]), config=config_of([BASE, TOP])),
        docker_save(([BASE], ["web"]), config=config_of([BASE]).replace(b'"linux"', b'"windows"')),
        docker_save(([BASE], ["web"]), config=config_of([BASE], Env="A=1")),
        docker_save(([tar(entry("../x", b"y"))], ["web"])),
        docker_save(([BASE], ["web"]))[:3000],
        gzip.compress(docker_save(([BASE], ["web"])))[:200],
    ],
)
def test_what_is_no_image_is_refused_and_leaves_nothing(store: ImageStore, raw: bytes) -> None:
    """A malformed or hostile archive gives one clear refusal and leaves no file."""
    with pytest.raises(ArchiveRefused):
        store.load(io.BytesIO(raw))
    store.collect_garbage()
    assert_nothing_left(store)


def test_a_compression_bomb_is_stopped(tmp_path: Path) -> None:
    """A layer that unpacks to more than the bound is refused after the bound, not after the whole."""
    store = ImageStore(tmp_path / "images", durable=False, unpack_limits=UnpackLimits(unpacked_bytes=4 * 2**20))
    bomb = tar(entry("zeros", bytes(32 * 2**20)))
    with pytest.raises(LimitExceeded, match="unpacks to more than 4194304 bytes"):
        store.load(io.BytesIO(oci_layout([bomb], "bomb:1")))
    store.collect_garbage()
    assert_nothing_left(store)


LOADER = """
import pathlib, sys
from orch_agent.images.store import ImageStore
store = ImageStore(pathlib.Path(sys.argv[1]), durable=False)
print("ready", flush=True)
store.load(pathlib.Path(sys.argv[2]))
print("loaded", flush=True)
"""


def test_a_killed_loader_leaves_no_half_layer(tmp_path: Path) -> None:
    """After kill -9 at any moment the store opens, has whole images or none, loads again, and keeps no leftover."""
    layers = [tar(*(entry(f"d{n}/f{k}", os.urandom(500)) for k in range(300))) for n in range(3)]
    archive = tmp_path / "archive.tar"
    archive.write_bytes(docker_save((layers, ["web:1"])))
    root = tmp_path / "images"
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    killed_midway = 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", LOADER, str(root), str(archive)], stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.08))
            process.send_signal(signal.SIGKILL)
            killed_midway += process.stdout.read() == ""
        store = ImageStore(root, durable=False)
        assert list((root / "staging").iterdir()) == [], f"seed {seed}"
        for info in store.list():
            assert [len(list(Path(lower).rglob("f*"))) for lower in store.lower_dirs(info)] == [300] * 3, f"seed {seed}"
            store.remove(info.id, in_use=(), force=True)
        assert list((root / "layers").iterdir()) == [], f"seed {seed}"
    assert killed_midway > 0, f"seed {seed}: the loader was never caught at work"
    assert store.load(archive)[0].references == ("web:1",)


def test_processes_may_load_at_once(tmp_path: Path) -> None:
    """Several processes that load the same archive all succeed and make one image."""
    archive = tmp_path / "archive.tar"
    archive.write_bytes(docker_save(([BASE, TOP], ["web:1"])))
    command = [sys.executable, "-c", LOADER, str(tmp_path / "images"), str(archive)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(timeout=50) for process in processes] == [0, 0, 0, 0]
    store = ImageStore(tmp_path / "images", durable=False)
    assert len(store.list()) == 1
    assert len(store.lower_dirs(store.list()[0])) == 2


def test_an_image_that_is_not_here_is_explained(store: ImageStore) -> None:
    """An unknown name gets the nearest known ones and the ways to get an image."""
    store.load(io.BytesIO(docker_save(([BASE], ["hello-web:1"]))))
    with pytest.raises(ImageNotFound, match=r"did you mean hello-web:1.*orch image load"):
        store.resolve("hello-wbe:1")
    with pytest.raises(ImageNotFound):
        store.resolve("../../etc/passwd")
