"""Short digests for names and tags, without ``hashlib``: that would map all of OpenSSL into a small process."""

from __future__ import annotations

from _blake2 import blake2b


def short_digest(data: bytes, size_bytes: int) -> str:
    """A BLAKE2b digest in hexadecimal, ``2 * size_bytes`` characters."""
    return blake2b(data, digest_size=size_bytes).hexdigest()
