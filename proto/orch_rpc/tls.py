"""Mutual TLS: credentials of servers, channels to managers, and why a connection did not come about.

A server reads its identity anew for every handshake, so a renewed certificate or a changed set of roots needs no
restart. A channel keeps the identity that it was made with; `ManagerChannels` makes new ones when it was replaced.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, Final

import grpc
import grpc.aio

from orch_proto import ca_pb2 as ca
from orch_proto import defaults
from orch_proto.ca_pb2_grpc import CAStub
from orch_rpc.addresses import Address
from orch_rpc.certificates import MANAGER_SERVER_NAME, digest, first
from orch_rpc.channels import CLIENT_OPTIONS
from orch_rpc.errors import InvalidArgument, OrchError, Unauthenticated, Unavailable, rpc_errors
from orch_rpc.identity import Identity, IdentitySource

_CONNECT_TIMEOUT_S: Final = defaults.NODE_CALL_TIMEOUT_MS / 1000


# ---- servers ---------------------------------------------------------------------------------------


def _server_configuration(identity: Identity, *, check_clients: bool) -> Any:
    chain = identity.certificate_pem + identity.roots_pem
    pair = (identity.key_pem, chain)
    return grpc.ssl_server_certificate_configuration([pair], identity.roots_pem if check_clients else None)


def _server_credentials(source: IdentitySource, *, check_clients: bool) -> grpc.ServerCredentials:
    served = source.current()
    configuration = _server_configuration(served, check_clients=check_clients)

    def fetch() -> Any:
        """Called by grpc, on a thread of its own, before each handshake; None: as before."""
        nonlocal served
        try:
            now = source.current()
        except OrchError:
            return None
        if now is served:
            return None
        served = now
        return _server_configuration(now, check_clients=check_clients)

    return grpc.dynamic_ssl_server_credentials(configuration, fetch, require_client_authentication=check_clients)


def mutual_server_credentials(source: IdentitySource) -> grpc.ServerCredentials:
    """For the port of managers and people (2377): a client without a certificate of the cluster is not let in.

    Raises:
        FailedPrecondition: there is no identity.
    """
    return _server_credentials(source, check_clients=True)


def joining_server_credentials(source: IdentitySource) -> grpc.ServerCredentials:
    """For the port of those who join (2378): the manager shows its certificate, the client shows none.

    Raises:
        FailedPrecondition: there is no identity.
    """
    return _server_credentials(source, check_clients=False)


# ---- clients ---------------------------------------------------------------------------------------


def _channel(address: Address | str, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    options = [*CLIENT_OPTIONS, ("grpc.ssl_target_name_override", MANAGER_SERVER_NAME)]
    return grpc.aio.secure_channel(str(address), credentials, options=options)


def manager_channel(address: Address | str, identity: Identity) -> grpc.aio.Channel:
    """A mutually authenticated channel to a manager. Connects on first use; close it when done.

    Args:
        address: `host:port`; whoever answers there must show a manager's certificate of this cluster.
        identity: who we are; a node's or a user's.

    Raises:
        Unauthenticated: our certificate has expired; the message says what to do.
    """
    identity.check_valid()
    return _channel(
        address, grpc.ssl_channel_credentials(identity.roots_pem, identity.key_pem, identity.certificate_pem)
    )


def joining_channel(address: Address, roots_pem: bytes) -> grpc.aio.Channel:
    """A channel to a manager's joining port: it proves who it is, we do not.

    Args:
        address: of the manager; the port for joining stands above it.
        roots_pem: whoever answers must show a manager's certificate that one of these issued.
    """
    return _channel(address.for_joining, grpc.ssl_channel_credentials(roots_pem))


class ManagerChannels:
    """Channels to managers by address, kept open, and made anew when our identity was replaced.

    Args:
        source: who we are.
    """

    def __init__(self, source: IdentitySource) -> None:
        self._source = source
        self._identity: Identity | None = None
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closing: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    def get(self, address: Address | str) -> grpc.aio.Channel:
        """The channel to an address; a fresh one when the last was closed, or made with an older identity.

        Channels of an older identity are closed once their calls have ended, or after a few seconds.

        Raises:
            Unauthenticated: our certificate has expired.
            FailedPrecondition: we have none.
        """
        identity = self._source.current()
        if identity is not self._identity:
            outdated, self._channels = self._channels, {}
            self._identity = identity
            for channel in outdated.values():
                self._close_later(channel)
        key = str(address)
        present = self._channels.get(key)
        if present is None or present.get_state() is grpc.ChannelConnectivity.SHUTDOWN:
            present = self._channels[key] = manager_channel(address, identity)
        return present

    def only(self, address: Address | str) -> grpc.aio.Channel:
        """As `get`, for those who speak with one manager at a time: the channels to all others are closed.

        A channel that nobody uses would try on and on to connect, with the identity of the time when it was made.
        """
        channel = self.get(address)
        for other in [key for key in self._channels if key != str(address)]:
            self.drop(other)
        return channel

    def drop(self, address: Address | str) -> None:
        """Closes the channel to an address that is not needed any more."""
        channel = self._channels.pop(str(address), None)
        if channel is not None:
            self._close_later(channel)

    def _close_later(self, channel: grpc.aio.Channel) -> None:
        closing = asyncio.get_running_loop().create_task(channel.close(grace=_CONNECT_TIMEOUT_S))
        self._closing[closing] = channel
        closing.add_done_callback(lambda task: self._closing.pop(task, None))

    async def close(self) -> None:
        """Closes them all, whatever runs on them."""
        channels = [*self._channels.values(), *self._closing.values()]
        closing = list(self._closing)
        self._channels = {}
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, *(channel.close(None) for channel in channels), return_exceptions=True)


# ---- the first contact -----------------------------------------------------------------------------


async def fetch_root(address: Address, root_digest: str) -> bytes:
    """The cluster's root certificate, from a manager that nothing is known of but its address, checked by its digest.

    Args:
        address: of a manager; the port for joining stands above it.
        root_digest: SHA-256 of the root, hexadecimal, from the join token.

    Returns:
        The root as PEM.

    Raises:
        Unavailable: nobody answers there, or not as a manager does.
        Unauthenticated: the manager is of another cluster.
    """
    what = f"cannot join through {address}"
    shown = await asyncio.to_thread(_shown_certificate, address.for_joining, what)
    # Whoever answered is believed to be itself, no more; the digest decides whether it is the one that we look for.
    async with joining_channel(address, shown.encode()) as channel:
        with rpc_errors(f"ask {address} for the cluster's root certificate"):
            answer = await CAStub(channel).GetRootCertificate(
                ca.GetRootCertificateRequest(digest=root_digest), timeout=_CONNECT_TIMEOUT_S
            )
    try:
        root = first(answer.certificate_pem)
    except InvalidArgument as error:
        raise Unavailable(what, "it does not answer as a manager does", "check the address") from error
    if digest(root) != root_digest:
        raise Unauthenticated(
            what,
            "its root certificate is not the one that the token names: it is a manager of another cluster, "
            "somebody is in between, or the root was rotated since the token was printed",
            "check the address, and print the token again on a manager: orch cluster token worker",
        )
    return root


def _shown_certificate(address: Address, what: str) -> str:
    """The certificate, PEM, that a server shows; nothing about it is checked yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    todo = f"check the address and the firewall: those who join come to port {address.port}"
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=_CONNECT_TIMEOUT_S) as connection,
            context.wrap_socket(connection, server_hostname=MANAGER_SERVER_NAME) as encrypted,
        ):
            shown = encrypted.getpeercert(binary_form=True)
    except ssl.SSLError as error:
        raise Unavailable(what, f"what answers there does not speak TLS 1.3 ({error.reason})", todo) from error
    except TimeoutError as error:
        raise Unavailable(what, f"nobody answered within {_CONNECT_TIMEOUT_S:g} s", todo) from error
    except OSError as error:
        raise Unavailable(what, error.strerror or str(error), todo) from error
    if shown is None:
        raise Unavailable(what, "it shows no certificate", todo)
    return ssl.DER_cert_to_PEM_cert(shown)
