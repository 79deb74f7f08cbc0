"""Images that nothing wants: when they go, which first, and what never goes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from orch_agent import image_collection
from orch_agent.image_collection import YOUNG_S, Collected, CollectionRefused, DiskUse, ImageCollection, WaterMarks
from orch_agent.images import digests, reference
from orch_agent.images.model import ConfigDocument, ImageConfig, write_config
from orch_agent.images.steps import Step
from orch_agent.images.store import ImageStore
from orch_proto.dispatcher_pb2 import WantedImagesRequest, WantedImagesResponse

NOW_S = 2_000_000_000.0
MARKS = WaterMarks(85, 80)


def an_image(store: ImageStore, name: str, content: bytes, *, used_s: float) -> str:
    """An image of one layer, last used so many seconds ago."""
    stage = store.layers.stage()
    (stage / "tree").mkdir()
    (stage / "tree" / "file").write_bytes(content)
    with store.ingesting():
        layer = store.layers.adopt(stage / "tree", None)
        document = ConfigDocument(ImageConfig(architecture="amd64"), (layer.diff_id,), (), "")
        names = (reference.parse(name),) if name else ()
        image_id = store.register(write_config(document), references=names).id
    blob = store.root / "blobs" / "sha256" / digests.hex_of(image_id)
    os.utime(blob, (NOW_S - used_s, NOW_S - used_s))
    return image_id


class Scene:
    """A store with images of 100 bytes, a disk of 1,000 that the layers fill, and a manager that wants some."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = ImageStore(folder / "images", durable=False)
        self.in_use: set[str] = set()
        self.wanted: set[str] = set()
        self.asked: list[WantedImagesRequest] = []
        self.manager: object | None = object()
        self.other_bytes = 0
        scene = self

        class Stub:
            def __init__(self, _channel: object) -> None:
                return

            async def WantedImages(self, request: WantedImagesRequest, **_: Any) -> WantedImagesResponse:  # noqa: N802
                scene.asked.append(request)
                return WantedImagesResponse(ids=[one.id for one in request.images if one.id in scene.wanted])

        monkeypatch.setattr(image_collection.dispatcher_pb2_grpc, "RelayStub", Stub)
        self.collection = ImageCollection(
            "node", self.store, lambda: self.in_use, lambda: cast("grpc.aio.Channel | None", self.manager),
            marks=MARKS, disk_use=self.use, now_s=lambda: NOW_S,
        )  # fmt: skip

    def use(self, _path: Path) -> DiskUse:
        chains = self.store.layers.chain_ids(100)
        layers = sum(layer.size_bytes for chain in chains if (layer := self.store.layers.get(chain)))
        return DiskUse(self.other_bytes + layers, 1000)

    def add(self, name: str, letter: str, used_s: float) -> str:
        return an_image(self.store, name, letter.encode() * 100, used_s=used_s)

    def there(self) -> set[str]:
        return {image.id for image in self.store.list()}

    def check(self) -> Collected | None:
        return asyncio.run(self.collection.check())

    def prune(self, *, named: bool) -> Collected:
        return asyncio.run(self.collection.prune(named=named))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """An empty scene."""
    return Scene(tmp_path, monkeypatch)


def test_nothing_goes_below_the_high_mark(scene: Scene) -> None:
    """At 85 of 100 exactly it is not above it."""
    scene.add("old:1", "a", 1e6)
    scene.other_bytes = 750
    assert scene.check() is None
    assert len(scene.there()) == 1
    assert scene.asked == []


def test_unnamed_then_the_build_cache_then_the_longest_unused(scene: Scene) -> None:
    """In this order, and no more than the low mark asks for."""
    unnamed = scene.add("", "a", 5_000)
    oldest = scene.add("oldest:1", "b", 9_000)
    newer = scene.add("newer:1", "c", 4_000)
    scene.store.steps.put("0" * 64, Step(scene.store.resolve("newer:1").chain_ids[0], "", ""))
    scene.other_bytes = 600
    collected = scene.check()
    assert collected is not None
    assert (collected.deleted, collected.freed_bytes) == ((unnamed,), 100), "from 900 to 800, the low mark"
    assert len(list(scene.store.steps.records())) == 1
    scene.other_bytes = 700
    collected = scene.check()
    assert collected is not None
    assert (collected.deleted, collected.untagged) == ((oldest,), ("oldest:1",))
    assert list(scene.store.steps.records()) == [], "the cache goes before what has a name"
    assert scene.there() == {newer}
    assert scene.collection.freed_bytes == 200


def test_what_is_run_wanted_or_young_stays(scene: Scene) -> None:
    """However full the disk is: what a task runs, what a service would run or go back to, what has just come."""
    runs, wanted, young = scene.add("runs:1", "a", 1e6), scene.add("", "b", 1e6), scene.add("young:1", "c", YOUNG_S / 2)
    gone = scene.add("gone:1", "d", 1e6)
    scene.in_use, scene.wanted, scene.other_bytes = {runs}, {wanted}, 2000
    collected = scene.check()
    assert collected is not None
    assert collected.deleted == (gone,)
    assert scene.there() == {runs, wanted, young}
    assert {one.id for request in scene.asked for one in request.images} == {wanted, gone}


def test_nothing_goes_without_a_manager(scene: Scene) -> None:
    """Nobody else knows what services would go back to."""
    scene.add("old:1", "a", 1e6)
    scene.other_bytes, scene.manager = 2000, None
    with pytest.raises(CollectionRefused, match="no manager can say"):
        scene.check()
    assert len(scene.there()) == 1


def test_a_task_that_begins_meanwhile_keeps_its_image(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the manager's answer and the removal an image is used: it is passed over."""
    image = scene.add("old:1", "a", 1e6)
    scene.other_bytes = 2000
    real = scene.collection._wanted

    async def and_then_it_is_used(candidates: Any) -> set[str]:
        answer = await real(candidates)
        scene.store.mark_used(image)
        blob = scene.store.root / "blobs" / "sha256" / digests.hex_of(image)
        os.utime(blob, (NOW_S, NOW_S))
        return answer

    monkeypatch.setattr(scene.collection, "_wanted", and_then_it_is_used)
    collected = scene.check()
    assert collected is not None
    assert collected.deleted == ()
    assert scene.there() == {image}


def test_pruning_by_hand(scene: Scene) -> None:
    """Images without a name; with all, those with one and the build cache too; never what is wanted."""
    unnamed, named, wanted = scene.add("", "a", 1), scene.add("named:1", "b", 1), scene.add("wanted:1", "c", 1)
    scene.wanted = {wanted}
    scene.store.steps.put("0" * 64, Step(scene.store.resolve("named:1").chain_ids[0], "", ""))
    assert scene.prune(named=False).deleted == (unnamed,)
    assert len(list(scene.store.steps.records())) == 1
    pruned = scene.prune(named=True)
    assert (pruned.deleted, pruned.freed_bytes) == ((named,), 100)
    assert scene.there() == {wanted}


def test_marks() -> None:
    """Two percentages, the higher one first, or off."""
    assert WaterMarks.read("85,80") == WaterMarks(85, 80)
    assert WaterMarks.read("off") is None
    wrong: Collection[str] = ("", "85", "80,85", "85,85", "101,80", "85,0", "a,b", "85,80,75", "-85,80")
    for text in wrong:
        with pytest.raises(ValueError, match="percentage"):
            WaterMarks.read(text)


def test_the_use_of_a_disk(tmp_path: Path) -> None:
    """As df counts: the reserve of root is neither used nor usable."""
    use = DiskUse.of(tmp_path)
    assert 0 < use.used_bytes < use.size_bytes
    assert DiskUse(900, 1000).above(85) == 50
    assert DiskUse(800, 1000).above(85) == -50
