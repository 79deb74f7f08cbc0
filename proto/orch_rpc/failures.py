"""Why a TLS connection did not come about, in words; gRPC tells it in those of its library.

The words on the left are of grpc 1.80 and later with its BoringSSL; `tests/unit/trust` provokes each of them.
"""

from __future__ import annotations

from typing import Final

#: What a client reads when a server has ended the handshake: in TLS 1.3 the server judges the client's certificate
#: last, and does not say what it has against it.
_REFUSED: Final = (
    "the manager closed the connection: it accepts no certificate that has expired or is of another cluster",
    "see when the certificate ends (orch context ls, orch node info); join again, or have an admin issue another one",
)
_REASONS: Final[tuple[tuple[str, tuple[str, str]], ...]] = (
    (
        "Hostname Verification Check failed",
        ("what answers there is no manager of an orch cluster", "check the address: a manager's port is asked for"),
    ),
    (
        "certificate has expired",
        (
            "the manager's certificate has expired, or this host's clock is wrong",
            "compare the clocks; the manager's own log says what to do with its certificate",
        ),
    ),
    (
        "certificate is not yet valid",
        ("the manager's certificate begins in the future: the clocks differ", "set the clocks of both hosts"),
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        (
            "the manager's certificate is of another cluster, or of a root that was rotated away",
            "check the address; after a rotation, have an admin issue another certificate: orch cluster user add",
        ),
    ),
    (
        "certificate signature failure",
        ("the manager's certificate is of another cluster", "check the address, or use another context"),
    ),
    (
        "WRONG_VERSION_NUMBER",
        ("what answers there does not speak TLS", "check the address: a manager's port is asked for"),
    ),
    ("Handshake read failed", _REFUSED),
    ("Socket closed", _REFUSED),
    ("recvmsg:Connection reset", _REFUSED),
)


def explain_connection(details: str) -> tuple[str, str] | None:
    """The reason in a status's details, and what to do; None when it is no failure of TLS.

    Args:
        details: of a status UNAVAILABLE.
    """
    if "failed to connect to all addresses" not in details or not ("ipv4:" in details or "ipv6:" in details):
        return None
    return next((told for words, told in _REASONS if words in details), None)
