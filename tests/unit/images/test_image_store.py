import io
import os
import shutil
from pathlib import Path

import pytest

from orch_agent.build.errors import DockerfileError
from orch_agent.images.errors import ArchiveRefused, ImageInUse, ImageNotFound, InvalidReference, StoreCorrupt
from orch_agent.images.model import HealthCheck, read_config, write_config
from orch_agent.images.snapshots import Snapshots
from orch_agent.images.store import ImageStore
from unit.images.archives import ARCHITECTURE, docker_save, entry, folder, tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking sets owners and makes whiteouts: needs root")
ROOTFS = tar(folder("./"), folder("./etc"), entry("./etc/hostname", b"x"))


def test_a_root_file_system_becomes_an_image(store: ImageStore) -> None:
    """An imported tar is an image of one layer, with the configuration its changes give."""
    changes = [
        'CMD ["/bin/app", "-v"]',
        "ENV A=1 B='x y'",
        "EXPOSE 80",
        "WORKDIR /srv",
        "USER 5",
        "LABEL a.b=c",
        "HEALTHCHECK --interval=5s --retries=2 CMD true",
        "STOPSIGNAL SIGINT",
    ]
    info = store.import_rootfs(io.BytesIO(ROOTFS), "base:12", changes=changes)
    assert info.references == ("base:12",)
    assert len(info.diff_ids) == 1
    assert info.diff_ids == info.chain_ids
    config = info.config
    assert config.command == ("/bin/app", "-v")
    assert config.env[1:] == ("A=1", "B=x y")
    assert config.env[0].startswith("PATH=")
    assert (config.exposed_ports, config.working_dir, config.user) == (("80/tcp",), "/srv", "5")
    assert (dict(config.labels), config.stop_signal, config.architecture) == ({"a.b": "c"}, "SIGINT", ARCHITECTURE)
    assert config.healthcheck == HealthCheck(test=("CMD-SHELL", "true"), interval_s=5.0, retries=2)
    assert Path(store.lower_dirs(info)[0], "etc/hostname").read_bytes() == b"x"


@pytest.mark.parametrize("change", ["RUN true", "COPY a b", "EVN A=1", "WORKDIR rel", "EXPOSE http"])
def test_a_change_that_is_not_configuration_is_refused(store: ImageStore, change: str) -> None:
    """Instructions that would change files, and malformed ones, are refused before anything is kept."""
    with pytest.raises(DockerfileError, match="--change:1: "):
        store.import_rootfs(io.BytesIO(ROOTFS), "base:12", changes=[change])
    assert store.list() == ()


@pytest.mark.parametrize("raw", [b"", bytes(1024), ROOTFS[:700], b"x" * 5000])
def test_an_import_of_no_or_half_a_tar_is_refused(store: ImageStore, raw: bytes) -> None:
    """An empty, cut off or foreign file is no root file system."""
    with pytest.raises(ArchiveRefused):
        store.import_rootfs(io.BytesIO(raw), "base")
    store.collect_garbage()
    assert list((store.root / "layers").iterdir()) == []


def test_a_config_survives_being_written_and_read(store: ImageStore) -> None:
    """Writing and reading a config is without loss, so that an image's id is stable."""
    document = store.document(store.import_rootfs(io.BytesIO(ROOTFS), "base", changes=["CMD a", "VOLUME /v"]))
    raw = write_config(document)
    assert read_config(raw) == document
    assert write_config(read_config(raw)) == raw


def test_names_move_and_images_go_with_their_last_name(store: ImageStore) -> None:
    """Removing a name keeps the image while another name is left; with the last one, its files go too."""
    info = store.import_rootfs(io.BytesIO(ROOTFS), "a")
    store.tag("a", "b:2")
    first = store.remove("a", in_use=())
    assert (first.untagged, first.deleted_id) == (("a:latest",), None)
    assert store.resolve("b:2").id == info.id
    second = store.remove("b:2", in_use=())
    assert (second.deleted_id, second.freed_bytes) == (info.id, 1)
    assert list((store.root / "layers").iterdir()) == []
    with pytest.raises(ImageNotFound):
        store.resolve(info.id)


def test_an_image_in_use_keeps_its_files(store: ImageStore) -> None:
    """An image that a task runs from is not removed; with force it loses its name only."""
    info = store.import_rootfs(io.BytesIO(ROOTFS), "a")
    with pytest.raises(ImageInUse, match="used by a task"):
        store.remove("a", in_use=(info.id,))
    assert store.remove("a", in_use=(info.id,), force=True).deleted_id is None
    assert store.lower_dirs(store.resolve(info.id))
    assert store.list()[0].references == ()


def test_an_id_with_several_names_needs_force(store: ImageStore) -> None:
    """An image with several names is not removed by its id without force."""
    info = store.import_rootfs(io.BytesIO(ROOTFS), "a")
    store.tag("a", "b")
    with pytest.raises(ImageInUse, match="2 names"):
        store.remove(info.id, in_use=())
    assert store.remove(info.id, in_use=(), force=True).untagged == ("a:latest", "b:latest")


def test_a_tag_with_a_digest_is_refused(store: ImageStore) -> None:
    """A digest cannot be given as a name."""
    store.import_rootfs(io.BytesIO(ROOTFS), "a")
    with pytest.raises(InvalidReference):
        store.tag("a", "b@sha256:" + "0" * 64)


def test_layers_in_work_are_not_collected(store: ImageStore) -> None:
    """While something is loaded or built, no layer is removed; afterwards what nothing needs is."""
    store.import_rootfs(io.BytesIO(ROOTFS), "a")
    with store.ingesting():
        assert store.remove("a", in_use=()).freed_bytes == 0
        assert len(list((store.root / "layers").iterdir())) == 1
    assert store.collect_garbage() == 1
    assert list((store.root / "layers").iterdir()) == []


def test_damage_is_named(store: ImageStore) -> None:
    """A damaged or missing file of the store is an error that names it, not a crash or a wrong image."""
    info = store.import_rootfs(io.BytesIO(ROOTFS), "a")
    blob = store.root / "blobs/sha256" / info.id[7:]
    blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(StoreCorrupt, match="damaged"):
        store.resolve("a")
    (store.root / "images.json").write_text("{")
    with pytest.raises(StoreCorrupt, match=r"images\.json is unreadable"):
        store.list()


def test_a_missing_layer_is_named(store: ImageStore) -> None:
    """An image whose layer was taken away is not started with less."""
    info = store.import_rootfs(io.BytesIO(ROOTFS), "a")
    shutil.rmtree(next((store.root / "layers").iterdir()))
    with pytest.raises(StoreCorrupt, match="is missing"):
        store.lower_dirs(info)


def test_ten_tasks_of_one_image_cost_no_copy(tmp_path: Path, store: ImageStore) -> None:
    """Tasks share their image's layers: ten of them add empty folders and nothing else."""
    big = tar(entry("big", os.urandom(4 * 2**20)))
    (info,) = store.load(io.BytesIO(docker_save(([big], ["web"]))))
    snapshots = Snapshots(tmp_path / "snapshots")
    before = {path: path.stat().st_ino for path in map(Path, store.lower_dirs(info))}
    for n in range(10):
        upper, work = snapshots.prepare(f"task{n}")
        assert not [*Path(upper).iterdir(), *Path(work).iterdir()]
    added = sum(path.stat().st_blocks * 512 for path in (tmp_path / "snapshots").rglob("*"))
    assert added < 256 * 1024
    assert {path: path.stat().st_ino for path in map(Path, store.lower_dirs(info))} == before
    snapshots.close()


def test_a_snapshot_is_prepared_once_and_removed_at_once(tmp_path: Path) -> None:
    """Preparing again gives the same folders; removing makes them vanish at once, and their files soon."""
    snapshots = Snapshots(tmp_path)
    upper, _ = snapshots.prepare("t1")
    Path(upper, "f").write_text("x")
    Path(upper, "out").symlink_to("/etc")
    assert snapshots.prepare("t1")[0] == upper
    assert Path(upper, "f").exists()
    snapshots.remove("t1")
    assert not Path(upper).exists()
    snapshots.remove("t1")
    assert snapshots.wait_deleted(30)
    assert list((tmp_path / "trash").iterdir()) == []
    assert Path("/etc/passwd").exists()
    assert list(Path(snapshots.prepare("t1")[0]).iterdir()) == []
    snapshots.close()


def test_snapshots_of_dead_tasks_are_swept(tmp_path: Path) -> None:
    """After a crash, what no living task owns is removed, with what the crash left in the trash."""
    first = Snapshots(tmp_path)
    for name in ("a", "b", "c"):
        first.prepare(name)
    first.close()
    (tmp_path / "trash" / "old.1").mkdir()
    second = Snapshots(tmp_path)
    assert second.sweep({"b"}) == ("a", "c")
    assert second.wait_deleted(30)
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["b"]
    assert list((tmp_path / "trash").iterdir()) == []
    second.close()


@pytest.mark.parametrize("task_id", ["", ".", "..", "a/b", "../x", "a\0", "x" * 200])
def test_a_task_id_cannot_leave_the_folder(tmp_path: Path, task_id: str) -> None:
    """An id that is no plain name is refused."""
    snapshots = Snapshots(tmp_path)
    with pytest.raises(ValueError, match="not an id of a task"):
        snapshots.prepare(task_id)
    snapshots.close()
