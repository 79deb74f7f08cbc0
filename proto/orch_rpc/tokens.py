"""Join tokens: what admits a new node, and tells it which cluster to trust.

`ORCHTKN-1-<digest of the root certificate>-<secret>`, both in base 36. The digest (SHA-256 of its DER form, 50 digits)
lets the joiner check the manager before it says anything; the secret (128 bits, 25 digits) lets the manager check the
joiner. Which of the cluster's two secrets matches decides the role. (SwarmKit: ca/config.go)
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

from orch_rpc.errors import InvalidArgument

_PREFIX: Final = "ORCHTKN-1"
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_DIGEST_DIGITS: Final = 50  # 256 bits
_SECRET_DIGITS: Final = 25  # 128 bits
_FORM: Final = re.compile(rf"{_PREFIX}-([0-9a-z]{{{_DIGEST_DIGITS}}})-([0-9a-z]{{{_SECRET_DIGITS}}})", re.ASCII)
_DIGEST_BITS: Final = 256


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token, taken apart. Its secret is in no representation of it.

    Attributes:
        root_digest: SHA-256 of the root certificate, hexadecimal.
        secret: what the manager compares.
    """

    root_digest: str
    secret: str

    def __repr__(self) -> str:
        return f"JoinToken(root_digest={self.root_digest!r}, secret=…)"

    def to_text(self) -> str:
        """The token as people pass it on."""
        return f"{_PREFIX}-{_to_base36(int(self.root_digest, 16), _DIGEST_DIGITS)}-{self.secret}"


def new_secret() -> str:
    """A fresh secret of 128 random bits."""
    return _to_base36(secrets.randbits(128), _SECRET_DIGITS)


def parse_token(text: str) -> JoinToken:
    """Takes a token apart.

    Raises:
        InvalidArgument: it has another form. The message never repeats it.
    """
    match = _FORM.fullmatch(text.strip())
    digest = int(match.group(1), 36) if match is not None else 1 << _DIGEST_BITS
    if match is None or digest >> _DIGEST_BITS:
        raise InvalidArgument(
            "cannot use the join token",
            f"it does not have the form {_PREFIX}-…-… (it may have been cut when it was copied)",
            "print it on a manager with orch cluster token worker, or orch cluster token manager",
        )
    return JoinToken(root_digest=f"{digest:064x}", secret=match.group(2))


def secrets_match(given: str, kept: str) -> bool:
    """Compares two secrets in a time that does not depend on where they differ. An empty one matches nothing."""
    return bool(kept) and hmac.compare_digest(given.encode(), kept.encode())


def _to_base36(number: int, digits: int) -> str:
    out = []
    for _ in range(digits):
        number, digit = divmod(number, 36)
        out.append(_ALPHABET[digit])
    return "".join(reversed(out))
