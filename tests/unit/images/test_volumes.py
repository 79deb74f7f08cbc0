import os
import stat
import threading
from pathlib import Path

import pytest

from orch_agent.volumes import InvalidVolumeName, VolumeInUse, VolumeNotFound, VolumeStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="volumes keep owners: needs root")


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def image(tmp_path: Path) -> str:
    """An image's only layer, with a folder /data of another owner."""
    data = tmp_path / "layer" / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub/f").write_text("from the image")
    (data / "l").symlink_to("sub/f")
    (data / "sub/f").chmod(0o640)
    for path in (data, data / "sub", data / "sub/f"):
        os.chown(path, 33, 34)
    data.chmod(0o770)
    return str(tmp_path / "layer")


@pytest.fixture
def volumes(tmp_path: Path) -> VolumeStore:
    """An empty store of volumes."""
    return VolumeStore(tmp_path / "volumes")


def test_a_volume_is_made_once_and_outlives_its_users(volumes: VolumeStore, tmp_path: Path) -> None:
    """The first use makes a volume with its labels; later uses, and later processes, find it as it is."""
    made = volumes.ensure("db", labels={"a": "b"})
    Path(made.path, "f").write_text("kept")
    assert volumes.ensure("db", labels={"other": "x"}) == made
    again = VolumeStore(tmp_path / "volumes")
    assert again.inspect("db") == made
    assert again.list() == (made,)
    assert Path(made.path, "f").read_text() == "kept"
    assert made.path == str(tmp_path / "volumes/db/_data")


def test_an_empty_volume_takes_over_the_images_content(volumes: VolumeStore, image: str) -> None:
    """A new volume begins with what the image has at that path, with owners, modes and links."""
    data = Path(volumes.ensure("db", image_layers=[image], image_path="/data").path)
    assert (data / "sub/f").read_text() == "from the image"
    assert str((data / "l").readlink()) == "sub/f"
    status = (data / "sub/f").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (33, 34, 0o640)
    assert ((data).stat().st_uid, stat.S_IMODE(data.stat().st_mode)) == (33, 0o770)


def test_content_of_a_volume_is_never_overwritten(volumes: VolumeStore, image: str) -> None:
    """A volume that has content, or is mounted with nocopy, is left alone."""
    data = Path(volumes.ensure("db").path)
    (data / "mine").write_text("x")
    volumes.ensure("db", image_layers=[image], image_path="/data")
    assert names(data) == ["mine"]
    assert names(volumes.ensure("empty", image_layers=[image], image_path="/data", nocopy=True).path) == []
    assert names(volumes.ensure("none", image_layers=[image], image_path="/not/there").path) == []


def test_a_half_copied_volume_is_copied_again(volumes: VolumeStore, image: str, tmp_path: Path) -> None:
    """A crash in the middle of taking over content is repaired by the next use."""
    data = Path(volumes.ensure("db").path)
    (data / "half").write_text("x")
    (tmp_path / "volumes/db/populating").touch()
    volumes.ensure("db", image_layers=[image], image_path="/data")
    assert names(data) == ["l", "sub"]


def test_a_volume_in_use_is_not_removed(volumes: VolumeStore) -> None:
    """Removing is refused while a task mounts the volume, and final afterwards."""
    path = Path(volumes.ensure("db").path)
    with pytest.raises(VolumeInUse, match="mounted by a task"):
        volumes.remove("db", in_use={"db"})
    assert path.exists()
    volumes.remove("db", in_use=())
    assert not path.exists()
    with pytest.raises(VolumeNotFound):
        volumes.remove("db", in_use=())
    with pytest.raises(VolumeNotFound):
        volumes.inspect("db")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "-x", "a\0", "x" * 300, "a b"])
def test_a_name_cannot_leave_the_folder(volumes: VolumeStore, name: str) -> None:
    """A name that is no plain name is refused."""
    with pytest.raises(InvalidVolumeName):
        volumes.ensure(name)


def test_many_first_uses_make_one_volume(volumes: VolumeStore, image: str) -> None:
    """Tasks that start together share one volume with the whole content."""
    threads = [
        threading.Thread(target=volumes.ensure, args=("db",), kwargs={"image_layers": [image], "image_path": "/data"})
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(volumes.inspect("db").path) == ["l", "sub"]
