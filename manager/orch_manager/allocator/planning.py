"""Whether networks and fixed addresses can be had, before anything is written: the allocator's rules, asked ahead.

Two racing deploys may still meet in the allocator; tasks then wait and say for what.
"""

from __future__ import annotations

import ipaddress

from orch_manager.allocator.addresses import Network4, NoAddress, check_subnet, choose_subnet
from orch_manager.store.tables import Reader
from orch_proto import defaults
from orch_proto.objects_pb2 import Cluster, Network, Node, Service, Stack
from orch_proto.specs_pb2 import NetworkSpec, ServiceSpec


def host_addresses(reader: Reader) -> list[str]:
    """Addresses of the nodes: a subnet over them would cut the nodes off."""
    found = set()
    for node in reader.all(Node):
        for text in (node.status.address, node.description.data_path_address):
            try:
                found.add(str(ipaddress.IPv4Address(text)))
            except ValueError:
                continue
    return sorted(found)


def pools_of(cluster: Cluster) -> tuple[list[str], int]:
    """The blocks that subnets are cut from, and their prefix length."""
    pools = list(cluster.spec.network.address_pools) or [defaults.ADDRESS_POOL]
    return pools, cluster.spec.network.subnet_prefix_length or defaults.SUBNET_PREFIX_LENGTH


class SubnetPlan:
    """The subnets that are taken, and those that a plan would take beside them.

    Args:
        reader: the store.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._used: dict[str, Network4] = {}
        for network in reader.all(Network):
            stack = reader.get(Stack, network.stack_id)
            if network.pending_delete or (stack is not None and stack.pending_delete):
                continue  # what it has comes free in a moment, and who needs it waits for that
            for pool in (*network.ipam.pools, *network.spec.ipam.pools)[:1]:
                if pool.subnet:
                    self._used[network.spec.annotations.name] = ipaddress.IPv4Network(pool.subnet, strict=False)

    def take(self, spec: NetworkSpec) -> None:
        """Takes a new network's subnet: the one that it names, or the next of the pools.

        Raises:
            NoAddress: it overlaps another, would cover a node's address, or the pools are exhausted.
        """
        name = spec.annotations.name
        asked = spec.ipam.pools[0].subnet if spec.ipam.pools else ""
        hosts = host_addresses(self._reader)
        if asked:
            subnet = check_subnet(asked, self._used)
            covered = next((host for host in hosts if ipaddress.IPv4Address(host) in subnet), None)
            if covered is not None:
                raise NoAddress(f"subnet {asked} covers {covered}, the address of a node, which would be cut off")
        else:
            pools, length = pools_of(next(iter(self._reader.all(Cluster)), Cluster()))
            subnet = choose_subnet(pools, length, self._used.values(), hosts)
        self._used[name] = subnet


def check_fixed_addresses(
    reader: Reader, spec: ServiceSpec, networks: dict[str, NetworkSpec], service_id: str = ""
) -> None:
    """Checks the fixed addresses of a service: one task each, inside the subnet, and nobody else's.

    Args:
        reader: the store.
        spec: with ids of networks as targets.
        networks: those that a plan would make, by id.
        service_id: the service itself, if it is there already.

    Raises:
        NoAddress: an address cannot be had.
    """
    for attachment in spec.task.networks:
        if not attachment.ipv4_address:
            continue
        address = ipaddress.IPv4Address(attachment.ipv4_address)
        stored = reader.get(Network, attachment.target)
        network = networks.get(attachment.target) or (stored.spec if stored is not None else NetworkSpec())
        pools = list(network.ipam.pools)
        name = network.annotations.name
        if not pools or not pools[0].subnet:
            raise NoAddress(f"address {address} needs a subnet of its own on network {name}: name one, or remove it")
        subnet = ipaddress.IPv4Network(pools[0].subnet, strict=False)
        gateway = pools[0].gateway or str(subnet.network_address + 1)
        if address not in subnet:
            raise NoAddress(f"address {address} is not in {subnet} of network {name}")
        if address in (subnet.network_address, subnet.broadcast_address) or str(address) == gateway:
            raise NoAddress(f"address {address} is the network's own on {name}: it is its gateway, first or last one")
        if spec.mode.WhichOneof("mode") == "replicated" and spec.mode.replicated.replicas > 1:
            raise NoAddress(
                f"address {address} is for one task, and {spec.mode.replicated.replicas} replicas are wanted"
            )
        _check_free(reader, str(address), attachment.target, service_id)


def _check_free(reader: Reader, address: str, network_id: str, service_id: str) -> None:
    for other in reader.all(Service):
        if other.id == service_id:
            continue
        name = other.spec.annotations.name
        if any(
            vip.network_id == network_id and vip.address.partition("/")[0] == address
            for vip in other.endpoint.virtual_ips
        ):
            raise NoAddress(f"address {address} is the virtual address of service {name}")
        if any(each.target == network_id and each.ipv4_address == address for each in other.spec.task.networks):
            raise NoAddress(f"address {address} is the fixed address of service {name}")
