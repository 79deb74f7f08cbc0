"""Which addresses a node listens on and tells others."""

from __future__ import annotations

import pytest

from orch_agent.node_addresses import NodeAddresses, node_addresses
from orch_proto.daemon_pb2 import InitClusterRequest
from orch_rpc.errors import InvalidArgument


def chosen(advertise: str = "", listen: str = "", data_path: str = "", *, default: str = "") -> NodeAddresses:
    request = InitClusterRequest(advertise_address=advertise, listen_address=listen, data_path_address=data_path)
    return node_addresses(request, advertise_default=default, listen_default="0.0.0.0:2377")


def test_what_is_asked_for_wins_over_the_daemons_option() -> None:
    """An advertise address in the request is taken before the one that the daemon was started with."""
    assert str(chosen("10.0.0.5", default="10.0.0.9").advertise) == "10.0.0.5:2377"
    assert str(chosen(default="10.0.0.9").advertise) == "10.0.0.9:2377"


def test_the_advertised_port_follows_the_one_listened_on() -> None:
    """Who names only a host is reached on the port that the manager listens on; a port that is named stays."""
    assert str(chosen("10.0.0.5", "0.0.0.0:4000").advertise) == "10.0.0.5:4000"
    assert str(chosen("10.0.0.5:5000", "0.0.0.0:4000").advertise) == "10.0.0.5:5000"


def test_a_manager_that_listens_on_one_address_is_reached_there() -> None:
    """A listen address that is a host's own is advertised, and the tasks' traffic goes there too."""
    addresses = chosen(listen="10.0.0.7")
    assert str(addresses.advertise) == "10.0.0.7:2377"
    assert addresses.data_path == "10.0.0.7"
    assert chosen("10.0.0.5", data_path="192.0.2.5").data_path == "192.0.2.5"


@pytest.mark.parametrize("address", ["0.0.0.0", "0.0.0.0:2377", "::"])
def test_an_address_that_nobody_can_reach_is_not_advertised(address: str) -> None:
    """0.0.0.0 stands for every address of a host, and is refused with what to do."""
    with pytest.raises(InvalidArgument, match="name the address"):
        chosen(address)
