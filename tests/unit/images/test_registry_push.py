"""Pushing images: to a real registry, and what is refused."""

from pathlib import Path

import pytest

from orch_agent.images import reference
from orch_agent.images.errors import DigestMismatch, ImageNotFound, InvalidReference
from orch_agent.images.model import ConfigDocument, ImageConfig, write_config
from orch_agent.images.registry.errors import RegistryDenied
from orch_agent.images.registry.pull import pull
from orch_agent.images.registry.push import push
from orch_agent.images.registry.settings import Settings
from orch_agent.images.store import ImageStore
from unit.images.archives import ARCHITECTURE, docker_save, entry, folder, tar
from unit.images.registries import DOCKER_REGISTRY, BadRegistry, RealRegistry, image

NONE = Settings()
needs_registry = pytest.mark.skipif(DOCKER_REGISTRY is None, reason="needs docker-registry")


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials of whoever runs the tests."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


def pushed(store: ImageStore, name: str) -> list[str]:
    """Push; what it said."""
    said: list[str] = []
    push(store, name, said.append, NONE)
    return said


def made_here(store: ImageStore, name: str) -> str:
    """An image whose layer the store itself has packed, as that of a build; returns its id."""
    stage = store.layers.stage()
    tree = stage / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content" * 50_000)
    layer = store.layers.adopt(tree, None)
    stage.rmdir()
    document = ConfigDocument(ImageConfig(architecture=ARCHITECTURE), (layer.diff_id,), (), "")
    with store.ingesting():
        return store.register(write_config(document), references=(reference.parse(name),)).id


@needs_registry
def test_an_image_made_here_is_the_same_wherever_it_is_pulled(store: ImageStore, tmp_path: Path) -> None:
    """Its id is the same there; pushed again, nothing is sent; under another name neither."""
    with RealRegistry(tmp_path) as registry:
        name = f"{registry.host}/team/made:1"
        made = made_here(store, name)
        said = pushed(store, name)
        assert any(line.endswith(": Pushed") for line in said)
        again = pushed(store, name)
        assert any(line.endswith(": Layer already exists") for line in again)
        assert again[-1] == said[-1], "the same bytes give the same digest"
        other = ImageStore(tmp_path / "other", durable=False)
        assert pull(other, name, lambda _text: None, NONE).id == made
        assert (Path(other.lower_dirs(other.resolve(name))[0]) / "file").read_bytes() == b"content" * 50_000


@needs_registry
def test_a_pulled_image_is_pushed_as_it_came(store: ImageStore, tmp_path: Path) -> None:
    """Under a new tag of its repository: the manifest is the one it came with, so its digest stays."""
    with RealRegistry(tmp_path) as registry:
        content = image([tar(folder("etc"), entry("etc/name", b"x", uname="someone"))])
        came = registry.push("web", "1", content)
        pull(store, f"{registry.host}/web:1", lambda _text: None, NONE)
        store.tag(f"{registry.host}/web:1", f"{registry.host}/web:2")
        assert came in pushed(store, f"{registry.host}/web:2")[-1]


@needs_registry
@pytest.mark.parametrize("same", [True, False])
def test_a_pulled_layer_is_pushed_from_where_it_was(store: ImageStore, tmp_path: Path, *, same: bool) -> None:
    """To another repository it is mounted, to another registry copied: the bytes are those it came in."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with RealRegistry(tmp_path / "one") as one, RealRegistry(tmp_path / "two") as two:
        target = one if same else two
        content = image([tar(folder("etc"), entry("etc/name", b"x", uname="someone"))])
        one.push("base", "1", content)
        pull(store, f"{one.host}/base:1", lambda _text: None, NONE)
        name = f"{target.host}/team/other:1"
        store.tag(f"{one.host}/base:1", name)
        said = pushed(store, name)
        assert any(("Mounted from base" if same else "Copied from") in line for line in said), said
        other = ImageStore(tmp_path / "other", durable=False)
        assert pull(other, name, lambda _text: None, NONE).id == store.resolve(name).id


@needs_registry
def test_a_layer_that_cannot_be_made_again_is_refused_and_nothing_is_named(store: ImageStore, tmp_path: Path) -> None:
    """The archive it came in had names of users, which are not kept: another registry cannot get those bytes."""
    store.load(_archive(tmp_path, [tar(folder("etc"), entry("etc/name", b"x", uname="someone"))], "web:1"))
    with RealRegistry(tmp_path) as registry:
        name = f"{registry.host}/web:1"
        store.tag("web:1", name)
        with pytest.raises(DigestMismatch, match="build the image here"):
            pushed(store, name)
        other = ImageStore(tmp_path / "other", durable=False)
        with pytest.raises(Exception, match="no such image"):
            pull(other, name, lambda _text: None, NONE)


def _archive(tmp_path: Path, layers: list[bytes], name: str) -> Path:
    path = tmp_path / "web.tar"
    path.write_bytes(docker_save((layers, [name])))
    return path


def test_who_may_not_write_is_told_so(store: ImageStore) -> None:
    """Without a login, a registry that wants one refuses; what to do stands in the message."""
    with BadRegistry() as registry:
        registry.user = ("ann", "secret")
        made_here(store, f"{registry.host}/web:1")
        with pytest.raises(RegistryDenied, match="log in on this node"):
            pushed(store, f"{registry.host}/web:1")


def test_what_is_not_here_or_has_a_digest_is_not_pushed(store: ImageStore) -> None:
    """Both are told before anything is sent."""
    with pytest.raises(ImageNotFound):
        pushed(store, "localhost:1/absent:1")
    with pytest.raises(InvalidReference, match="push a name with a tag"):
        pushed(store, f"localhost:1/web@sha256:{'0' * 64}")
