"""What a container asks of a node beyond its own walls, and whether the node's policy allows it.

One rule for the plan, the scheduler and the agent. What is asked for and what is allowed are the same words:
``privileged``, ``host-network``, ``seccomp`` (a filter of system calls of its own, or none), ``device:/dev/fuse``,
``bind:/etc``. A policy for a path allows what lies below it as
well; a node that allows ``privileged`` allows everything, since nothing keeps such a container from anything.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from typing import Final

from orch_proto.specs_pb2 import ContainerSpec
from orch_proto.types_pb2 import MountType

PRIVILEGED: Final = "privileged"
HOST_NETWORK: Final = "host-network"
SECCOMP: Final = "seccomp"
DEVICE: Final = "device:"
BIND: Final = "bind:"
#: Folders that hold the node's own programs, settings, secrets and control sockets.
_SENSITIVE: Final = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr",
    "/var/lib/orch", "/var/run",
)  # fmt: skip
#: Files of the node that containers may read: they say where it is, not who may do what.
_HARMLESS_TO_READ: Final = frozenset({"/etc/localtime", "/etc/timezone"})


def wanted(container: ContainerSpec) -> tuple[str, ...]:
    """What a container asks for, each once, in order."""
    words = []
    if container.privileges.privileged:
        words.append(PRIVILEGED)
    if container.namespaces.network == "host":
        words.append(HOST_NETWORK)
    if container.privileges.seccomp:
        words.append(SECCOMP)
    words += [f"{DEVICE}{posixpath.normpath(device.host_path)}" for device in container.devices]
    words += [
        f"{BIND}{posixpath.normpath(mount.source)}"
        for mount in container.mounts
        if mount.type == MountType.MOUNT_TYPE_BIND and is_sensitive(mount.source, read_only=mount.read_only)
    ]
    return tuple(dict.fromkeys(words))


def is_sensitive(source: str, *, read_only: bool) -> bool:
    """Whether a path of the node is one that a container gets only where the policy says so."""
    path = posixpath.normpath(source)
    if read_only and path in _HARMLESS_TO_READ:
        return False
    return any(_is_below(path, folder) or _is_below(folder, path) for folder in _SENSITIVE)


def first_refused(asked: Collection[str], policies: Collection[str]) -> str:
    """The first word that a node's policy does not allow; empty when it allows all."""
    if PRIVILEGED in policies:
        return ""
    return next((word for word in asked if not _allowed(word, policies)), "")


def check_policy(word: str) -> str:
    """Why a word is no policy; empty when it is one."""
    if word in (PRIVILEGED, HOST_NETWORK, SECCOMP):
        return ""
    kind, _, path = word.partition(":")
    if f"{kind}:" in (DEVICE, BIND) and path.startswith("/"):
        return ""
    return f"{word!r} is no policy; write {PRIVILEGED}, {HOST_NETWORK}, {SECCOMP}, {DEVICE}/dev/NAME or {BIND}/PATH"


def _allowed(word: str, policies: Collection[str]) -> bool:
    if word in policies:
        return True
    kind, _, path = word.partition(":")
    return any(
        policy.startswith(f"{kind}:") and _is_below(path, posixpath.normpath(policy.partition(":")[2]))
        for policy in policies
        if path
    )


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder if folder == "/" else f"{folder}/")
