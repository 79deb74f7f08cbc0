"""Digests of content, and readers that compute them while the bytes pass."""

import hashlib
import re
from typing import Protocol

from orch_agent.images.errors import ArchiveRefused

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
CHUNK_BYTES = 1024 * 1024


class ByteSource(Protocol):
    """Anything that gives up to `size` bytes, and none at its end."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; empty at the end."""
        ...


def of_bytes(content: bytes) -> str:
    """The digest of bytes in memory."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def hex_of(digest: str) -> str:
    """The hexadecimal part of a digest.

    Raises:
        ArchiveRefused: it is not a sha256 digest; this also keeps names with slashes out of paths.
    """
    match = _DIGEST.match(digest)
    if not match:
        raise ArchiveRefused(
            f"{digest[:100]!r} is not a digest that orch can check; archives must use sha256: and 64 hexadecimal digits"
        )
    return match.group(1)


def chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the stacks of layers, lowest first (OCI image specification, config.md, Layer ChainID)."""
    chains: list[str] = []
    for diff_id in diff_ids:
        hex_of(diff_id)
        chains.append(of_bytes(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return tuple(chains)


class HashingReader:
    """Passes bytes through and hashes them; `digest()` after the end is the digest of all."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; empty at the end."""
        data = self._source.read(size)
        self._hash.update(data)
        self.size_bytes += len(data)
        return data

    def drain(self) -> None:
        """Read to the end, so that the digest covers everything."""
        while self.read(CHUNK_BYTES):
            pass

    def digest(self) -> str:
        """The digest of what has been read so far."""
        return "sha256:" + self._hash.hexdigest()
