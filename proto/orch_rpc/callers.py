"""Who calls: read from the connection (certificate, or the host's unix socket), or named by a manager that forwards."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from orch_rpc.certificates import CertificateRole, facts
from orch_rpc.errors import OrchError, PermissionDenied, Unauthenticated

#: Metadata in which a manager that forwards a call names the original caller.
FORWARDED_CALLER_KEY: Final = "orch-caller-bin"
_MAX_FORWARDED_BYTES: Final = 1024
_KNOWN_CERTIFICATES: Final = 1024  # parsed once, not for every call
_TLS_VERSION: Final = b"TLSv1.3"


class CallerKind(StrEnum):
    """What kinds of callers there are."""

    #: Over the unix socket of the manager's host: root and the group orch.
    LOCAL = "local"
    MANAGER = "manager"
    WORKER = "worker"
    USER = "user"
    #: Over TLS without a certificate: somebody who wants to join.
    ANONYMOUS = "anonymous"


class UserRole(StrEnum):
    """What a person may do: read < deploy < admin."""

    READ = "read"
    DEPLOY = "deploy"
    ADMIN = "admin"


_USER_ROLES: Final = {
    CertificateRole.USER_READ: UserRole.READ,
    CertificateRole.USER_DEPLOY: UserRole.DEPLOY,
    CertificateRole.USER_ADMIN: UserRole.ADMIN,
}
_NODE_KINDS: Final = {CertificateRole.MANAGER: CallerKind.MANAGER, CertificateRole.WORKER: CallerKind.WORKER}


@dataclass(frozen=True, slots=True)
class Caller:
    """The one on whose behalf a call is answered.

    Attributes:
        kind: see there.
        id: node id, or name of a user; empty for local and anonymous callers.
        cluster_id: of which cluster; empty for local and anonymous callers.
        user_role: of a user.
        stack_prefix: of a user whose role is limited to stacks whose names begin so; empty: not limited.
        not_after_unix_ms: when the certificate ends; 0 without one.
        forwarded_by: id of the manager that passed the call on; empty when it came directly.
    """

    kind: CallerKind
    id: str = ""
    cluster_id: str = ""
    user_role: UserRole | None = None
    stack_prefix: str = ""
    not_after_unix_ms: int = 0
    forwarded_by: str = ""

    def __str__(self) -> str:
        if self.user_role is not None:
            limit = f", stacks {self.stack_prefix}*" if self.stack_prefix else ""
            return f"user {self.id} ({self.user_role}{limit})"
        return f"{self.kind} {self.id}".rstrip()

    @property
    def is_node(self) -> bool:
        """True for managers and workers."""
        return self.kind in (CallerKind.MANAGER, CallerKind.WORKER)

    def to_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """What a manager adds to a call that it forwards for this caller."""
        values = {
            "kind": self.kind,
            "id": self.id,
            "cluster": self.cluster_id,
            "role": self.user_role or "",
            "prefix": self.stack_prefix,
            "not_after": self.not_after_unix_ms,
        }
        return ((FORWARDED_CALLER_KEY, json.dumps(values).encode()),)


LOCAL: Final = Caller(CallerKind.LOCAL)
ANONYMOUS: Final = Caller(CallerKind.ANONYMOUS)


def caller_of(context: Any) -> Caller:
    """The caller of a gRPC call, from a `grpc.aio.ServicerContext`; the original one of a call that was forwarded.

    Raises:
        Unauthenticated: the connection shows nobody whom orch knows.
        PermissionDenied: somebody who is no manager names another caller.
    """
    peer = _peer_of(context)
    forwarded = [value for key, value in context.invocation_metadata() or () if key == FORWARDED_CALLER_KEY]
    if not forwarded:
        return peer
    if peer.kind is not CallerKind.MANAGER:
        raise PermissionDenied("cannot answer", f"only managers speak for others, and {peer} is none")
    return _named(forwarded, peer)


def _peer_of(context: Any) -> Caller:
    what = "cannot answer"
    if context.peer().startswith("unix:"):
        return LOCAL
    connection = context.auth_context()
    if connection.get("transport_security_type") != [b"ssl"]:
        raise Unauthenticated(what, "the connection is not encrypted", "use an address of a manager's TLS port")
    if connection.get("ssl_tls_version") != [_TLS_VERSION]:
        raise Unauthenticated(what, "the connection does not use TLS 1.3", "use a client that can")
    shown = connection.get("x509_pem_cert")
    return certificate_caller(bytes(shown[0])) if shown else ANONYMOUS


@lru_cache(maxsize=_KNOWN_CERTIFICATES)
def certificate_caller(certificate_pem: bytes) -> Caller:
    """Whom a certificate, which the handshake has verified, is for.

    Raises:
        Unauthenticated: it is no node's and no user's.
    """
    try:
        found = facts(certificate_pem)
    except OrchError as error:
        raise Unauthenticated("cannot answer", f"of the caller's certificate: {error.why}") from error
    subject = found.subject
    return Caller(
        kind=_NODE_KINDS.get(subject.role, CallerKind.USER),
        id=subject.name,
        cluster_id=subject.cluster_id,
        user_role=_USER_ROLES.get(subject.role),
        stack_prefix=subject.stack_prefix,
        not_after_unix_ms=found.not_after_unix_ms,
    )


def _named(values: list[bytes], manager: Caller) -> Caller:
    """The caller that a manager names."""
    refused = PermissionDenied("cannot answer", f"{manager} forwards a call and does not say properly for whom")
    if len(values) != 1 or len(values[0]) > _MAX_FORWARDED_BYTES:
        raise refused
    try:
        read = json.loads(values[0])
        role = read["role"]
        caller = Caller(
            kind=CallerKind(read["kind"]),
            id=str(read["id"]),
            cluster_id=str(read["cluster"]),
            user_role=UserRole(role) if role else None,
            stack_prefix=str(read["prefix"]),
            not_after_unix_ms=int(read["not_after"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise refused from error
    if (caller.kind is CallerKind.USER) != (caller.user_role is not None):
        raise refused
    return replace(caller, forwarded_by=manager.id)
