"""The addresses of a node: where it listens as a manager, where others reach it, and where its tasks' traffic goes."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from typing import Protocol

from orch_agent.node_state import Membership
from orch_rpc.addresses import Address, parse_address
from orch_rpc.errors import InvalidArgument


class AddressRequest(Protocol):
    """What making, joining and restoring a cluster have in common; empty fields are to be chosen."""

    advertise_address: str
    listen_address: str
    data_path_address: str


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """See `Membership`."""

    advertise: Address
    listen: Address
    data_path: str

    def membership(self, node_id: str, cluster_id: str) -> Membership:
        """The place of this node in a cluster that it founds."""
        return Membership(
            node_id=node_id,
            cluster_id=cluster_id,
            advertise_address=str(self.advertise),
            listen_address=str(self.listen),
            data_path_address=self.data_path,
            managers=(str(self.advertise),),
        )


def node_addresses(request: AddressRequest, *, advertise_default: str, listen_default: str) -> NodeAddresses:
    """The addresses that a request, the daemon's options and the host's default route give, in this order.

    Raises:
        InvalidArgument: one of them cannot be used.
    """
    listen = parse_address(request.listen_address or listen_default, "the listen address")
    wanted = request.advertise_address or advertise_default
    if wanted:
        advertise = parse_address(wanted, "the advertise address")
        if ":" not in wanted.rpartition("]")[2]:
            advertise = replace(advertise, port=listen.port)
    elif not listen.is_unspecified:
        advertise = listen
    else:
        advertise = Address(own_address(), listen.port)
    if advertise.is_unspecified:
        raise InvalidArgument(
            f"cannot use the advertise address {advertise}",
            "it stands for every address of a host, so that nobody can be reached there",
            "name the address that other nodes reach this one at",
        )
    return NodeAddresses(advertise, listen, request.data_path_address or advertise.host)


def own_address() -> str:
    """The address by which this host is known to others: that of its default route, else loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address (RFC 5737); a datagram socket sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
