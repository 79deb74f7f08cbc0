"""The files that a task finds besides its image: hosts, hostname, resolv.conf, secrets and configs.

They stand in the task's folder below the node's run directory, which is a tmpfs, so secrets never reach a disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orch_agent.errors import TaskFailure
from orch_agent.task import process
from orch_agent.task.templates import NodeFacts
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types

_LOCAL_HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_DEFAULT_FILE_MODE = 0o444


@dataclass(frozen=True, slots=True)
class BindFile:
    """A file of the node that appears at a path inside the task."""

    source: Path
    target: str
    read_only: bool


def hosts_file(task: objects.Task, own_name: str, gateway: str) -> str:
    """Text of /etc/hosts: the usual lines, the service's extra hosts, the task's own name at its first address.

    Args:
        task: the task.
        own_name: its host name.
        gateway: what ``host-gateway`` stands for: the node's address.
    """
    lines = [_LOCAL_HOSTS]
    for entry in task.spec.container.hosts:
        address = gateway if entry.address == "host-gateway" else entry.address
        lines.append(f"{address}\t{entry.hostname}\n")
    for attachment in task.networks:
        lines.extend(f"{address.split('/')[0]}\t{own_name}\n" for address in attachment.addresses[:1])
    if not task.networks:
        lines.append(f"127.0.1.1\t{own_name}\n")
    return "".join(lines)


def resolv_conf(task: objects.Task, host_text: str) -> str:
    """Text of /etc/resolv.conf: the node's name server at 127.0.0.11, or the host's own for host networking.

    ``ndots:0`` keeps names without a dot from being tried with the host's search domains first, as Docker does.
    """
    spec = task.spec.container
    if spec.namespaces.network == "host":
        return host_text
    lines = []
    if spec.dns.search:
        lines.append(f"search {' '.join(spec.dns.search)}\n")
    lines.append("nameserver 127.0.0.11\n")
    options = list(spec.dns.options) or ["ndots:0"]
    lines.append(f"options {' '.join(options)}\n")
    return "".join(lines)


def write_task_files(
    folder: Path,
    task: objects.Task,
    *,
    node: NodeFacts,
    gateway: str,
    secrets: Mapping[str, objects.Secret],
    configs: Mapping[str, objects.Config],
) -> list[BindFile]:
    """Writes the files of a task and returns where each appears inside it.

    Raises:
        TaskFailure: a secret or config that the task uses has not been delivered to this node.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own_name = process.hostname(task, node)
    try:
        host_resolv_conf = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        host_resolv_conf = ""
    plain = {
        "hosts": hosts_file(task, own_name, gateway),
        "hostname": f"{own_name}\n",
        "resolv.conf": resolv_conf(task, host_resolv_conf),
    }
    binds = []
    for name, text in plain.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        binds.append(BindFile(path, f"/etc/{name}", read_only=False))
    for reference in task.spec.container.secrets:
        secret = secrets.get(reference.secret_id)
        if secret is None:
            raise _missing("secret", reference.secret_name)
        target = _target(reference.file.path or reference.secret_name, "/run/secrets")
        source = _write_data(folder / "secrets", reference.secret_id, reference.file, secret.spec.data)
        binds.append(BindFile(source, target, read_only=True))
    for use in task.spec.container.configs:
        config = configs.get(use.config_id)
        if config is None:
            raise _missing("config", use.config_name)
        target = _target(use.file.path or use.config_name, "/")
        source = _write_data(folder / "configs", use.config_id, use.file, config.spec.data)
        binds.append(BindFile(source, target, read_only=True))
    return binds


def remove_task_files(folder: Path) -> None:
    """Deletes a task's files, its secrets among them."""
    shutil.rmtree(folder, ignore_errors=True)


def _missing(kind: str, name: str) -> TaskFailure:
    return TaskFailure(
        f"{kind} {name} was not delivered to this node; deploy the stack again", types.FAILURE_REASON_DEPENDENCY
    )


def _target(path: str, folder: str) -> str:
    return str(PurePosixPath(folder, path))


def _write_data(folder: Path, name: str, file: types.FileTarget, data: bytes) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    # The same object may be used twice with other owners or modes: the file's name tells them apart.
    mode = file.mode if file.HasField("mode") else _DEFAULT_FILE_MODE
    path = folder / f"{name}-{file.uid or 0}-{file.gid or 0}-{mode:o}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        os.fchown(handle.fileno(), _number(file.uid, "uid"), _number(file.gid, "gid"))
        os.fchmod(handle.fileno(), mode)
    return path


def _number(text: str, what: str) -> int:
    if text == "":
        return 0
    if not text.isdigit():
        raise TaskFailure(
            f"{what} {text!r} of a secret or config is no number; use a numeric id", types.FAILURE_REASON_DEPENDENCY
        )
    return int(text)
