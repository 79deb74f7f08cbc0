"""What can go wrong with registries.

ImageError
└── RegistryError           base; the registry, or the way to it, refused
├── NotInRegistry       it has no such image, or shows it to nobody without a name and password
├── RegistryDenied      the name and password are wrong, or not enough
├── RegistryUnreachable no connection, or it broke off again and again
└── SettingsInvalid     a file on this node about registries cannot be used
"""

from orch_agent.images.errors import ImageError


class RegistryError(ImageError):
    """Base; also raised for answers that no registry should give."""


class NotInRegistry(RegistryError):
    """Raised for 404, and for a refusal without credentials, which is what registries say of what is not there."""


class RegistryDenied(RegistryError):
    """Raised for 401 and 403 although credentials were sent."""


class RegistryUnreachable(RegistryError):
    """Raised when no endpoint answers."""


class SettingsInvalid(RegistryError):
    """Raised for a registries file or a docker configuration that cannot be read."""
