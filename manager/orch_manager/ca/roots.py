"""Decisions of the authority as pure functions of the Cluster and Node objects.

A change of the root goes through two phases, each ended when every node has done its part:

    steady     RootCa holds the root R; tokens name R; nodes trust R.
    renewing   RootCa.rotation holds the next root N. N signs, and what it signs comes with N's key certified by R, so
               that those who know only R accept it. Nodes renew, and learn to trust R and N.
    dropping   RootCa holds N, tokens name N. Nodes renew once more, and learn to trust N alone.

At every moment everybody accepts everybody's certificate; so connections may break and come back at any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orch_proto import defaults
from orch_proto.ca_pb2 import RootPhase
from orch_proto.objects_pb2 import Cluster, IssuanceState, Node, NodeCertificate, RootCa, RootRotation
from orch_proto.specs_pb2 import NodeRole
from orch_rpc.certificates import (
    Authority,
    CertificateRole,
    Subject,
    bundle_digest,
    digest,
    facts,
    join_bundle,
    new_authority,
)
from orch_rpc.errors import FailedPrecondition
from orch_rpc.tokens import JoinToken, new_secret


def phase_of(root_ca: RootCa) -> RootPhase.ValueType:
    """How far a change of the root is."""
    if not root_ca.HasField("rotation"):
        return RootPhase.ROOT_PHASE_STEADY
    return RootPhase.ROOT_PHASE_DROPPING if root_ca.rotation.dropping else RootPhase.ROOT_PHASE_RENEWING


def signing_authority(root_ca: RootCa) -> Authority:
    """The root that signs now.

    Raises:
        FailedPrecondition: the cluster has none.
    """
    if not root_ca.key_pem:
        raise FailedPrecondition(
            "cannot issue a certificate", "the cluster has no certificate authority", "make the cluster anew"
        )
    rotation = root_ca.rotation
    if phase_of(root_ca) == RootPhase.ROOT_PHASE_RENEWING:
        return Authority(rotation.new_certificate_pem, rotation.new_key_pem, rotation.cross_signed_pem)
    return Authority(root_ca.certificate_pem, root_ca.key_pem)


def trusted_roots(root_ca: RootCa) -> bytes:
    """What nodes are told to trust now, as PEM; the root that tokens name comes first."""
    if phase_of(root_ca) == RootPhase.ROOT_PHASE_RENEWING:
        return join_bundle([root_ca.certificate_pem, root_ca.rotation.new_certificate_pem])
    return join_bundle([root_ca.certificate_pem])


def begin_rotation(root_ca: RootCa, cluster_id: str, now_unix_ms: int) -> RootRotation:
    """The beginning of a change to a fresh root.

    Raises:
        FailedPrecondition: a change is under way.
    """
    if phase_of(root_ca) != RootPhase.ROOT_PHASE_STEADY:
        raise FailedPrecondition(
            "cannot rotate the root certificate", "a rotation is under way", "look at it with orch cluster ca"
        )
    present = signing_authority(root_ca)
    fresh = new_authority(cluster_id, now_unix_ms=now_unix_ms)
    return RootRotation(
        new_certificate_pem=fresh.certificate_pem,
        new_key_pem=fresh.key_pem,
        cross_signed_pem=present.cross_sign(fresh),
        started_at_unix_ms=now_unix_ms,
    )


def next_phase(root_ca: RootCa) -> RootCa:
    """The authority after every node has done what the present phase asks; the same in the steady one."""
    after = RootCa()
    after.CopyFrom(root_ca)
    phase = phase_of(root_ca)
    if phase == RootPhase.ROOT_PHASE_RENEWING:
        after.certificate_pem = root_ca.rotation.new_certificate_pem
        after.key_pem = root_ca.rotation.new_key_pem
        after.certificate_digest = digest(after.certificate_pem)
        after.rotation.CopyFrom(RootRotation(started_at_unix_ms=root_ca.rotation.started_at_unix_ms, dropping=True))
    elif phase == RootPhase.ROOT_PHASE_DROPPING:
        after.ClearField("rotation")
    return after


# ---- nodes -----------------------------------------------------------------------------------------


def certificate_role(node: Node) -> NodeRole.ValueType:
    """The role that a node's next certificate gets.

    Who is wanted as a manager gets a manager's at once, as it cannot join the managers without; who is not wanted any
    more keeps it until it has left them (`Node.role`): a member of Raft with a worker's certificate could not leave.
    """
    if NodeRole.NODE_ROLE_MANAGER in (node.spec.desired_role, node.role):
        return NodeRole.NODE_ROLE_MANAGER
    return NodeRole.NODE_ROLE_WORKER


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every node's certificate should be like; computed once for all nodes.

    Attributes:
        issuer_key_id: identifier of the key that signs now.
        roots_digest: digest of the roots that are trusted now.
    """

    issuer_key_id: str
    roots_digest: str

    def is_met_by(self, node: Node) -> bool:
        """True when the node has the certificate that it should have."""
        held = node.certificate
        return (
            held.issuer_key_id == self.issuer_key_id
            and held.roots_digest == self.roots_digest
            and held.role == certificate_role(node)
        )


def wanted(root_ca: RootCa) -> Wanted:
    """What certificates should be like now."""
    return Wanted(signing_authority(root_ca).key_id, bundle_digest(trusted_roots(root_ca)))


def issue_to_node(cluster: Cluster, node: Node, request_pem: bytes, now_unix_ms: int) -> NodeCertificate:
    """Signs a node's certificate; what is to stand in its Node object.

    Raises:
        InvalidArgument: the request is not valid.
        FailedPrecondition: the cluster has no authority.
    """
    authority = signing_authority(cluster.root_ca)
    role = certificate_role(node)
    manager = role == NodeRole.NODE_ROLE_MANAGER
    subject = Subject(node.id, CertificateRole.MANAGER if manager else CertificateRole.WORKER, cluster.id)
    lifetime_ms = cluster.spec.ca.node_certificate_lifetime_ms or defaults.NODE_CERTIFICATE_LIFETIME_MS
    lifetime_ms = max(lifetime_ms, defaults.NODE_CERTIFICATE_MIN_LIFETIME_MS)
    issued = authority.issue(request_pem, subject, lifetime_ms=lifetime_ms, now_unix_ms=now_unix_ms)
    said = facts(issued)
    return NodeCertificate(
        role=role,
        csr_pem=request_pem,
        state=IssuanceState.ISSUANCE_STATE_ISSUED,
        certificate_pem=issued,
        common_name=node.id,
        not_after_unix_ms=said.not_after_unix_ms,
        issuer_key_id=said.issuer_key_id,
        roots_digest=bundle_digest(trusted_roots(cluster.root_ca)),
    )


# ---- tokens ----------------------------------------------------------------------------------------


def token_text(root_ca: RootCa, secret: str) -> str:
    """A join token of the cluster."""
    return JoinToken(digest(root_ca.certificate_pem), secret).to_text()


def rotate_tokens(root_ca: RootCa, *, worker: bool, manager: bool) -> None:
    """Puts fresh secrets in the place of those named."""
    if worker:
        root_ca.join_tokens.worker = new_secret()
    if manager:
        root_ca.join_tokens.manager = new_secret()


def manager_addresses(nodes: Iterable[Node]) -> list[str]:
    """Where managers are reached, the leader's first: "10.0.0.5:2377"."""
    managers = [node.manager for node in nodes if node.HasField("manager") and node.manager.address]
    return [each.address for each in sorted(managers, key=lambda each: (not each.leader, each.address))]
