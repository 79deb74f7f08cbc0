"""Assignments as the network process is told of them."""

from __future__ import annotations

import pytest

from orch_agent.network_sync import Here, network_wanted, published_ports, services_on_networks
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types

HERE = Here("a", "192.0.2.1")
SPANNING = {"n1"}


def service(mode: types.PublishMode.ValueType = types.PUBLISH_MODE_INGRESS) -> dispatcher.ServiceEndpoints:
    return dispatcher.ServiceEndpoints(
        service_id="s1",
        name="shop_web",
        mode=types.ENDPOINT_MODE_VIP,
        networks=[
            dispatcher.ServiceOnNetwork(
                network_id="n1",
                virtual_ip="10.0.1.2",
                aliases=["web", "web"],
                endpoints=[
                    dispatcher.TaskEndpoint(
                        task_id="t1",
                        slot=1,
                        address="10.0.1.3/24",
                        node_id="a",
                        hostname="h1",
                        data_path_address="192.0.2.1",
                    ),
                    dispatcher.TaskEndpoint(
                        task_id="t2", slot=2, address="10.0.1.4/24", node_id="b", data_path_address="192.0.2.2"
                    ),
                ],
                silent=[
                    dispatcher.TaskEndpoint(
                        task_id="t3", address="10.0.1.5", node_id="b", data_path_address="192.0.2.2"
                    ),
                    dispatcher.TaskEndpoint(
                        task_id="t4", address="10.0.1.6", node_id="a", data_path_address="192.0.2.1"
                    ),
                ],
            )
        ],
        ports=[
            types.PortConfig(protocol=types.PORT_PROTOCOL_TCP, target_port=80, published_port=8080, mode=mode),
            types.PortConfig(protocol=types.PORT_PROTOCOL_SCTP, target_port=81, published_port=8081, mode=mode),
        ],
        ingress_network_id="n1",
        mesh_addresses=["192.0.2.1", "192.0.2.2", "192.0.2.3"],
    )


def test_a_network_without_a_pool_needs_no_router() -> None:
    """Host and none networks are not told to the network process."""
    assert network_wanted(objects.Network(id="n"), HERE) is None
    network = objects.Network(
        id="n1", ipam=types.Ipam(pools=[types.IpamPool(subnet="10.0.1.0/24", gateway="10.0.1.1/24")])
    )
    wanted = network_wanted(network, HERE)
    assert wanted is not None
    assert (wanted.subnet, wanted.gateway) == ("10.0.1.0/24", "10.0.1.1")


def test_an_overlay_network_spans_nodes_by_the_data_path() -> None:
    """An overlay has its identifier, this node's data-path address and the MTU left there; a bridge has none."""
    network = objects.Network(
        id="n1", vni=5000, ipam=types.Ipam(pools=[types.IpamPool(subnet="10.0.1.0/24", gateway="10.0.1.1")])
    )
    wanted = network_wanted(network, Here("a", "192.0.2.1", 8950))
    assert wanted is not None
    assert (wanted.vni, wanted.underlay, wanted.mtu) == (5000, "192.0.2.1", 8950)
    network.spec.driver = "bridge"
    wanted = network_wanted(network, Here("a", "192.0.2.1", 8950))
    assert wanted is not None
    assert (wanted.vni, wanted.underlay, wanted.mtu) == (0, "", 1450)


def test_a_service_is_known_by_network() -> None:
    """Names are given once, addresses of all nodes without their prefix lengths; dnsrr has no virtual address."""
    known = services_on_networks(service(), HERE, SPANNING)["n1"]
    assert known.aliases == ("web",)
    assert [endpoint.address for endpoint in known.endpoints] == ["10.0.1.3", "10.0.1.4"]
    assert known.vip == "10.0.1.2"
    rotating = service()
    rotating.mode = types.ENDPOINT_MODE_DNSRR
    assert services_on_networks(rotating, HERE, SPANNING)["n1"].vip == ""


def test_there_is_a_way_to_every_task_of_another_node() -> None:
    """Tasks of other nodes that get no traffic are reached all the same; peers are all nodes but this one."""
    known = services_on_networks(service(), HERE, SPANNING)["n1"]
    assert [(each.address, each.node) for each in known.remotes] == [
        ("10.0.1.4", "192.0.2.2"),
        ("10.0.1.5", "192.0.2.2"),
    ]
    assert known.peers == ("192.0.2.2", "192.0.2.3")


@pytest.mark.parametrize(("here", "spanning"), [(HERE, set[str]()), (Here("a"), SPANNING)])
def test_without_a_way_no_other_node_is_spoken_of(here: Here, spanning: set[str]) -> None:
    """On a network that ends at the node, or a node without a data path, only the node's own tasks are known."""
    known = services_on_networks(service(), here, spanning)["n1"]
    assert [endpoint.address for endpoint in known.endpoints] == ["10.0.1.3"]
    assert (known.remotes, known.peers) == ((), ())


def test_published_ports_lead_to_own_tasks_first() -> None:
    """A node answers for an ingress port with its own tasks, else with others'; for a host port only with its own."""
    (port,) = published_ports(service(), HERE, SPANNING)
    assert port.endpoints == ("10.0.1.3",)
    (port,) = published_ports(service(), Here("c", "192.0.2.3"), SPANNING)
    assert port.endpoints == ("10.0.1.3", "10.0.1.4")
    (port,) = published_ports(service(types.PUBLISH_MODE_HOST), HERE, SPANNING)
    assert port.endpoints == ("10.0.1.3",)
    assert published_ports(service(types.PUBLISH_MODE_HOST), Here("c", "192.0.2.3"), SPANNING) == []
