"""Assignments as the network process is told of them."""

from __future__ import annotations

from orch_agent.network_sync import network_wanted, published_ports, services_on_networks
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types


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
                    dispatcher.TaskEndpoint(task_id="t1", slot=1, address="10.0.1.3/24", node_id="a", hostname="h1"),
                    dispatcher.TaskEndpoint(task_id="t2", slot=2, address="10.0.1.4/24", node_id="b"),
                ],
            )
        ],
        ports=[
            types.PortConfig(protocol=types.PORT_PROTOCOL_TCP, target_port=80, published_port=8080, mode=mode),
            types.PortConfig(protocol=types.PORT_PROTOCOL_SCTP, target_port=81, published_port=8081, mode=mode),
        ],
        ingress_network_id="n1",
    )


def test_a_network_without_a_pool_needs_no_router() -> None:
    """Host and none networks are not told to the network process."""
    assert network_wanted(objects.Network(id="n")) is None
    network = objects.Network(
        id="n1", ipam=types.Ipam(pools=[types.IpamPool(subnet="10.0.1.0/24", gateway="10.0.1.1/24")])
    )
    wanted = network_wanted(network)
    assert wanted is not None
    assert (wanted.subnet, wanted.gateway) == ("10.0.1.0/24", "10.0.1.1")


def test_a_service_is_known_by_network() -> None:
    """Names are given once, of addresses this node's, without their prefix lengths; dnsrr has no virtual address."""
    known = services_on_networks(service(), "a")["n1"]
    assert known.aliases == ("web",)
    assert [endpoint.address for endpoint in known.endpoints] == ["10.0.1.3"]
    assert known.vip == "10.0.1.2"
    rotating = service()
    rotating.mode = types.ENDPOINT_MODE_DNSRR
    assert services_on_networks(rotating, "a")["n1"].vip == ""


def test_published_ports_lead_to_the_nodes_own_tasks() -> None:
    """Every node answers for an ingress port, with its own tasks; for a host port only a node with a task does."""
    (port,) = published_ports(service(), "a")
    assert port.endpoints == ("10.0.1.3",)
    (port,) = published_ports(service(types.PUBLISH_MODE_HOST), "a")
    assert port.endpoints == ("10.0.1.3",)
    assert published_ports(service(types.PUBLISH_MODE_HOST), "c") == []
