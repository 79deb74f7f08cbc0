"""What a node says about its disk."""

from pathlib import Path

from orch_agent.disk_usage import disk_usage
from orch_agent.images.snapshots import Snapshots
from orch_agent.images.store import ImageStore
from orch_agent.volumes import VolumeStore
from unit.images.archives import docker_save, entry, tar


def test_shared_layers_count_once_and_what_is_used_is_not_reclaimable(tmp_path: Path) -> None:
    """Two images of a common layer: its bytes stand once in the sum, and stay while either image runs."""
    images = ImageStore(tmp_path / "images", durable=False)
    common, own = tar(entry("common", b"c" * 100_000)), tar(entry("own", b"o" * 7_000))
    archive = tmp_path / "archive.tar"
    archive.write_bytes(docker_save(([common], ["one:1"]), ([common, own], ["two:1"])))
    images.load(archive)
    snapshots, volumes = Snapshots(tmp_path / "snapshots"), VolumeStore(tmp_path / "volumes")
    for task, size_bytes in (("alive", 10_000), ("dead", 50_000)):
        upper, _ = snapshots.prepare(task)
        (Path(upper) / "file").write_bytes(b"x" * size_bytes)
    used = {
        one.kind: one
        for one in disk_usage(
            images,
            snapshots,
            volumes,
            images_in_use={images.resolve("one:1").id},
            volumes_in_use=set(),
            running={"alive"},
        )
    }
    snapshots.close()
    assert (used["Images"].total, used["Images"].active) == (2, 1)
    assert used["Images"].size_bytes == 107_000
    assert used["Images"].reclaimable_bytes == 7_000
    assert (used["Containers"].total, used["Containers"].active) == (2, 1)
    assert used["Containers"].size_bytes > used["Containers"].reclaimable_bytes >= 50_000
    assert used["Local Volumes"].total == used["Build Cache"].total == used["Downloads"].total == 0
