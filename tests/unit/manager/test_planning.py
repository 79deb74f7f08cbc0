"""Networks and fixed addresses that cannot be had are found before anything is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orch_manager.allocator.addresses import NoAddress
from orch_manager.allocator.planning import SubnetPlan, check_fixed_addresses
from orch_manager.store.tables import State
from orch_manager.store.transaction import Overlay
from orch_proto.objects_pb2 import Cluster, Network, Node, Service
from orch_proto.specs_pb2 import NetworkSpec, ServiceSpec


def network(name: str, subnet: str = "", gateway: str = "") -> NetworkSpec:
    spec = NetworkSpec()
    spec.annotations.name = name
    if subnet:
        spec.ipam.pools.add(subnet=subnet, gateway=gateway)
    return spec


@pytest.fixture
def cluster() -> Overlay:
    """A pool of two subnets, one given to `front`; `back` has a subnet of its own; a node at 192.168.7.5."""
    reader = Overlay(State())
    settings = Cluster(id="cluster")
    settings.spec.network.address_pools.append("10.9.0.0/23")
    reader.set(Cluster, settings.id, settings)
    front = Network(id="front-id", spec=network("front"))
    front.ipam.pools.add(subnet="10.9.0.0/24", gateway="10.9.0.1")
    reader.set(Network, front.id, front)
    back = Network(id="back-id", spec=network("back", "10.5.0.0/24", "10.5.0.254"))
    reader.set(Network, back.id, back)
    node = Node(id="n1")
    node.status.address = "192.168.7.5"
    reader.set(Node, node.id, node)
    database = Service(id="db-id", spec=service("db", "back-id", "10.5.0.7"))
    database.endpoint.virtual_ips.add(network_id="back-id", address="10.5.0.2/24")
    reader.set(Service, database.id, database)
    return reader


def service(name: str, target: str, address: str, replicas: int = 1) -> ServiceSpec:
    spec = ServiceSpec()
    spec.annotations.name = name
    spec.mode.replicated.replicas = replicas
    spec.task.networks.add(target=target, ipv4_address=address)
    return spec


@pytest.mark.parametrize(
    ("subnet", "why"),
    [
        ("10.9.0.128/25", r"overlaps 10.9.0.0/24 of network front"),
        ("10.0.0.0/8", "overlaps"),
        ("10.5.0.0/24", "overlaps 10.5.0.0/24 of network back"),
        ("192.168.7.0/24", "covers 192.168.7.5, the address of a node"),
        ("10.7.0.0/30", "prefix length of 30"),
    ],
)
def test_subnets_that_cannot_be_had(cluster: Overlay, subnet: str, why: str) -> None:
    """Each says with what it collides."""
    with pytest.raises(NoAddress, match=why):
        SubnetPlan(cluster).take(network("new", subnet))  # type: ignore[arg-type]  # an overlay reads as a store does


def test_networks_of_one_plan_see_each_other(cluster: Overlay) -> None:
    """Two that overlap, and one more than the pool has."""
    plan = SubnetPlan(cluster)  # type: ignore[arg-type]  # as above
    plan.take(network("one", "10.6.0.0/24"))
    with pytest.raises(NoAddress, match=r"overlaps 10.6.0.0/24 of network one"):
        plan.take(network("two", "10.6.0.0/25"))
    plan.take(network("three"))
    with pytest.raises(NoAddress, match=r"no free subnet of /24 in 10.9.0.0/23"):
        plan.take(network("four"))


def test_a_network_that_is_going_takes_nothing(cluster: Overlay) -> None:
    """A stack may be deployed again while the networks of the old one are still being removed."""
    going = Network(id="going", spec=network("going", "10.6.0.0/24"), pending_delete=True)
    cluster.set(Network, going.id, going)
    SubnetPlan(cluster).take(network("new", "10.6.0.0/24"))  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (lambda: service("web", "back-id", "10.6.0.9"), "is not in 10.5.0.0/24 of network back"),
        (lambda: service("web", "back-id", "10.5.0.254"), "is the network's own"),
        (lambda: service("web", "back-id", "10.5.0.0"), "is the network's own"),
        (lambda: service("web", "back-id", "10.5.0.2"), "is the virtual address of service db"),
        (lambda: service("web", "back-id", "10.5.0.7"), "is the fixed address of service db"),
        (lambda: service("web", "back-id", "10.5.0.9", replicas=2), "is for one task, and 2 replicas are wanted"),
        (lambda: service("web", "front-id", "10.9.0.9"), "needs a subnet of its own on network front"),
    ],
)
def test_fixed_addresses_that_cannot_be_had(cluster: Overlay, spec: Callable[[], ServiceSpec], why: str) -> None:
    """Outside of the subnet, somebody else's, or for more than one task."""
    with pytest.raises(NoAddress, match=why):
        check_fixed_addresses(cluster, spec(), {})  # type: ignore[arg-type]  # as above


def test_a_fixed_address_that_can(cluster: Overlay) -> None:
    """A free one, a service's own again, and one on a network that the same plan makes."""
    check_fixed_addresses(cluster, service("web", "back-id", "10.5.0.9"), {})  # type: ignore[arg-type]  # as above
    check_fixed_addresses(cluster, service("db", "back-id", "10.5.0.7"), {}, "db-id")  # type: ignore[arg-type]  # as above
    new = {"new-id": network("new", "10.6.0.0/24")}
    check_fixed_addresses(cluster, service("web", "new-id", "10.6.0.9"), new)  # type: ignore[arg-type]  # as above
