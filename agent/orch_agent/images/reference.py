"""Names of images: the grammar and the short forms people type.

Source: the distribution specification's grammar of names and the rules by which docker shortens them:
`x`, `x:latest`, `library/x` and `docker.io/library/x:latest` are one name.
"""

import re
from dataclasses import dataclass

from orch_agent.images.errors import InvalidReference

DEFAULT_REGISTRY = "docker.io"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
NAME_MAX_BYTES = 255

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A complete name: registry, repository, and a tag or a digest (or both)."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def canonical(self) -> str:
        """The one spelling under which the store keeps it."""
        return self.name + self._suffix()

    @property
    def familiar(self) -> str:
        """The spelling people type: without the default registry and namespace, with the tag."""
        return self.familiar_name + self._suffix()

    @property
    def familiar_name(self) -> str:
        """The repository as people type it."""
        if self.registry != DEFAULT_REGISTRY:
            return self.name
        namespace, _, rest = self.repository.partition("/")
        return rest if namespace == DEFAULT_NAMESPACE and rest and "/" not in rest else self.repository

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """Read a name in any of its forms and return it complete.

    Raises:
        InvalidReference: naming the part that is wrong.
    """
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.match(digest):
        raise _invalid(text, f"{digest!r} is not a digest", "write sha256: and 64 hexadecimal digits after the @")
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.match(tag):
        raise _invalid(text, f"{tag!r} is not a tag", "a tag has up to 128 letters, digits, dots, dashes, underscores")
    path = head + slash + last
    if not path:
        raise _invalid(text, "it has no repository", "write a name such as web or web:1.0")
    registry, repository = _split_registry(path)
    if not _REGISTRY.match(registry):
        raise _invalid(text, f"{registry!r} is not a registry", "write host or host:port before the first slash")
    for component in repository.split("/"):
        if not _COMPONENT.match(component):
            hint = "use lower case letters, digits, and single dots, dashes or underscores between them"
            raise _invalid(text, f"{component!r} cannot be part of a repository's name", hint)
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"{DEFAULT_NAMESPACE}/{repository}"
    if len(f"{registry}/{repository}") > NAME_MAX_BYTES:
        raise _invalid(text, f"it is longer than {NAME_MAX_BYTES} characters", "choose a shorter name")
    if not colon and not at:
        tag = DEFAULT_TAG
    return Reference(registry, repository, tag or None, digest or None)


def _split_registry(path: str) -> tuple[str, str]:
    """The first component is a registry if it could not be a repository: a dot, a port, or `localhost`."""
    first, slash, rest = path.partition("/")
    if slash and (first == "localhost" or any(mark in first for mark in ".:[") or first != first.lower()):
        return (DEFAULT_REGISTRY if first == "index.docker.io" else first), rest
    return DEFAULT_REGISTRY, path


def _invalid(text: str, why: str, remedy: str) -> InvalidReference:
    return InvalidReference(f"invalid image reference {text[:300]!r}: {why}; {remedy}")
