"""Keeps the network process told of what is assigned: networks, services' names and addresses, published ports.

Requests on a link are carried out in the order in which they are sent, so a network that is set before a task is
attached exists by then. What changes often (a service's endpoints) is coalesced: while one patch of a service is on
its way, only the newest state of it waits. After the link was lost, and with each COMPLETE assignment set, everything
is told anew.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from orch_agent.errors import LinkLost, LinkRefused
from orch_agent.overlay_mtu import overlay_mtu
from orch_agent.packets import JsonObject, PacketLink
from orch_agent.worker.assignments import Delta, Holdings
from orch_network import protocol
from orch_proto import defaults
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import objects_pb2 as objects
from orch_proto import types_pb2 as types
from orch_rpc import logs

#: Shortest time between two tellings of services, in seconds: in a deploy every task that becomes healthy changes its
#: service, and each telling names all endpoints of it. The first change of a quiet time is told at once.
TELL_INTERVAL_S = 0.02
log = logs.get("network")
#: Endpoints and ways that are told in one packet; each takes at most some 300 bytes of the 1 MiB of a packet.
_ENDPOINTS_AT_ONCE = 2000
_PortKey = tuple[str, str, int]
_PROTOCOLS = {types.PORT_PROTOCOL_TCP: "tcp", types.PORT_PROTOCOL_UDP: "udp"}


@dataclass(frozen=True, slots=True)
class Here:
    """This node, as others' traffic finds it.

    Attributes:
        node_id: its id.
        data_path_address: where it takes overlay traffic, an IPv4 address; empty: it takes none.
        mtu: of a network whose packets leave by that address, in bytes.
    """

    node_id: str
    data_path_address: str = ""
    mtu: int = defaults.NETWORK_MTU

    @classmethod
    def on_this_host(cls, node_id: str, data_path_address: str) -> Here:
        """Looks the interface of the data path up."""
        if not _is_ipv4(data_path_address):
            log.warning("network.no_overlay", why=f"the data-path address {data_path_address!r} is not an IPv4 address")
            return cls(node_id)
        return cls(node_id, data_path_address, overlay_mtu(data_path_address))


def spans_nodes(network: objects.Network) -> bool:
    """Whether tasks of a network reach those of other nodes."""
    return network.spec.driver in {"", "overlay"} and bool(network.vni)


def network_wanted(network: objects.Network, here: Here) -> protocol.Network | None:
    """A network as the network process takes it; None for one that needs no router (host, none)."""
    if not network.ipam.pools:
        return None
    pool = network.ipam.pools[0]
    spans = spans_nodes(network) and bool(here.data_path_address)
    return protocol.Network(
        id=network.id,
        name=network.spec.annotations.name,
        subnet=pool.subnet,
        gateway=pool.gateway.split("/")[0],
        internal=network.spec.internal,
        mtu=network.spec.mtu or (here.mtu if spans else defaults.NETWORK_MTU),
        vni=network.vni if spans else 0,
        underlay=here.data_path_address if spans else "",
    )


def _reached(endpoint: dispatcher.TaskEndpoint, here: Here, *, spans: bool) -> bool:
    """Whether packets from this node get to a task; an address without a way is a connection that hangs."""
    return endpoint.node_id == here.node_id or (spans and _is_remote(endpoint, here))


def _is_remote(endpoint: dispatcher.TaskEndpoint, here: Here) -> bool:
    there = endpoint.data_path_address
    return bool(here.data_path_address) and _is_ipv4(there) and there != here.data_path_address


def services_on_networks(
    service: dispatcher.ServiceEndpoints, here: Here, spanning: Collection[str]
) -> dict[str, protocol.Service]:
    """A service as each of its networks knows it, by network id.

    Args:
        service: as the leader describes it.
        here: this node.
        spanning: ids of the networks that span nodes; others end at this one.
    """
    return {
        on.network_id: protocol.Service(
            id=service.service_id,
            name=service.name,
            aliases=tuple(dict.fromkeys(on.aliases)),
            vip=on.virtual_ip if service.mode != types.ENDPOINT_MODE_DNSRR else "",
            endpoints=tuple(
                protocol.Endpoint(
                    task_id=endpoint.task_id,
                    slot=endpoint.slot,
                    address=endpoint.address.split("/")[0],
                    aliases=(endpoint.hostname,) if endpoint.hostname else (),
                )
                for endpoint in on.endpoints
                if _reached(endpoint, here, spans=on.network_id in spanning)
            ),
            remotes=tuple(
                protocol.Remote(endpoint.address.split("/")[0], endpoint.data_path_address)
                for endpoint in (*on.endpoints, *on.silent)
                if on.network_id in spanning and endpoint.node_id != here.node_id and _is_remote(endpoint, here)
            ),
            peers=tuple(
                address
                for address in service.mesh_addresses
                if on.network_id in spanning
                and on.network_id == service.ingress_network_id
                and here.data_path_address
                and address != here.data_path_address
                and _is_ipv4(address)
            ),
        )
        for on in service.networks
    }


def published_ports(
    service: dispatcher.ServiceEndpoints, here: Here, spanning: Collection[str]
) -> list[protocol.PublishedPort]:
    """The ports at which this node answers for a service.

    It answers with its own tasks, which then see the client's address; in ingress mode, when it has none, with those of
    other nodes. In host mode it answers only where it has one.
    """
    through = next((on for on in service.networks if on.network_id == service.ingress_network_id), None)
    if through is None:
        return []
    ports = []
    for port in service.ports:
        if port.protocol not in _PROTOCOLS or not port.published_port:
            continue
        host_mode = port.mode == types.PUBLISH_MODE_HOST
        endpoints = [endpoint for endpoint in through.endpoints if endpoint.node_id == here.node_id]
        if host_mode and not endpoints:
            continue
        spans = through.network_id in spanning
        endpoints = endpoints or [each for each in through.endpoints if _reached(each, here, spans=spans)]
        ports.append(
            protocol.PublishedPort(
                protocol=_PROTOCOLS[port.protocol],
                published=port.published_port,
                network_id=through.network_id,
                service_id=service.service_id,
                target=port.target_port,
                host_ip=port.host_ip,
                endpoints=tuple(endpoint.address.split("/")[0] for endpoint in endpoints),
            )
        )
    return ports


def _is_ipv4(address: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, address)
    except OSError:
        return False
    return True


class NetworkSync:
    """Tells the network process what is wanted.

    Args:
        link: the connection to it.
        here: this node.
        alive: gives the ids of the tasks that still need their network.
        forwarded: somebody else takes connections on the host and passes them on: ports are published at every address
            of the node, and which addresses of the host were meant is for `published`.
    """

    def __init__(
        self, link: PacketLink, here: Here, alive: Callable[[], Collection[str]], *, forwarded: bool = False
    ) -> None:
        self._link = link
        self._forwarded = forwarded
        self._here = here
        self._alive = alive
        self._held = Holdings()
        self._assigned = False
        self._all_dirty = False
        self._dirty_services: set[str] = set()
        self._told_ports: dict[str, dict[_PortKey, protocol.PublishedPort]] = {}
        self._wake = asyncio.Event()

    async def connected(self) -> None:
        """The network process is there (again): it is told everything, once it is known what that is.

        A network process that was restarted goes on with the state it was told last; so there is no hurry, and an agent
        that has not heard from the leader yet must not take away what tasks use.

        Raises:
            LinkLost: the link broke again; the caller comes back with the next connection.
        """
        if self._assigned:
            await self._tell_everything()

    async def _tell_everything(self) -> None:
        self._all_dirty = False
        self._dirty_services.clear()
        held = self._held
        wanted = {network.id: network for network in map(self._wanted, held.networks.values()) if network is not None}
        for network in wanted.values():
            await self._tell(protocol.OP_NETWORK_SET, network=protocol.to_json(network))
        by_network: dict[str, list[JsonObject]] = {network_id: [] for network_id in wanted}
        for service in held.services.values():
            for network_id, known in services_on_networks(service, self._here, self._spanning()).items():
                if network_id in by_network:
                    by_network[network_id].append(protocol.to_json(known))
        for network_id, services in by_network.items():
            await self._tell_services(network_id, services)
        # Ports before the removal of networks: while a port leads to a network, it cannot be removed.
        self._told_ports = self._wanted_ports()
        ports = [
            protocol.to_json(self._as_told(port)) for ports in self._told_ports.values() for port in ports.values()
        ]
        await self._tell(protocol.OP_PORTS_SET, ports=ports)
        present = await self._tell(protocol.OP_STATUS)
        # Of an ended task the leader may have given the address to another one.
        not_ended = {task_id for task_id, task in held.tasks.items() if task.status.state < types.TASK_STATE_COMPLETE}
        for task_id in set(present.get("tasks", ())) - set(self._alive()) - not_ended:
            await self._tell(protocol.OP_DETACH, task_id=task_id)
        for network_id in set(present.get("networks", ())) - self._held.networks.keys():
            await self._tell(protocol.OP_NETWORK_REMOVE, id=network_id)

    async def _tell_services(self, network_id: str, services: list[JsonObject]) -> None:
        """All services of a network: at once, or one by one where they might not fit into a packet."""
        if sum(len(service["endpoints"]) + len(service["remotes"]) for service in services) <= _ENDPOINTS_AT_ONCE:
            await self._tell(protocol.OP_SERVICES_SET, network_id=network_id, services=services)
            return
        ids = [service["id"] for service in services]
        await self._tell(protocol.OP_SERVICES_KEEP, network_id=network_id, ids=ids)
        for service in services:
            await self._tell(protocol.OP_SERVICE_PATCH, network_id=network_id, service=service)

    def _wanted(self, network: objects.Network) -> protocol.Network | None:
        return network_wanted(network, self._here)

    def _spanning(self) -> set[str]:
        return {network.id for network in self._held.networks.values() if spans_nodes(network)}

    def apply(self, held: Holdings, delta: Delta) -> list[asyncio.Task[JsonObject]]:
        """Takes a change of assignments in; networks are set before this returns to the loop, so that tasks may attach.

        Returns:
            the requests under way, to be awaited by their owner.
        """
        self._held = held
        self._assigned = True
        self._all_dirty = self._all_dirty or delta.complete
        requests = []
        for network_id in delta.networks:
            network = self._wanted(held.networks[network_id])
            if network is not None:
                requests.append(self._start(protocol.OP_NETWORK_SET, {"network": protocol.to_json(network)}))
        self._dirty_services |= delta.services
        for service_id, old in delta.services_removed.items():
            self._dirty_services.discard(service_id)
            requests.extend(self._start(*request) for request in self._port_requests(service_id))
            requests.extend(
                self._start(protocol.OP_SERVICE_REMOVE, {"network_id": on.network_id, "service_id": service_id})
                for on in old.networks
                if on.network_id in held.networks
            )
        for service_id, ports in list(self._told_ports.items()):
            if any(port.network_id in delta.networks_removed for port in ports.values()):
                requests.extend(self._start(*request) for request in self._port_requests(service_id))
        # A network can go before the services that publish ports through it, and was kept then: now nothing needs it.
        kept_for_ports = {on.network_id for old in delta.services_removed.values() for on in old.networks}
        requests.extend(
            self._start(protocol.OP_NETWORK_REMOVE, {"id": network_id})
            for network_id in {*delta.networks_removed, *(kept_for_ports - held.networks.keys())}
        )
        self._wake.set()
        return requests

    async def run(self) -> None:
        """Sends the newest state of services and ports whenever it has changed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._flush()
            except LinkLost:
                continue  # everything is told anew when the link is back
            await asyncio.sleep(TELL_INTERVAL_S)

    async def _flush(self) -> None:
        if self._all_dirty:
            await self._tell_everything()
            return
        dirty, self._dirty_services = self._dirty_services, set()
        for service_id in dirty:
            service = self._held.services.get(service_id)
            if service is None:
                continue
            for network_id, known in services_on_networks(service, self._here, self._spanning()).items():
                if network_id in self._held.networks:
                    await self._tell(protocol.OP_SERVICE_PATCH, network_id=network_id, service=protocol.to_json(known))
            for operation, fields in self._port_requests(service_id):
                await self._tell(operation, **fields)

    def _port_requests(self, service_id: str) -> list[tuple[str, JsonObject]]:
        """What brings the told ports of a service to the wanted ones; they count as told from now on."""
        told = self._told_ports.pop(service_id, {})
        wanted = self._ports_of(service_id)
        requests: list[tuple[str, JsonObject]] = [
            (
                protocol.OP_PORT_REMOVE,
                {"host_ip": self._as_told(port).host_ip, "protocol": port.protocol, "published": port.published},
            )
            for key, port in told.items()
            if key not in wanted
        ]
        requests += [
            (protocol.OP_PORT_PATCH, {"port": protocol.to_json(self._as_told(port))})
            for key, port in wanted.items()
            if told.get(key) != port
        ]
        if wanted:
            self._told_ports[service_id] = wanted
        return requests

    def _wanted_ports(self) -> dict[str, dict[_PortKey, protocol.PublishedPort]]:
        wanted = {service_id: self._ports_of(service_id) for service_id in self._held.services}
        return {service_id: ports for service_id, ports in wanted.items() if ports}

    def _ports_of(self, service_id: str) -> dict[_PortKey, protocol.PublishedPort]:
        """Ports of a service by key; none while this node does not have the network that they lead through."""
        service = self._held.services.get(service_id)
        if service is None or service.ingress_network_id not in self._held.networks:
            return {}
        return {port.key: port for port in published_ports(service, self._here, self._spanning())}

    def _as_told(self, port: protocol.PublishedPort) -> protocol.PublishedPort:
        return replace(port, host_ip="") if self._forwarded else port

    def published(self) -> list[protocol.PublishedPort]:
        """The ports that the network process was told to answer at, with the host's addresses that were asked for."""
        return [port for ports in self._told_ports.values() for port in ports.values()]

    def _start(self, operation: str, fields: JsonObject) -> asyncio.Task[JsonObject]:
        return asyncio.get_running_loop().create_task(self._link.call(operation, fields))

    async def _tell(self, operation: str, **fields: object) -> JsonObject:
        """Says one thing; what is refused is logged and does not keep the rest from being said."""
        try:
            return await self._link.call_now(operation, fields)
        except LinkRefused as error:
            log.warning("network.refused", operation=operation, why=str(error))
            return {}
