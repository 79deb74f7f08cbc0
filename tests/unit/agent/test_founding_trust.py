"""What a founder begins its cluster's trust with."""

from __future__ import annotations

from orch_agent.founding_trust import found_trust
from orch_agent.node_state import Membership
from orch_rpc.certificates import CertificateRole, digest, is_issued_by
from orch_rpc.tokens import parse_token

FOUNDER = Membership("node1", "cluster1", "10.0.0.1:2377", "0.0.0.0:2377", "10.0.0.1", ("10.0.0.1:2377",))


def test_the_founder_has_a_managers_certificate_of_its_own_root() -> None:
    """The founding node is a manager of the cluster that it makes, by the root in the Cluster object."""
    founded = found_trust(FOUNDER)
    assert founded.identity.role is CertificateRole.MANAGER
    assert (founded.identity.name, founded.identity.cluster_id) == ("node1", "cluster1")
    assert is_issued_by(founded.identity.certificate_pem, [founded.root_ca.certificate_pem])


def test_the_first_token_binds_the_root_and_admits_workers() -> None:
    """The token that init prints names the root's digest and holds the workers' secret, which is not the managers'."""
    founded = found_trust(FOUNDER)
    token = parse_token(founded.worker_token)
    assert token.root_digest == digest(founded.root_ca.certificate_pem)
    assert token.secret == founded.root_ca.join_tokens.worker != founded.root_ca.join_tokens.manager


def test_no_secret_is_in_what_is_printed_of_it() -> None:
    """A log line or a traceback that shows the founding shows no key and no token."""
    founded = found_trust(FOUNDER)
    shown = repr(founded)
    assert founded.root_ca.join_tokens.worker not in shown
    assert b"PRIVATE" not in shown.encode()
