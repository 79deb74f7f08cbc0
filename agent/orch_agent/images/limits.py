"""Bounds on what an archive from outside may ask of this node."""

from dataclasses import dataclass

MEBIBYTE = 1024 * 1024
GIBIBYTE = 1024 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """Bounds for one layer; the defaults are a generous multiple of the largest public images."""

    entries: int = 1_000_000
    """Entries of one layer. The largest public layers hold about 300,000; each entry costs an inode."""

    unpacked_bytes: int = 64 * GIBIBYTE
    """Bytes of one layer after decompression: what stops a gzip bomb."""

    path_bytes: int = 4096
    """Length of one path, the kernel's PATH_MAX."""

    path_depth: int = 255
    """Components of one path; keeps the directory walk and the clean-up shallow."""

    extended_header_bytes: int = 1 * MEBIBYTE
    """One pax or GNU long-name header; held in memory."""


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Bounds for a whole archive of images."""

    unpacked_bytes: int = 256 * GIBIBYTE
    """Bytes of the outer tar after decompression."""

    members: int = 100_000
    """Files in the outer tar; each is held as one entry of a table in memory."""

    images: int = 1_000
    """Images in one archive."""

    layers: int = 500
    """Layers of one image; the kernel's overlay takes 500 lower directories."""

    document_bytes: int = 4 * MEBIBYTE
    """One JSON document (manifest, config, index), the distribution specification's advice for manifests."""

    index_depth: int = 4
    """Nesting of OCI indexes within indexes."""


DEFAULT_UNPACK_LIMITS = UnpackLimits()
DEFAULT_ARCHIVE_LIMITS = ArchiveLimits()
XZ_MEMORY_BYTES = 256 * MEBIBYTE
"""Memory an xz stream may ask for; `xz -9` needs 65 MiB to decompress."""
