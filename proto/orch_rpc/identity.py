"""A node's identity on disk: its certificate, its key, and the roots that it trusts.

They stand together in a folder that is replaced as a whole: `certificates` is a symbolic link to a folder that is never
changed, and a new identity is a new folder and a rename of the link. So a reader never sees the certificate of one
identity beside the key of another, whatever is killed when.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orch_rpc import certificates
from orch_rpc.certificates import CertificateFacts, CertificateRole
from orch_rpc.errors import FailedPrecondition, InvalidArgument, Unauthenticated

FOLDER_NAME: Final = "certificates"
_CERTIFICATE: Final = "node.crt"
_KEY: Final = "node.key"
_ROOTS: Final = "root.crt"
_READ_ATTEMPTS: Final = 5  # each lost race means that a newer identity was written meanwhile
_MAX_FILE_BYTES: Final = 64 * 1024

REJOIN: Final = (
    "join again with a token (orch cluster join --token TOKEN HOST:2377; print one on a manager with "
    "orch cluster token worker): the node keeps its id and its volumes"
)


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node, or a user, is.

    Attributes:
        certificate_pem: the certificate, and what links it to an older root.
        key_pem: its private key.
        roots_pem: the roots that are trusted, one or several.
        facts: what the certificate says.

    Raises:
        InvalidArgument: when made of parts that do not belong together.
    """

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    roots_pem: bytes
    facts: CertificateFacts = field(init=False)

    def __post_init__(self) -> None:
        certificates.check_key_matches(self.certificate_pem, self.key_pem)
        certificates.parse_all(self.roots_pem)
        object.__setattr__(self, "facts", certificates.facts(self.certificate_pem))

    @property
    def name(self) -> str:
        """Node id, or name of the user."""
        return self.facts.subject.name

    @property
    def role(self) -> CertificateRole:
        """What the certificate lets its holder be."""
        return self.facts.subject.role

    @property
    def cluster_id(self) -> str:
        """Of which cluster."""
        return self.facts.subject.cluster_id

    @property
    def roots_digest(self) -> str:
        """Digest of the set of trusted roots."""
        return certificates.bundle_digest(self.roots_pem)

    def check_valid(self, now_unix_ms: int | None = None) -> None:
        """Checks that the certificate has not expired.

        Raises:
            Unauthenticated: it has; the message says what to do.
        """
        now = _now_unix_ms() if now_unix_ms is None else now_unix_ms
        ended = self.facts.not_after_unix_ms
        if now < ended:
            return
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ended / 1000))
        if self.role.is_node:
            raise Unauthenticated(
                f"cannot speak to the cluster as node {self.name}", f"its certificate expired on {day}", REJOIN
            )
        raise Unauthenticated(
            f"cannot speak to the cluster as user {self.name}",
            f"the certificate expired on {day}",
            "have an admin issue another: orch cluster user add",
        )


class IdentityStore:
    """Reads and writes a node's identity below its state folder.

    Args:
        state_dir: the folder; it must exist.
    """

    def __init__(self, state_dir: Path) -> None:
        self._link = state_dir / FOLDER_NAME

    @property
    def folder(self) -> Path:
        """Where `node.crt`, `node.key` and `root.crt` stand."""
        return self._link

    def load(self) -> Identity | None:
        """The identity; None for a node that has none.

        Raises:
            FailedPrecondition: it is there and cannot be used.
        """
        for _ in range(_READ_ATTEMPTS):
            generation = self.generation()
            if not generation:
                return None
            folder = self._link.parent / generation
            try:
                parts = [_read(folder / name) for name in (_CERTIFICATE, _KEY, _ROOTS)]
            except FileNotFoundError as error:
                if self.generation() != generation:
                    continue
                raise self._unusable(f"{error.filename} is missing") from error
            except OSError as error:
                raise self._unusable(str(error)) from error
            try:
                return Identity(*parts)
            except InvalidArgument as error:
                raise self._unusable(str(error)) from error
        raise self._unusable("it is being replaced all the time")

    def generation(self) -> str:
        """Names the identity that stands there now; changes with every `save`. Empty when there is none.

        Raises:
            FailedPrecondition: something else is in the way.
        """
        try:
            return str(self._link.readlink())
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise self._unusable("it is no symbolic link to a folder of certificates") from error

    def save(self, identity: Identity) -> None:
        """Writes an identity so that it survives power loss, in the place of the one before.

        Raises:
            OSError: it cannot be written; the one before stays.
        """
        self.generation()  # refuses when something else is in the way
        parent = self._link.parent
        folder = parent / f"{FOLDER_NAME}-{secrets.token_hex(8)}"
        aside = parent / f"{folder.name}.link"
        folder.mkdir(mode=0o700)
        try:
            _write(folder / _CERTIFICATE, identity.certificate_pem)
            _write(folder / _KEY, identity.key_pem)
            _write(folder / _ROOTS, identity.roots_pem)
            _sync_folder(folder)
            aside.symlink_to(folder.name)
            aside.rename(self._link)
        except BaseException:
            aside.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        _sync_folder(parent)
        self._remove_others(keep=folder.name)

    def forget(self) -> None:
        """Removes the identity: the node is in no cluster any more."""
        self._link.unlink(missing_ok=True)
        self._remove_others(keep="")

    def _remove_others(self, *, keep: str) -> None:
        """Removes folders that nothing points to; what a killed writer left too."""
        for folder in self._link.parent.glob(f"{FOLDER_NAME}-*"):
            if folder.is_symlink():
                folder.unlink(missing_ok=True)
            elif folder.name != keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _unusable(self, why: str) -> FailedPrecondition:
        return FailedPrecondition(f"cannot use the identity in {self._link}", why, f"restore the folder, or {REJOIN}")


class IdentitySource:
    """The identity as it stands on disk now; read again when it was replaced. Any thread may ask.

    Args:
        store: where it stands.
        on_error: told when a newer one cannot be read; the one before is used on.
    """

    def __init__(self, store: IdentityStore, on_error: Callable[[Exception], None] = lambda _error: None) -> None:
        self._store = store
        self._on_error = on_error
        self._lock = threading.Lock()
        self._generation = ""
        self._identity: Identity | None = None

    def current(self) -> Identity:
        """The identity.

        Raises:
            FailedPrecondition: there is none, or it cannot be used.
        """
        with self._lock:
            try:
                generation = self._store.generation()
                if generation != self._generation or self._identity is None:
                    self._identity = self._store.load() or self._identity
                    self._generation = generation
            except FailedPrecondition as error:
                if self._identity is None:
                    raise
                self._on_error(error)
            if self._identity is None:
                raise FailedPrecondition(
                    "cannot speak to the cluster", "this node has no certificate", "join a cluster: orch cluster join"
                )
            return self._identity


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_MAX_FILE_BYTES)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
