"""Names and passwords for registries, as docker, podman and their login commands keep them on this node.

Read anew for each pull: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; entries of `auths`, and helpers
(`credHelpers`, `credsStore`), which are programs called docker-credential-NAME.
"""

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orch_agent.images.reference import DEFAULT_REGISTRY
from orch_agent.images.registry.errors import SettingsInvalid

_FILE_BYTES = 1024 * 1024
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+\Z")
_HELPER_TIMEOUT_S = 20.0
#: Under which name docker keeps its own hub's.
_HUB_KEY = "https://index.docker.io/v1/"
#: A helper gives this name with a token that is exchanged for others.
_TOKEN_USER = "<token>"  # noqa: S105 -- a name, no secret


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of one registry. Either a name and a password, or a token that is exchanged for others."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


def find(registry: str, path: Path | None = None) -> Credentials | None:
    """What this node has for a registry; None: nothing.

    Raises:
        SettingsInvalid: the file, or the helper it names, is unusable.
    """
    path = path or Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_FILE_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsInvalid(f"cannot use {path}: {error}; mend it, or log in again") from error
    if not isinstance(document, dict):
        raise SettingsInvalid(f"cannot use {path}: it is not a table; log in again")
    key = _HUB_KEY if registry == DEFAULT_REGISTRY else registry
    helper = _table(document, "credHelpers").get(key) or document.get("credsStore")
    if helper and (found := _from_helper(str(helper), key)):
        return found
    entry = _table(document, "auths").get(key) or _table(document, "auths").get(f"https://{key}")
    return _from_entry(path, registry, entry) if isinstance(entry, dict) else None


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _from_entry(path: Path, registry: str, entry: Mapping[str, Any]) -> Credentials | None:
    if isinstance(token := entry.get("identitytoken"), str) and token:
        return Credentials(identity_token=token)
    if isinstance(auth := entry.get("auth"), str) and auth:
        try:
            username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise SettingsInvalid(f"cannot use {path}: auth of {registry} is not base64; log in again") from error
        if not colon:
            raise SettingsInvalid(f"cannot use {path}: auth of {registry} has no password; log in again")
        return Credentials(username, password)
    name, secret = entry.get("username"), entry.get("password")
    return Credentials(name, secret) if isinstance(name, str) and isinstance(secret, str) else None


def _from_helper(name: str, key: str) -> Credentials | None:
    program = f"docker-credential-{name}"
    if not _HELPER_NAME.match(name):
        raise SettingsInvalid(f"will not run the credential helper {program!r}: that is no name of a program")
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingsInvalid(f"cannot run the credential helper {program}: {error}; install or remove it") from error
    if done.returncode != 0:
        return None  # helpers say so of registries they do not know
    try:
        answer = json.loads(done.stdout[:_FILE_BYTES])
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise SettingsInvalid(f"the credential helper {program} answered nothing usable; look after it") from None
    return Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)
