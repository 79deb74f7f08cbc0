"""Who may call what: one table, method by method. What is not in it nobody may call.

    LOCAL      over the unix socket of a manager's host: root, and the group orch
    MANAGER    a manager's certificate
    WORKER     a worker's certificate; only ever for its own node (`Call.require_node`)
    ADMIN      a user's certificate with the role admin; DEPLOY and READ alike
    ANONYMOUS  TLS without a certificate: somebody who wants to join

A call that a manager forwards is judged by its original caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, Final

from orch_proto import control_pb2 as control
from orch_proto.types_pb2 import ObjectKind
from orch_rpc.callers import Caller, CallerKind, UserRole


class Callers(Flag):
    """Sets of callers; see the module."""

    NOBODY = 0
    LOCAL = auto()
    MANAGER = auto()
    WORKER = auto()
    READ = auto()
    DEPLOY = auto()
    ADMIN = auto()
    ANONYMOUS = auto()

    READERS = LOCAL | MANAGER | READ | DEPLOY | ADMIN
    DEPLOYERS = LOCAL | DEPLOY | ADMIN
    ADMINS = LOCAL | ADMIN
    NODES = MANAGER | WORKER
    ANYBODY_KNOWN = LOCAL | MANAGER | WORKER | READ | DEPLOY | ADMIN


_USERS: Final = {UserRole.READ: Callers.READ, UserRole.DEPLOY: Callers.DEPLOY, UserRole.ADMIN: Callers.ADMIN}
_KINDS: Final = {
    CallerKind.LOCAL: Callers.LOCAL,
    CallerKind.MANAGER: Callers.MANAGER,
    CallerKind.WORKER: Callers.WORKER,
    CallerKind.ANONYMOUS: Callers.ANONYMOUS,
}


def set_of(caller: Caller) -> Callers:
    """The set that a caller belongs to."""
    return _KINDS[caller.kind] if caller.user_role is None else _USERS[caller.user_role]


@dataclass(frozen=True, slots=True)
class Rule:
    """One row.

    Attributes:
        callers: who may call the method.
        writes: whether it changes something: then every call leaves an audit line.
        tell: names what a request is about, for the audit line; never a secret's data, never a token.
        narrow: who may make this very request, where that depends on what is in it.
        is_write: whether this very request changes something, where that depends on what is in it.
    """

    callers: Callers
    writes: bool = False
    tell: Callable[[Any], str] = lambda _request: ""
    narrow: Callable[[Any], Callers] | None = None
    is_write: Callable[[Any], bool] | None = None


# ---- what a request is about -----------------------------------------------------------------------

_DEPLOYED: Final = frozenset({"service", "network", "secret", "config", "volume", "stack"})
_QUESTIONS: Final = frozenset({"disk_usage", "image_list", "image_inspect", "volume_list", "task_stats"})


def _kind_word(kind: ObjectKind.ValueType) -> str:
    try:
        return ObjectKind.Name(kind).removeprefix("OBJECT_KIND_").lower()
    except ValueError:
        return f"kind {kind}"


def _by_kind(word: str) -> Callers:
    return Callers.DEPLOYERS if word in _DEPLOYED else Callers.ADMINS


def _tell_create(request: control.CreateRequest) -> str:
    word = request.spec.WhichOneof("spec") or "nothing"
    return f"{word} {getattr(request.spec, word).annotations.name}" if word != "nothing" else word


def _tell_call(request: control.CallNodesRequest) -> str:
    return f"{request.call.WhichOneof('call')} on node {request.node or '(all)'}"


def _read(callers: Callers = Callers.READERS) -> Rule:
    return Rule(callers)


def _write(callers: Callers, tell: Callable[[Any], str] = lambda _request: "", **options: Any) -> Rule:
    return Rule(callers, writes=True, tell=tell, **options)


# ---- the table -------------------------------------------------------------------------------------

_CONTROL: Final[Mapping[str, Rule]] = {
    "ApplyStack": _write(Callers.DEPLOYERS, lambda request: f"stack {request.spec.name}"),
    "PlanStack": _read(),
    "RemoveStack": _write(Callers.DEPLOYERS, lambda request: f"stack {request.name}"),
    "Get": _read(),
    "List": _read(),
    "Create": _write(
        Callers.DEPLOYERS, _tell_create, narrow=lambda request: _by_kind(request.spec.WhichOneof("spec") or "")
    ),
    "Update": _write(
        Callers.DEPLOYERS,
        lambda request: f"{_kind_word(request.kind)} {request.id}",
        narrow=lambda request: _by_kind(_kind_word(request.kind)),
    ),
    "Remove": _write(
        Callers.DEPLOYERS,
        lambda request: f"{_kind_word(request.kind)} {request.reference}",
        narrow=lambda request: _by_kind(_kind_word(request.kind)),
    ),
    "ScaleServices": _write(
        Callers.DEPLOYERS,
        lambda request: "services " + ", ".join(f"{each.service}={each.replicas}" for each in request.scales),
    ),
    "Watch": _read(),
    "Events": _read(),
    "ClusterInfo": _read(),
    "Backup": _write(Callers.ADMINS, lambda _request: "the whole state, keys and secrets included"),
    "UnlockKey": _write(Callers.ADMINS, lambda _request: "the unlock key"),
    "CallNodes": _write(
        Callers.READERS,
        _tell_call,
        narrow=lambda request: Callers.READERS if request.call.WhichOneof("call") in _QUESTIONS else Callers.DEPLOYERS,
        is_write=lambda request: request.call.WhichOneof("call") not in _QUESTIONS,
    ),
    "Logs": _read(),
    "Exec": _write(Callers.DEPLOYERS),
    "SendToNode": _write(Callers.DEPLOYERS),
}
_CA: Final[Mapping[str, Rule]] = {
    # Managers forward those of others.
    "GetRootCertificate": _read(Callers.ANONYMOUS | Callers.ANYBODY_KNOWN),
    "IssueNodeCertificate": _write(
        Callers.ANONYMOUS | Callers.NODES, lambda request: "with a token" if request.token else "a renewal"
    ),
    "NodeCertificateStatus": _read(Callers.READERS | Callers.WORKER),
    "IssueUserCertificate": _write(Callers.ADMINS, lambda request: f"user {request.user}"),
    "JoinTokens": _write(
        Callers.ADMINS,
        lambda request: "rotated" if request.rotate_worker or request.rotate_manager else "shown",
    ),
    "RotateRoot": _write(Callers.ADMINS, lambda _request: "the root certificate"),
    "RootStatus": _read(),
}
_DISPATCHER: Final[Mapping[str, Rule]] = {"Attach": _read(Callers.NODES | Callers.LOCAL)}
_RELAY: Final[Mapping[str, Rule]] = {
    "Open": _read(Callers.NODES | Callers.LOCAL),
    # The manager looks further: the node must need the image.
    "FetchImage": _read(Callers.NODES | Callers.LOCAL),
    "WantedImages": _read(Callers.NODES | Callers.LOCAL),
}
_RAFT: Final[Mapping[str, Rule]] = {
    "Stream": _read(Callers.MANAGER),
    "Snapshot": _read(Callers.MANAGER),
    "Join": _write(Callers.MANAGER, lambda request: f"node {request.node_id} at {request.address}"),
    "Leave": _write(Callers.MANAGER, lambda request: f"member {request.raft_id}"),
    "ResolveAddress": _read(Callers.MANAGER),
}
#: The daemon listens on a unix socket only.
_DAEMON: Final[Mapping[str, Rule]] = {
    "NodeInfo": _read(Callers.LOCAL),
    "InitCluster": _write(Callers.LOCAL),
    "JoinCluster": _write(Callers.LOCAL, lambda request: f"through {request.remote_address}"),
    "LeaveCluster": _write(Callers.LOCAL),
    "UnlockCluster": _write(Callers.LOCAL),
    "RecoverCluster": _write(Callers.LOCAL),
    "RestoreCluster": _write(Callers.LOCAL),
    "Shutdown": _write(Callers.LOCAL),
}
_HEALTH: Final[Mapping[str, Rule]] = {
    "Check": _read(Callers.ANYBODY_KNOWN),
    "List": _read(Callers.ANYBODY_KNOWN),
    "Watch": _read(Callers.ANYBODY_KNOWN),
}

RULES: Final[Mapping[str, Rule]] = {
    f"/{service}/{method}": rule
    for service, methods in {
        "orch.v1.Control": _CONTROL,
        "orch.v1.CA": _CA,
        "orch.v1.Dispatcher": _DISPATCHER,
        "orch.v1.Relay": _RELAY,
        "orch.v1.Raft": _RAFT,
        "orch.v1.Daemon": _DAEMON,
        "grpc.health.v1.Health": _HEALTH,
    }.items()
    for method, rule in methods.items()
}


def who_may(callers: Callers) -> str:
    """A set in words: "admin, deploy"."""
    names = {
        Callers.ADMIN: "users with the role admin",
        Callers.DEPLOY: "users with the role deploy",
        Callers.READ: "users with the role read",
        Callers.MANAGER: "managers",
        Callers.WORKER: "workers",
        Callers.LOCAL: "root on a manager's host",
        Callers.ANONYMOUS: "nodes that join",
    }
    return ", ".join(word for each, word in names.items() if each in callers) or "nobody"
