"""Pulling images: from a real registry, and from one that does everything wrong."""

import base64
import ipaddress
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_agent.images.errors import ArchiveRefused, DigestMismatch, ImageError, ImageNotFound
from orch_agent.images.registry import download, manifests
from orch_agent.images.registry.errors import NotInRegistry, RegistryDenied, RegistryError, RegistryUnreachable
from orch_agent.images.registry.pull import pull, resolve
from orch_agent.images.registry.settings import RegistrySettings, Settings
from orch_agent.images.store import ImageStore
from unit.images.archives import OCI_INDEX, config_of, digest, entry, folder, tar
from unit.images.registries import DOCKER_MANIFEST, DOCKER_REGISTRY, BadRegistry, Content, RealRegistry, image, index

needs_registry = pytest.mark.skipif(DOCKER_REGISTRY is None, reason="needs docker-registry")
NONE = Settings()


def layers(*, size_bytes: int = 200_000) -> list[bytes]:
    """Two layers, the second with content that does not compress."""
    noise = random.Random(7).randbytes(size_bytes)
    return [tar(folder("etc"), entry("etc/name", b"first")), tar(entry("noise", noise), entry("etc/name", b"second"))]


def pulled(store: ImageStore, name: str, settings_: Settings = NONE) -> list[str]:
    """Pull; what it said."""
    said: list[str] = []
    pull(store, name, said.append, settings_)
    return said


def content_of(store: ImageStore, name: str, path: str) -> bytes:
    """A file of an image, from its uppermost layer."""
    return (Path(store.lower_dirs(store.resolve(name))[0]) / path).read_bytes()


def assert_nothing_half(store: ImageStore) -> None:
    """No image, no layer that is not whole, nothing under way but bytes to go on from."""
    assert store.list() == ()
    assert all((layer / "layer.json").is_file() for layer in (store.root / "layers").iterdir())
    assert not any((store.root / "staging").iterdir())


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No credentials but those that a test writes into this file."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "docker").mkdir()
    monkeypatch.setattr(download, "_PAUSE_FIRST_S", 0.001)
    return tmp_path / "docker" / "config.json"


@pytest.fixture
def bad() -> Iterator[BadRegistry]:
    with BadRegistry() as registry:
        yield registry


# ---- a real registry --------------------------------------------------------------------------------


@needs_registry
def test_an_image_comes_by_tag_and_by_digest_and_comes_once(store: ImageStore, tmp_path: Path) -> None:
    """Both names lead to the same image; what is here is not fetched again; the pinned name is found in the store."""
    with RealRegistry(tmp_path) as registry:
        pushed = registry.push("team/web", "1", image(layers(), kind=DOCKER_MANIFEST))
        name = f"{registry.host}/team/web"
        assert pulled(store, f"{name}:1")[-1] == f"Status: Downloaded newer image for {name}:1"
        assert content_of(store, f"{name}:1", "etc/name") == b"second"
        assert resolve(f"{name}:1", NONE) == f"{name}@{pushed}"
        assert store.resolve(f"{name}@{pushed}").id == store.resolve(f"{name}:1").id
        assert pulled(store, f"{name}:1")[-1] == f"Status: Image is up to date for {name}:1"
        other = ImageStore(tmp_path / "other", durable=False)
        pulled(other, f"{name}@{pushed}")
        assert other.resolve(f"{name}@{pushed}").id == store.resolve(f"{name}:1").id
    assert store.remove(f"{name}:1", in_use=()).deleted_id, "the digest goes with the last tag"


@needs_registry
def test_an_index_gives_the_image_of_this_machine(store: ImageStore, tmp_path: Path) -> None:
    """The index's digest pins it; a layer may be compressed by zstd."""
    with RealRegistry(tmp_path) as registry:
        content = image(layers(), squeeze=lambda raw: zstandard.ZstdCompressor().compress(raw))
        registry.push("web", "ours", content)
        pinned = registry.push_manifest("web", "many", index(content), OCI_INDEX)
        pulled(store, f"{registry.host}/web:many")
        assert store.resolve(f"{registry.host}/web@{pinned}").manifest_digest == digest(content.manifest)


@needs_registry
@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_tls_is_checked_by_the_authority_that_the_settings_name(store: ImageStore, tmp_path: Path) -> None:
    """A registry with a certificate of its own authority is refused without a word about it, and taken with one."""
    certificate, key = own_certificate(tmp_path)
    with RealRegistry(tmp_path, (certificate, key)) as registry:
        registry.push("web", "1", image(layers()))
        # By this name it is no registry of this machine, and so must prove itself.
        mirror = Settings({"example.test": RegistrySettings(mirrors=(registry.url,))})
        host = registry.host
        with pytest.raises(RegistryUnreachable, match="certificate verify failed"):
            pulled(store, "example.test/web:1", Settings({**mirror.registries, host: RegistrySettings()}))
        assert_nothing_half(store)
        trusted = Settings({**mirror.registries, host: RegistrySettings(ca=str(certificate))})
        pulled(store, "example.test/web:1", trusted)
    assert content_of(store, "example.test/web:1", "etc/name") == b"second"


def own_certificate(folder_: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder_ / "registry.pem", folder_ / "registry.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


# ---- what goes wrong --------------------------------------------------------------------------------


def test_what_breaks_off_is_gone_on_with(store: ImageStore, bad: BadRegistry) -> None:
    """Each connection breaks after 50 kB: no byte of the blobs is sent twice."""
    content = image(layers())
    bad.put("1", content)
    bad.break_after = 50_000
    pulled(store, f"{bad.host}/web:1")
    assert content_of(store, f"{bad.host}/web:1", "etc/name") == b"second"
    wanted = sum(len(raw) for raw in content.blobs.values()) - len(config_of(content.layers))
    assert bad.served_bytes - len(config_of(content.layers)) == wanted
    assert not any((store.root / "downloads").iterdir())


def test_a_registry_without_ranges_is_asked_from_the_start(store: ImageStore, bad: BadRegistry) -> None:
    """What broke off begins anew, and comes whole once the connection holds."""
    bad.put("1", image(layers()))
    bad.with_ranges, bad.break_after = False, 50_000
    with pytest.raises(RegistryUnreachable, match="what is there is kept"):
        pulled(store, f"{bad.host}/web:1")
    assert_nothing_half(store)
    bad.break_after = 0
    pulled(store, f"{bad.host}/web:1")
    assert content_of(store, f"{bad.host}/web:1", "etc/name") == b"second"


def test_other_content_than_was_promised_is_never_used(tmp_path: Path, bad: BadRegistry) -> None:
    """A changed byte of a layer, of the config, or of a manifest by digest refuses the image; nothing of it stays."""
    content = image(layers())
    for name in [*content.blobs, digest(content.manifest)]:
        store = ImageStore(tmp_path / name, durable=False)
        bad.put("1", content)
        if name in bad.blobs:
            bad.blobs[name] = bytes([bad.blobs[name][0] ^ 1]) + bad.blobs[name][1:]
        else:
            bad.manifests[name] = (content.manifest + b" ", content.media_type)
        with pytest.raises(DigestMismatch):
            pulled(store, f"{bad.host}/web@{digest(content.manifest)}")
        assert_nothing_half(store)
        assert not (store.root / "downloads" / f"{name.removeprefix('sha256:')}.part").exists()


def test_an_image_for_other_machines_is_refused_by_name(store: ImageStore, bad: BadRegistry) -> None:
    """The message says for which it is."""
    content = image(layers())
    bad.put("1", content, index(content, "riscv64", "mips", ours=False), OCI_INDEX)
    with pytest.raises(ArchiveRefused, match="linux/riscv64, linux/mips"):
        pulled(store, f"{bad.host}/web:1")
    bad.put("2", content, index(content, "riscv64", "mips"), OCI_INDEX)
    pulled(store, f"{bad.host}/web:2")


def test_a_layer_whose_content_is_not_the_configs_is_refused(store: ImageStore, bad: BadRegistry) -> None:
    """The archive has the digest of the manifest, and unpacked another than the config says."""
    first, second = layers()
    bad.put("1", image([first, second], config=config_of([second, first])))
    with pytest.raises(DigestMismatch):
        pulled(store, f"{bad.host}/web:1")
    assert_nothing_half(store)


def test_a_registry_that_wants_a_login_gets_the_nodes(store: ImageStore, bad: BadRegistry, no_login: Path) -> None:
    """Without a login, with a wrong one, with the right one: the first two say what to do."""
    bad.put("1", image(layers()))
    bad.user = ("ann", "secret")
    name = f"{bad.host}/web:1"
    with pytest.raises(NotInRegistry, match="not logged in"):
        pulled(store, name)
    write_login(no_login, bad.host, "ann:wrong")
    with pytest.raises(RegistryDenied, match="log in with one that may"):
        pulled(store, name)
    write_login(no_login, bad.host, "ann:secret")
    pulled(store, name)
    assert content_of(store, name, "etc/name") == b"second"


def write_login(path: Path, host: str, pair: str) -> None:
    path.write_text(json.dumps({"auths": {host: {"auth": base64.b64encode(pair.encode()).decode()}}}))


def test_a_public_image_of_a_registry_with_tokens_needs_no_login(store: ImageStore, bad: BadRegistry) -> None:
    """An anonymous token is asked for, as public registries want it."""
    bad.put("1", image(layers()))
    bad.user, bad.anonymous = ("ann", "secret"), True
    pulled(store, f"{bad.host}/web:1")


def test_a_login_is_not_shown_to_where_a_registry_sends_us(store: ImageStore, bad: BadRegistry) -> None:
    """Blobs that another host serves are asked for without what proves who we are."""
    content = image(layers())
    with BadRegistry() as other:
        other.blobs.update(content.blobs)
        bad.put("1", content)
        bad.user, bad.anonymous, bad.blobs_at = ("ann", "secret"), True, other.host
        pulled(store, f"{bad.host}/web:1")
        assert other.seen
        assert all("Authorization" not in headers for _, headers in other.seen)


def test_mirrors_are_asked_first_and_the_registry_when_they_fail(store: ImageStore, bad: BadRegistry) -> None:
    """A mirror that has it is enough; one that fails, or has it not, costs nothing but time."""
    bad.put("1", image(layers()))
    with BadRegistry() as broken:
        broken.status = 500
        mirrors = Settings({bad.host: RegistrySettings(mirrors=(f"http://{broken.host}", "http://127.0.0.1:1"))})
        pulled(store, f"{bad.host}/web:1", mirrors)
        assert broken.seen
        only = Settings({"nowhere.invalid": RegistrySettings(mirrors=(f"http://{bad.host}",))})
        pulled(store, "nowhere.invalid/web:1", only)


def test_what_is_not_there_is_told_in_the_words_of_swarm(store: ImageStore, bad: BadRegistry) -> None:
    """No such tag, a registry that is busy, and none at all are three different sentences."""
    with pytest.raises(NotInRegistry, match=r"no such image: .*web:9 \(manifest unknown\)"):
        pulled(store, f"{bad.host}/web:9")
    bad.status = 429
    with pytest.raises(RegistryError, match="takes no more requests"):
        pulled(store, f"{bad.host}/web:9")
    with pytest.raises(RegistryUnreachable, match=r"look at its address"):
        pulled(store, "127.0.0.1:1/web:9")
    with pytest.raises(ImageNotFound):
        store.resolve(f"{bad.host}/web:9")


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_pull_that_is_killed_leaves_nothing_half(tmp_path: Path, bad: BadRegistry, stop: signal.Signals) -> None:
    """Killed at five points, the next pull goes on with what is there and gives the whole image."""
    store = ImageStore(tmp_path / "images", durable=False)
    content = image(layers(size_bytes=800_000))
    bad.put("1", content)
    name = f"{bad.host}/web:1"
    moments = random.Random(3)
    for _ in range(5):
        bad.pause_s = 0.004
        command = [sys.executable, "-m", "orch_agent.image_worker"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(json.dumps({"work": "pull", "root": str(store.root), "reference": name}).encode())
            worker.stdin.close()
            worker.stdout.readline()  # it has begun
            time.sleep(moments.uniform(0, 0.15))
            worker.send_signal(stop)
            worker.stdout.read()
        for seen in store.list():
            assert content_of(store, seen.id, "etc/name") == b"second"
    bad.pause_s = 0
    pulled(store, name)
    assert content_of(store, name, "etc/name") == b"second"
    assert not any((store.root / "downloads").iterdir())
    assert not any((store.root / "staging").iterdir())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(["mediaType", "config", "layers", "manifests", "digest", "size", "platform", "schemaVersion"])


def some_manifest() -> Content:
    return image([tar(entry("a", b"b"))])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_KEYS, JSON), st.sampled_from(["", *manifests.MANIFEST_TYPES, *manifests.INDEX_TYPES]))
def test_no_manifest_does_more_than_be_refused(change: dict[str, object], kind: str) -> None:
    """Whatever a registry sends as a manifest is read, or refused as malformed."""
    read_manifest(change, kind)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=100_000, deadline=None)
@given(st.dictionaries(_KEYS, JSON), st.sampled_from(["", *manifests.MANIFEST_TYPES, *manifests.INDEX_TYPES]))
def test_a_hundred_thousand_manifests(change: dict[str, object], kind: str) -> None:
    """The same, 100,000 times."""
    read_manifest(change, kind)


def read_manifest(change: dict[str, object], kind: str) -> None:
    for document in (change, {**json.loads(some_manifest().manifest), **change}):
        with suppress(ImageError):
            found = manifests.read(json.dumps(document).encode(), kind)
            assert isinstance(found, manifests.Manifest | manifests.Descriptor)
