"""Certificates, tokens and identities: what they bind, and what they refuse."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from orch_proto import defaults
from orch_rpc import certificates, tokens
from orch_rpc.certificates import CertificateRole, Subject
from orch_rpc.errors import FailedPrecondition, InvalidArgument, Unauthenticated
from orch_rpc.founding import found_trust
from orch_rpc.identity import Identity, IdentitySource, IdentityStore
from unit.trust.servers import DAY_MS, TestCluster, now_unix_ms, store_with


def test_a_certificate_says_who_its_holder_is() -> None:
    """Name, role, cluster and limit come back from a certificate as they went in."""
    cluster = TestCluster()
    identity = cluster.user("alice@example", CertificateRole.USER_DEPLOY, stack_prefix="shop-")
    assert identity.facts.subject == Subject("alice@example", CertificateRole.USER_DEPLOY, "cluster1", "shop-")
    assert identity.facts.issuer_key_id == cluster.authority.key_id


def test_a_certificate_begins_an_hour_ago_and_ends_when_it_should() -> None:
    """A host whose clock lags an hour accepts a fresh certificate, and none outlives its root."""
    now = now_unix_ms() // 1000 * 1000
    authority = certificates.new_authority("c", now_unix_ms=now, lifetime_ms=10 * DAY_MS)
    request = certificates.new_request(certificates.new_key())
    subject = Subject("n", CertificateRole.WORKER, "c")
    short = certificates.facts(authority.issue(request, subject, lifetime_ms=DAY_MS, now_unix_ms=now))
    assert short.not_before_unix_ms == now - defaults.CERTIFICATE_BACKDATE_MS
    assert short.not_after_unix_ms == now + DAY_MS
    long = certificates.facts(authority.issue(request, subject, lifetime_ms=90 * DAY_MS, now_unix_ms=now))
    assert long.not_after_unix_ms == now + 10 * DAY_MS


def test_only_a_manager_can_pose_as_a_server_of_the_cluster() -> None:
    """The name that clients ask for stands in managers' certificates alone."""
    cluster = TestCluster()

    def names(identity: Identity) -> list[str]:
        certificate = certificates.parse(identity.certificate_pem)
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return extension.value.get_values_for_type(x509.DNSName)

    assert names(cluster.manager("m1")) == ["m1.orch", "manager.orch"]
    assert names(cluster.worker("w1")) == ["w1.orch"]


def test_a_request_cannot_ask_for_anything() -> None:
    """What a signing request says besides its key is ignored: a joiner cannot name itself somebody else."""
    cluster = TestCluster()
    key = certificates.new_key()
    request = certificates.new_request(key, "manager9")
    issued = cluster.authority.issue(
        request, Subject("worker7", CertificateRole.WORKER, "cluster1"), lifetime_ms=DAY_MS, now_unix_ms=now_unix_ms()
    )
    assert certificates.facts(issued).subject.name == "worker7"


def test_foreign_requests_are_refused_in_words() -> None:
    """A request with another kind of key, with a broken signature, or that is none, is refused by name."""
    authority = TestCluster().authority
    subject = Subject("n", CertificateRole.WORKER, "c")

    def issue(request: bytes) -> None:
        authority.issue(request, subject, lifetime_ms=DAY_MS, now_unix_ms=now_unix_ms())

    rsa_request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(rsa.generate_private_key(public_exponent=65537, key_size=2048), hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    with pytest.raises(InvalidArgument, match="no EC key on the curve P-256"):
        issue(rsa_request)
    with pytest.raises(InvalidArgument, match="no certificate signing request"):
        issue(b"garbage")
    with pytest.raises(InvalidArgument, match="more than 65536 bytes"):
        issue(b"x" * 100_000)


@given(st.binary(max_size=300))
def test_no_bytes_are_more_than_refused(foreign: bytes) -> None:
    """Whatever a peer sends for a certificate or a token, reading it ends in a refusal and nothing else."""
    with pytest.raises(InvalidArgument):
        certificates.facts(foreign)
    with pytest.raises(InvalidArgument):
        tokens.parse_token(foreign.decode("latin-1"))


@given(st.integers(0, 2**256 - 1), st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=25, max_size=25))
def test_tokens_survive_their_own_text(digest: int, secret: str) -> None:
    """A token read back is the token written, whatever its digest."""
    token = tokens.JoinToken(f"{digest:064x}", secret)
    assert tokens.parse_token(f" {token.to_text()}\n") == token


def test_a_token_keeps_its_secret_to_itself() -> None:
    """Neither a token's representation nor the error about a broken one repeats the secret."""
    token = tokens.JoinToken("ab" * 32, tokens.new_secret())
    assert token.secret not in repr(token)
    with pytest.raises(InvalidArgument) as caught:
        tokens.parse_token(token.to_text()[:-1])
    assert token.secret[:10] not in str(caught.value)
    assert not tokens.secrets_match("", "")


def test_private_keys_are_in_no_representation() -> None:
    """Identities, authorities and founded trust can be logged without giving a key away."""
    cluster = TestCluster()
    founded = found_trust("c", "n", now_unix_ms=now_unix_ms())
    for text in (repr(cluster.manager()), repr(cluster.authority), repr(founded)):
        assert "PRIVATE" not in text


def test_an_identity_is_of_one_piece() -> None:
    """A certificate with the key of another is refused when it is put together, not in some handshake."""
    cluster = TestCluster()
    one, other = cluster.worker("a"), cluster.worker("b")
    with pytest.raises(InvalidArgument, match="its key is another one"):
        Identity(one.certificate_pem, other.key_pem, one.roots_pem)


def test_an_expired_node_is_told_what_to_do() -> None:
    """The one sentence: it expired, when, and that joining again with a token keeps id and volumes."""
    expired = TestCluster().expired_worker("w1")
    with pytest.raises(Unauthenticated) as caught:
        expired.check_valid()
    assert "cannot speak to the cluster as node w1: its certificate expired on 20" in str(caught.value)
    assert "join again with a token" in caught.value.todo
    assert "keeps its id and its volumes" in caught.value.todo


# ---- on disk ---------------------------------------------------------------------------------------


def test_an_identity_comes_back_from_disk_readable_by_its_owner_alone(tmp_path: Path) -> None:
    """What is saved is what is loaded; files have mode 0600 in a folder of mode 0700; nothing else is left."""
    identity = TestCluster().worker()
    store = store_with(tmp_path, TestCluster().worker())
    store.save(identity)
    assert store.load() == identity
    folder = store.folder.resolve()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "node.crt": 0o600,
        "node.key": 0o600,
        "root.crt": 0o600,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["certificates", folder.name])
    store.forget()
    assert store.load() is None
    assert list(tmp_path.iterdir()) == []


def test_readers_never_see_half_an_identity(tmp_path: Path) -> None:
    """While one identity replaces the other again and again, every reader gets a whole one."""
    cluster = TestCluster()
    both = [cluster.worker("a"), cluster.worker("b")]
    store = store_with(tmp_path, both[0])
    stop = threading.Event()

    def replace() -> None:
        for turn in range(150):
            store.save(both[turn % 2])
        stop.set()

    writer = threading.Thread(target=replace)
    writer.start()
    seen = set()
    while not stop.is_set():
        loaded = IdentityStore(tmp_path).load()
        assert loaded in both
        seen.add(loaded.name)
    writer.join()
    assert seen == {"a", "b"}


def test_a_save_that_fails_leaves_the_identity_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses halfway costs nothing: the identity before stays, and no litter."""
    cluster = TestCluster()
    store = store_with(tmp_path, cluster.worker("a"))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.save(cluster.worker("b"))
    loaded = store.load()
    assert loaded is not None
    assert loaded.name == "a"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_identity_is_refused_by_name(tmp_path: Path) -> None:
    """A missing or foreign file is named, with what to do; a running process goes on with what it has."""
    store = store_with(tmp_path, TestCluster().worker())
    errors: list[Exception] = []
    source = IdentitySource(store, errors.append)
    before = source.current()
    (store.folder / "node.key").unlink()
    with pytest.raises(FailedPrecondition, match=r"node\.key is missing; restore the folder, or join again"):
        store.load()
    assert source.current() is before
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "certificates").unlink()
    (tmp_path / "certificates").mkdir()
    with pytest.raises(FailedPrecondition, match="no symbolic link"):
        store.load()
    assert source.current() is before
    assert len(errors) == 1
