"""The way to a manager or to the node's daemon: where they listen, and calls whose failures have three parts.

Where to: ``--host``, else ``ORCH_HOST``, else ``ORCH_CONTEXT``, else the context in use (``orch context use``), else
the unix socket of this host: of the user's own orchd, if they run one without root, or of the system's. A host is
``unix:///path``, ``tcp://HOST:PORT``, or the name of a context; over TCP one shows the certificate of a context.

grpc is imported only when a command really talks to somebody: it costs more start-up time than all the rest.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orch_cli.errors import CliError, UsageError

if TYPE_CHECKING:
    import grpc.aio

    from orch_cli.contexts import Context
    from orch_proto.ca_pb2_grpc import CAAsyncStub
    from orch_proto.control_pb2_grpc import ControlAsyncStub
    from orch_proto.daemon_pb2_grpc import DaemonAsyncStub

_SYSTEM_SOCKET: Final = Path("/run/orch/manager.sock")
HOST_VARIABLE: Final = "ORCH_HOST"
CONTEXT_VARIABLE: Final = "ORCH_CONTEXT"
DAEMON_SOCKET: Final = "orchd.sock"
_CONNECT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where to reach a manager: a socket of this host, or over TLS what a context says."""

    socket: Path | None = None
    context: Context | None = None


def default_host() -> str:
    """This host's node: for an ordinary user the one that they run themselves, if they do; else the system's."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() != 0 and runtime.startswith("/"):
        own = Path(runtime) / "orch"
        if (own / DAEMON_SOCKET).exists():
            return f"unix://{own / _SYSTEM_SOCKET.name}"
    return f"unix://{_SYSTEM_SOCKET}"


def find_target(host: str = "") -> Target:
    """Whom the user means; see the module for the order.

    Raises:
        UsageError: for an address that is none.
        CliError: for a context that is not there, or has no certificate for the address.
    """
    text = host or os.environ.get(HOST_VARIABLE, "")
    if text:
        return _read_host(text)
    from orch_cli.contexts import DEFAULT, ContextStore

    contexts = ContextStore()
    name = os.environ.get(CONTEXT_VARIABLE, "") or contexts.current()
    return _read_host(default_host()) if name == DEFAULT else Target(context=contexts.load(name))


def _read_host(text: str) -> Target:
    if text.startswith("/"):
        return Target(socket=Path(text))
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "unix" and rest.startswith("/"):
        return Target(socket=Path(rest))
    if separator and scheme == "tcp":
        return Target(context=_context_for(rest))
    todo = "write unix:///path/to/manager.sock, tcp://HOST:2377 or the name of a context"
    if separator:
        raise UsageError(f"cannot use the host {text!r}", f"{scheme} is not supported", todo)
    from orch_cli.contexts import DEFAULT, ContextStore

    if text == DEFAULT:
        return _read_host(default_host())
    contexts = ContextStore()
    if text not in contexts.names():
        raise UsageError(f"cannot use the host {text!r}", "it is neither an address nor the name of a context", todo)
    return Target(context=contexts.load(text))


def _context_for(address: str) -> Context:
    """The context whose certificate goes with an address: one that names it, else the one in use, else the only one."""
    from orch_cli.contexts import DEFAULT, ContextStore
    from orch_rpc.addresses import parse_address

    wanted = str(parse_address(address))
    contexts = ContextStore()
    every = [contexts.load(name) for name in contexts.names()]
    current = os.environ.get(CONTEXT_VARIABLE, "") or contexts.current()
    found = (
        [each for each in every if wanted in each.endpoints and each.name == current]
        or [each for each in every if wanted in each.endpoints]
        or [each for each in every if each.name == current != DEFAULT]
        or (every if len(every) == 1 else [])
    )
    if not found:
        raise CliError(
            f"cannot use the host tcp://{address}",
            "a certificate is needed, and no context has one for it",
            "import one that an admin made with orch cluster user add: orch context import NAME FILE",
        )
    return replace(found[0], endpoints=(wanted,))


def manager_socket(host: str = "") -> Path:
    """The manager's socket on this host, for what only works there.

    Raises:
        UsageError: when another host is meant.
    """
    target = find_target(host)
    if target.socket is None:
        assert target.context is not None, "a target is one or the other"
        raise UsageError(
            "this works on the node's own host only",
            f"the context {target.context.name!r} is of a manager elsewhere",
            f"log in there; or for this host: orch --host {default_host()} ...",
        )
    return target.socket


def daemon_socket(host: str = "") -> Path:
    """The daemon's socket, beside the manager's."""
    return manager_socket(host).with_name(DAEMON_SOCKET)


def check_socket(path: Path, who: str, todo: str) -> None:
    """Whether somebody listens: quicker, and clearer when not, than a channel's own attempt.

    Raises:
        CliError: nobody does, or the socket may not be used.
    """
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(_CONNECT_TIMEOUT_S)
    try:
        probe.connect(str(path))
    except FileNotFoundError as error:
        raise CliError(f"cannot reach {who}", f"there is no socket {path}", todo) from error
    except PermissionError as error:
        why = f"you may not use the socket {path}"
        raise CliError(f"cannot reach {who}", why, "run it as root, or join the group orch") from error
    except OSError as error:
        raise CliError(f"cannot reach {who}", f"nobody listens on {path} ({error.strerror or error})", todo) from error
    finally:
        probe.close()


def first_reachable(endpoints: Sequence[str], name: str) -> str:
    """The first manager of a context that takes a connection.

    Raises:
        CliError: none does.
    """
    from orch_rpc.addresses import parse_address

    reasons = []
    for endpoint in endpoints:
        address = parse_address(endpoint)
        try:
            socket.create_connection((address.host, address.port), timeout=_CONNECT_TIMEOUT_S).close()
        except OSError as error:
            reasons.append(f"{address}: {error.strerror or error}")
        else:
            return str(address)
    raise CliError(
        f"cannot reach a manager of the context {name!r}",
        "; ".join(reasons),
        "check the network and the firewall; orch context inspect shows the addresses",
    )


_MANAGER_TODO: Final = (
    "is orchd running, and this node a manager? `orch cluster init` makes a cluster, `orch playground up` one to try; "
    "--host or ORCH_HOST point elsewhere"
)


@asynccontextmanager
async def _manager_channel(host: str) -> AsyncIterator[grpc.aio.Channel]:
    target = find_target(host)
    if target.socket is not None:
        check_socket(target.socket, "the manager", _MANAGER_TODO)
        from orch_rpc.channels import unix_channel

        async with unix_channel(target.socket) as channel:
            yield channel
        return
    context = target.context
    assert context is not None, "a target is one or the other"
    from orch_rpc.identity import Identity
    from orch_rpc.tls import manager_channel

    identity = Identity(context.certificate.encode(), context.key.encode(), context.roots.encode())
    identity.check_valid()
    async with manager_channel(first_reachable(context.endpoints, context.name), identity) as channel:
        yield channel


@asynccontextmanager
async def control(host: str = "") -> AsyncIterator[ControlAsyncStub]:
    """A manager's control API.

    Raises:
        CliError: when no manager is reachable.
        OrchError: when a call inside fails.
    """
    async with _manager_channel(host) as channel:
        from orch_cli.stale import StaleChannel, wants_stale
        from orch_proto.control_pb2_grpc import ControlStub

        chosen: Any = StaleChannel(channel) if wants_stale() else channel
        yield ControlStub(chosen)


@asynccontextmanager
async def authority(host: str = "") -> AsyncIterator[CAAsyncStub]:
    """A manager's certificate authority.

    Raises:
        CliError: when no manager is reachable.
        OrchError: when a call inside fails.
    """
    async with _manager_channel(host) as channel:
        from orch_proto.ca_pb2_grpc import CAStub

        yield CAStub(channel)


@asynccontextmanager
async def daemon(host: str = "") -> AsyncIterator[DaemonAsyncStub]:
    """The node's own daemon.

    Raises:
        CliError: when it does not run.
        OrchError: when a call inside fails.
    """
    path = daemon_socket(host)
    check_socket(path, "the node's daemon", "start it: systemctl start orchd, or `orch playground up`")
    from orch_rpc.channels import unix_channel  # first: orch_rpc holds grpc to TLS 1.3

    async with unix_channel(path) as channel:
        from orch_proto.daemon_pb2_grpc import DaemonStub

        yield DaemonStub(channel)


@contextmanager
def calling(doing: str) -> Iterator[None]:
    """Turns gRPC's errors into ours; ``doing`` as in "cannot list the services"."""
    from orch_rpc.errors import rpc_errors

    with rpc_errors(doing):
        yield
