"""The beginning of a cluster's trust: its root, its join tokens, and the certificate of the node that founds it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from orch_agent.node_state import Membership
from orch_proto import defaults
from orch_proto import objects_pb2 as objects
from orch_rpc.certificates import CertificateRole, Subject, digest, new_authority, new_key, new_request
from orch_rpc.identity import Identity
from orch_rpc.tokens import JoinToken, new_secret


@dataclass(frozen=True, slots=True)
class FoundedTrust:
    """What a founder begins with.

    Attributes:
        root_ca: for the Cluster object; it holds the root's key.
        identity: of the founding node.
        worker_token: admits workers.
    """

    root_ca: objects.RootCa
    identity: Identity
    worker_token: str

    def __repr__(self) -> str:
        return f"FoundedTrust({self.identity!r})"


def found_trust(membership: Membership, lifetime_ms: int = 0) -> FoundedTrust:
    """Makes a root and, with it, the founder's certificate; takes some milliseconds of a processor.

    Args:
        membership: of the founder.
        lifetime_ms: of its certificate; 0: the default.
    """
    now = time.time_ns() // 1_000_000
    authority = new_authority(membership.cluster_id, now_unix_ms=now)
    key = new_key()
    subject = Subject(membership.node_id, CertificateRole.MANAGER, membership.cluster_id)
    certificate = authority.issue(
        new_request(key, membership.node_id),
        subject,
        lifetime_ms=lifetime_ms or defaults.NODE_CERTIFICATE_LIFETIME_MS,
        now_unix_ms=now,
    )
    root_digest = digest(authority.certificate_pem)
    tokens = objects.JoinTokens(worker=new_secret(), manager=new_secret())
    root_ca = objects.RootCa(
        certificate_pem=authority.certificate_pem,
        key_pem=authority.key_pem,
        certificate_digest=root_digest,
        join_tokens=tokens,
    )
    token = JoinToken(root_digest, tokens.worker).to_text()
    return FoundedTrust(root_ca, Identity(certificate, key, authority.certificate_pem), token)
