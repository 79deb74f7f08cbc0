"""The trust of a new cluster: its root, its tokens, and the certificate of the node that founds it."""

from __future__ import annotations

from dataclasses import dataclass

from orch_proto import defaults
from orch_proto.objects_pb2 import IssuanceState, JoinTokens, NodeCertificate, RootCa
from orch_proto.specs_pb2 import NodeRole
from orch_rpc.certificates import CertificateRole, Subject, bundle_digest, digest, new_authority, new_key, new_request
from orch_rpc.identity import Identity
from orch_rpc.tokens import JoinToken, new_secret


@dataclass(frozen=True, slots=True)
class FoundedTrust:
    """What `found_trust` makes.

    Attributes:
        root_ca: goes into the Cluster object; it holds the root's key.
        node_certificate: goes into the founder's Node object.
        identity: goes onto the founder's disk.
    """

    root_ca: RootCa
    node_certificate: NodeCertificate
    identity: Identity

    def __repr__(self) -> str:
        return f"FoundedTrust({self.identity.name})"

    @property
    def worker_token(self) -> str:
        """The token that admits workers."""
        return JoinToken(self.root_ca.certificate_digest, self.root_ca.join_tokens.worker).to_text()

    @property
    def manager_token(self) -> str:
        """The token that admits managers."""
        return JoinToken(self.root_ca.certificate_digest, self.root_ca.join_tokens.manager).to_text()


def found_trust(cluster_id: str, node_id: str, *, now_unix_ms: int, lifetime_ms: int = 0) -> FoundedTrust:
    """Makes a cluster's root and tokens, and the founder's identity.

    Args:
        cluster_id: of the new cluster.
        node_id: of its first manager.
        now_unix_ms: the time.
        lifetime_ms: of the founder's certificate; 0: the default.
    """
    authority = new_authority(cluster_id, now_unix_ms=now_unix_ms)
    key = new_key()
    request = new_request(key)
    certificate = authority.issue(
        request,
        Subject(node_id, CertificateRole.MANAGER, cluster_id),
        lifetime_ms=max(
            lifetime_ms or defaults.NODE_CERTIFICATE_LIFETIME_MS, defaults.NODE_CERTIFICATE_MIN_LIFETIME_MS
        ),
        now_unix_ms=now_unix_ms,
    )
    identity = Identity(certificate, key, authority.certificate_pem)
    return FoundedTrust(
        root_ca=RootCa(
            certificate_pem=authority.certificate_pem,
            key_pem=authority.key_pem,
            certificate_digest=digest(authority.certificate_pem),
            join_tokens=JoinTokens(worker=new_secret(), manager=new_secret()),
        ),
        node_certificate=NodeCertificate(
            role=NodeRole.NODE_ROLE_MANAGER,
            csr_pem=request,
            state=IssuanceState.ISSUANCE_STATE_ISSUED,
            certificate_pem=certificate,
            common_name=node_id,
            not_after_unix_ms=identity.facts.not_after_unix_ms,
            issuer_key_id=identity.facts.issuer_key_id,
            roots_digest=bundle_digest(authority.certificate_pem),
        ),
        identity=identity,
    )
