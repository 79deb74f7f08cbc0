"""The way to a manager or to the node's daemon: where they listen, and calls whose failures have three parts.

grpc is imported only when a command really talks to somebody: it costs more start-up time than all the rest.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orch_cli.errors import CliError, UsageError

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub
    from orch_proto.daemon_pb2_grpc import DaemonAsyncStub

DEFAULT_HOST: Final = "unix:///run/orch/manager.sock"
HOST_VARIABLE: Final = "ORCH_HOST"
DAEMON_SOCKET: Final = "orchd.sock"
_CONNECT_TIMEOUT_S: Final = 5.0


def manager_socket(host: str = "") -> Path:
    """The manager's socket: ``--host``, else ``ORCH_HOST``, else the default.

    Raises:
        UsageError: for an address that is not a unix socket.
    """
    text = host or os.environ.get(HOST_VARIABLE, "") or DEFAULT_HOST
    if text.startswith("/"):
        return Path(text)
    scheme, separator, path = text.partition("://")
    if scheme == "unix" and path.startswith("/"):
        return Path(path)
    if separator and scheme in ("tcp", "ssh", "https"):
        raise UsageError(
            f"cannot use the host {text!r}", f"{scheme} is not supported yet", "use unix:///path/to/manager.sock"
        )
    raise UsageError(f"cannot use the host {text!r}", "it is no address", "write unix:///path/to/manager.sock")


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


_MANAGER_TODO: Final = (
    "is orchd running, and this node a manager? `orch cluster init` makes a cluster, `orch playground up` one to try; "
    "--host or ORCH_HOST point elsewhere"
)


@asynccontextmanager
async def control(host: str = "") -> AsyncIterator[ControlAsyncStub]:
    """A manager's control API.

    Raises:
        CliError: when no manager is reachable.
        OrchError: when a call inside fails.
    """
    path = manager_socket(host)
    check_socket(path, "the manager", _MANAGER_TODO)
    from orch_proto.control_pb2_grpc import ControlStub
    from orch_rpc.channels import unix_channel

    async with unix_channel(path) as channel:
        yield ControlStub(channel)


@asynccontextmanager
async def daemon(host: str = "") -> AsyncIterator[DaemonAsyncStub]:
    """The node's own daemon.

    Raises:
        CliError: when it does not run.
        OrchError: when a call inside fails.
    """
    path = daemon_socket(host)
    check_socket(path, "the node's daemon", "start it: systemctl start orchd, or `orch playground up`")
    from orch_proto.daemon_pb2_grpc import DaemonStub
    from orch_rpc.channels import unix_channel

    async with unix_channel(path) as channel:
        yield DaemonStub(channel)


@contextmanager
def calling(doing: str) -> Iterator[None]:
    """Turns gRPC's errors into ours; ``doing`` as in "cannot list the services"."""
    from orch_rpc.errors import rpc_errors

    with rpc_errors(doing):
        yield
