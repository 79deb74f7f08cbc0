"""Where a manager listens: the unix socket of its host, the port of managers, agents and people, that for joining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc.aio

from orch_proto import defaults
from orch_rpc import logs, servers
from orch_rpc.addresses import Address
from orch_rpc.identity import IdentitySource
from orch_rpc.servers import CallObserver
from orch_rpc.tls import joining_server_credentials, mutual_server_credentials

_log = logs.get("manager")
SOCKET_NAME: Final = "manager.sock"
SOCKET_GROUP: Final = "orch"
_STOP_GRACE_S: Final = 0.5
#: Adds servicers to a server.
AddServicers = Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class Listening:
    """Where to listen.

    Attributes:
        socket: of the host's own command line.
        address: for managers, agents and people; None: nowhere, as in tests of one manager.
        identity: what is shown there.
    """

    socket: Path
    address: Address | None = None
    identity: IdentitySource | None = None


class Servers:
    """The gRPC servers of a manager, started and stopped together.

    Args:
        listening: where.
        all_servicers: adds everything that a manager answers.
        joining_servicers: adds what those may ask that have no certificate yet.
        interceptors: what stands before all of them.
        observer: told of each call.
    """

    def __init__(
        self,
        listening: Listening,
        *,
        all_servicers: AddServicers,
        joining_servicers: AddServicers,
        interceptors: Sequence[Any],
        observer: CallObserver,
    ) -> None:
        self._listening = listening
        self._main = servers.new_server(observer, interceptors=interceptors)
        all_servicers(self._main)
        self._joining: grpc.aio.Server | None = None
        if listening.address is not None:
            self._joining = servers.new_server(observer, interceptors=interceptors, most_calls=defaults.JOIN_CALLS)
            joining_servicers(self._joining)

    async def start(self) -> None:
        """Listens.

        Raises:
            OrchError: an address or the socket cannot be used, or there is no identity.
        """
        address, identity = self._listening.address, self._listening.identity
        if address is not None and identity is not None:
            servers.bind_tls(self._main, address, mutual_server_credentials(identity))
        if self._joining is not None and address is not None and identity is not None:
            await servers.start_on_tls(self._joining, address.for_joining, joining_server_credentials(identity))
        # Last: whoever waits for the socket may use the rest as well.
        await servers.start_on_unix_socket(self._main, self._listening.socket, group=SOCKET_GROUP)
        _log.info("manager serves", socket=self._listening.socket, address=address or "")

    async def stop(self) -> None:
        """Listens no more; calls under way get a moment to end."""
        if self._joining is not None:
            await servers.stop(self._joining, grace_s=0)
        await servers.stop(self._main, grace_s=_STOP_GRACE_S)
        self._listening.socket.unlink(missing_ok=True)
