"""What this node's administrator says about registries: mirrors, own certificate authorities, which are insecure.

One YAML file, `/etc/orch/registries.yml` unless `ORCH_REGISTRIES_FILE` names another; none is fine:

    docker.io:
      mirrors: [https://mirror.example.com]
    registry.example.com:5000:
      ca: /etc/orch/example-ca.pem
    old.example.com:
      insecure: true      # TLS without checking it, and plain HTTP where there is no TLS
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from orch_agent.images.reference import DEFAULT_REGISTRY
from orch_agent.images.registry.errors import SettingsInvalid

DEFAULT_FILE = Path("/etc/orch/registries.yml")
FILE_VARIABLE = "ORCH_REGISTRIES_FILE"
_FILE_BYTES = 1024 * 1024
_KEYS = {"mirrors", "insecure", "ca"}
#: The host behind the name that people write.
_HOSTS = {DEFAULT_REGISTRY: "registry-1.docker.io"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to ask for the images of a registry.

    Attributes:
        url: scheme, host and perhaps a path; without a slash at the end.
        verify: whether its certificate is checked.
        ca: file of the authorities to check it by; the system's without.
        registry: whose credentials are meant for it; empty for a mirror of another host.
    """

    url: str
    verify: bool = True
    ca: str = ""
    registry: str = ""


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """What is said about one registry."""

    mirrors: tuple[str, ...] = ()
    insecure: bool = False
    ca: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file."""

    registries: Mapping[str, RegistrySettings] = field(default_factory=dict)

    def endpoints(self, registry: str, *, with_mirrors: bool = True) -> tuple[Endpoint, ...]:
        """Where to ask for a registry's images, best first: its mirrors, then itself.

        A registry on this machine's loopback may speak plain HTTP, as with Docker.
        """
        said = self.registries.get(registry, RegistrySettings())
        found: list[Endpoint] = []
        for mirror in said.mirrors if with_mirrors else ():
            host = urlsplit(mirror).netloc
            of_mirror = self.registries.get(host, RegistrySettings())
            found.append(Endpoint(mirror.rstrip("/"), not of_mirror.insecure, of_mirror.ca, host))
        host = _HOSTS.get(registry, registry)
        insecure = said.insecure or _is_loopback(registry)
        found.append(Endpoint(f"https://{host}", not insecure, said.ca, registry))
        if insecure:
            found.append(Endpoint(f"http://{host}", registry=registry))
        return tuple(found)


def read_settings(path: Path | None = None) -> Settings:
    """Read the file; a missing one says nothing.

    Raises:
        SettingsInvalid: it is not what the head of this module shows.
    """
    path = path or Path(os.environ.get(FILE_VARIABLE) or DEFAULT_FILE)
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES + 1)
        if len(raw) > _FILE_BYTES:
            raise SettingsInvalid(f"cannot use {path}: it is larger than {_FILE_BYTES} bytes; shorten it")
        document = yaml.safe_load(raw)
    except FileNotFoundError:
        return Settings()
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise SettingsInvalid(f"cannot use {path}: {' '.join(str(error).split())}; mend the file") from error
    if document is None:
        return Settings()
    if not isinstance(document, dict):
        raise _invalid(path, "it is not a table of registries")
    return Settings({_host(path, name): _registry(path, name, value) for name, value in document.items()})


def _host(path: Path, name: object) -> str:
    if not isinstance(name, str) or "/" in name or not name:
        raise _invalid(path, f"{name!r} is not the name of a registry, as in registry.example.com:5000")
    return name


def _registry(path: Path, name: str, value: object) -> RegistrySettings:
    if not isinstance(value, dict) or not set(value) <= _KEYS:
        raise _invalid(path, f"{name} may have the keys {', '.join(sorted(_KEYS))} and no other")
    mirrors, insecure, authority = value.get("mirrors", []), value.get("insecure", False), value.get("ca", "")
    urls = isinstance(mirrors, list) and all(
        isinstance(url, str) and urlsplit(url).scheme in ("https", "http") and urlsplit(url).netloc for url in mirrors
    )
    if not urls:
        raise _invalid(path, f"mirrors of {name} is not a list of https:// addresses")
    if not isinstance(insecure, bool) or not isinstance(authority, str):
        raise _invalid(path, f"{name}: insecure is true or false, ca the name of a file")
    return RegistrySettings(tuple(mirrors), insecure, authority)


def _invalid(path: Path, why: str) -> SettingsInvalid:
    return SettingsInvalid(f"cannot use {path}: {why}; mend the file")


def _is_loopback(registry: str) -> bool:
    host = registry.rsplit(":", 1)[0] if not registry.endswith("]") else registry
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
