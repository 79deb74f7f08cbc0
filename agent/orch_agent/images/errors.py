"""What can go wrong with images.

    ImageError
    ├── InvalidReference    the caller's name of an image does not follow the grammar
    ├── ImageNotFound       no image of that name or id is on this node
    ├── ImageInUse          the image cannot be removed now
    ├── ArchiveRefused      an archive from outside is malformed, hostile or of an unknown kind
    │   ├── DigestMismatch  its content is not what its digest promises
    │   └── LimitExceeded   it is larger than this node accepts
    └── StoreCorrupt        the store's own files are not as this program wrote them

Each message says what failed, why, and what to do.
"""


class ImageError(Exception):
    """Base of all errors of images; raised by no one directly."""


class InvalidReference(ImageError):
    """Raised by `reference.parse` for a name that the distribution grammar does not allow."""


class ImageNotFound(ImageError):
    """Raised by the store when neither a reference nor an id matches."""


class ImageInUse(ImageError):
    """Raised by `ImageStore.remove` when tasks or further references need the image."""


class ArchiveRefused(ImageError):
    """Raised while an archive is read: nothing of it has been used."""


class DigestMismatch(ArchiveRefused):
    """Raised when bytes do not hash to the digest they were named by."""


class LimitExceeded(ArchiveRefused):
    """Raised when an archive has more entries or bytes than `limits.UnpackLimits` allows."""


class StoreCorrupt(ImageError):
    """Raised when a file of the store is missing or unreadable although the index names it."""
