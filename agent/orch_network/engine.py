"""The node's network as a whole: what is wanted, and the operations that change it.

Each operation checks first, then writes the wanted state to disk, then changes the kernel. A process killed in between
finds the wanted state at its next start and repairs the kernel (``reconcile``).
"""

# pathlib is not loaded in this small process
# ruff: noqa: PTH103

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from orch_network import limits
from orch_network.counters import Counters
from orch_network.dns.resolver import Resolver, View
from orch_network.dns.zone import Zone
from orch_network.errors import Conflict, InvalidRequest, KernelError, LimitExceeded, NotFound
from orch_network.ipv4 import format_address, mac_of, parse_address
from orch_network.keeper_store import KeeperStore
from orch_network.kernel import netns
from orch_network.loop import Loop, Timer
from orch_network.node import NodeSide, free_uplink, uplink_name
from orch_network.protocol import Attachment, Interface, Network, PublishedPort, Service, Task, to_json
from orch_network.router import Router, Uplink
from orch_network.store import WantedStore
from orch_network.tasknet import FreshNamespace, InterfacePlan, NamespacePool, ResolverSockets, configure_requests

_REFILL_AFTER_S = 0.05
_FORGET_AFTER_S = 0.1

KIND_NETWORK, KIND_TASK, KIND_SERVICE, KIND_PORT = "network", "task", "service", "port"


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are under ROOT."""

    root: str

    @property
    def wanted(self) -> str:
        """The folder of the wanted state."""
        return f"{self.root}/wanted"

    @property
    def namespaces(self) -> str:
        """The folder of mounted namespaces."""
        return f"{self.root}/netns"

    def router(self, network_id: str) -> str:
        """Where a network's router is mounted. A task whose id begins like this has another path all the same."""
        return f"{self.namespaces}/net-{network_id}"

    def task(self, task_id: str) -> str:
        """Where a task's namespace is mounted."""
        return f"{self.namespaces}/task-{task_id}"


class Engine:
    """Wanted state in, kernel state out."""

    def __init__(
        self,
        *,
        places: Places,
        loop: Loop,
        store: WantedStore,
        keeper: KeeperStore,
        resolver: Resolver,
        counters: Counters,
    ) -> None:
        self.places = places
        self.loop = loop
        self.store = store
        self.keeper = keeper
        self.resolver = resolver
        self.counters = counters
        self.namespaces = netns.Namespaces()
        self.pool = NamespacePool(self.namespaces, limits.POOL_SIZE)
        self.node = NodeSide()
        self.routers: dict[str, Router] = {}
        self.zones: dict[str, Zone] = {}
        self.tasks: dict[str, Task] = {}
        self.ports: dict[tuple[str, str, int], PublishedPort] = {}
        self._refill: Timer | None = None
        self._forgetting = False
        os.makedirs(places.namespaces, mode=0o700, exist_ok=True)

    # ---- networks --------------------------------------------------------------------------------------------------
    def network_set(self, network: Network) -> None:
        """Want a network. Its subnet, gateway and isolation cannot change while it exists; name and MTU neither."""
        present = self.routers.get(network.id)
        if present is not None:
            if present.network != network and not self._move_overlay(present, network):
                raise Conflict(
                    f"network {network.id} exists with other settings ({present.network.subnet}, gateway "
                    f"{present.network.gateway}): remove it before you set it anew"
                )
            return
        uplink = free_uplink({router.uplink.index for router in self.routers.values()})
        self.store.save(KIND_NETWORK, network.id, {"network": to_json(network), "uplink": uplink.index})
        router = self.make_router(network, uplink)
        try:
            router.open(self.namespaces)
        except BaseException:
            self.store.remove(KIND_NETWORK, network.id)
            netns.release(router.path)
            raise
        self.routers[network.id] = router
        self.zones[network.id] = Zone(network.name)
        try:
            self.node.connect(router)
            self.complete_router(router)
        except BaseException:
            self._forget_network(router)
            raise

    def _move_overlay(self, router: Router, network: Network) -> bool:
        """Take over what may change: how the network is carried between nodes. False if anything else differs."""
        present = router.network
        if replace(network, vni=present.vni, underlay=present.underlay, vxlan_port=present.vxlan_port) != present:
            return False
        self.store.save(KIND_NETWORK, network.id, {"network": to_json(network), "uplink": router.uplink.index})
        router.move_overlay(network)
        self.complete_router(router)
        return True

    def make_router(self, network: Network, uplink: Uplink) -> Router:
        """A router, not yet opened."""
        path, link_name = self.places.router(network.id), uplink_name(self.places.root, network.id)
        return Router(network, uplink, path, link_name)

    def complete_router(self, router: Router) -> list[tuple[str, str]]:
        """Make a router what it should be, its VXLAN device included; returns (kind, what was wrong)."""
        found: list[tuple[str, str]] = []
        if router.lacks_overlay():
            self.node.carry(router)
            found.append(("overlay-link", f"the VXLAN device of network {router.network.name} was missing"))
        with self.namespaces.inside(router.fd):
            for link_name in (limits.ROUTER_UPLINK, limits.OVERLAY_LINK):
                name = f"ipv4/conf/{link_name}/rp_filter"
                if netns.read_sysctl(name) not in ("0", ""):
                    netns.write_sysctl(name, "0")
        return found + router.repair(self.namespaces)

    def network_remove(self, network_id: str) -> None:
        """Forget a network with its services; refused while tasks or ports use it. One that is gone is fine."""
        router = self.routers.get(network_id)
        if router is None:
            return
        if router.tasks:
            raise Conflict(
                f"network {network_id} has {len(router.tasks)} tasks ({next(iter(router.tasks))} …): detach them first"
            )
        if router.ports:
            raise Conflict(f"network {network_id} has {len(router.ports)} published ports: remove them first")
        self._forget_network(router)

    def _forget_network(self, router: Router) -> None:
        network_id = router.network.id
        for service_id in router.services:
            self.store.remove(KIND_SERVICE, f"{network_id}+{service_id}")
        self.store.remove(KIND_NETWORK, network_id)
        self.routers.pop(network_id, None)
        self.zones.pop(network_id, None)
        self.node.disconnect(router.link_name)
        router.leave_overlay()
        router.close()
        netns.release(router.path)

    def router(self, network_id: str) -> Router:
        """The router of a wanted network."""
        router = self.routers.get(network_id)
        if router is None:
            raise NotFound(f"network {network_id} is not on this node: send network_set first")
        return router

    # ---- tasks -----------------------------------------------------------------------------------------------------
    def attach(self, task: Task) -> Attachment:
        """Give a task its namespace and links; again with the same values is fine."""
        began = time.monotonic()
        present = self.tasks.get(task.task_id)
        if present is not None:
            if present != task:
                raise Conflict(f"task {task.task_id} is attached with other addresses: detach it first")
            return self.attachment(task)
        self._check_task(task)
        self.store.save(KIND_TASK, task.task_id, to_json(task))
        fresh = self.pool.take()
        try:
            self._build(task, fresh)
        except BaseException:
            self.store.remove(KIND_TASK, task.task_id)
            for address in task.networks:
                self.routers[address.network_id].detach(task.task_id)
            fresh.close()
            netns.release(self.places.task(task.task_id))
            raise
        fresh.release()
        self.tasks[task.task_id] = task
        self.serve_names(task, fresh.sockets)
        self.refill_pool()
        self.counters.attach.add(time.monotonic() - began)
        return self.attachment(task)

    def refill_pool(self) -> None:
        """Fill the pool once no attach has come for a moment: making a namespace must not stand in a request's way."""
        if self._refill is not None:
            self._refill.cancel()
        self._refill = self.loop.after(_REFILL_AFTER_S, self._refill_some)

    def _refill_some(self) -> None:
        self._refill = None
        self.loop.when_idle(self.pool.refill_one)

    def _check_task(self, task: Task) -> None:
        if len(self.tasks) >= limits.MAX_TASKS:
            raise LimitExceeded(f"this node has {limits.MAX_TASKS} attached tasks, the limit: detach some first")
        for each in task.networks:
            router = self.router(each.network_id)
            address = parse_address(each.address, "address")
            if address not in router.subnet or address in (router.gateway, router.subnet.network):
                raise InvalidRequest(
                    f"address {each.address} of task {task.task_id} is not a task's address in {router.network.subnet} "
                    f"of network {router.network.name}: ask the allocator for another"
                )
            holder = router.task_of_address.get(address)
            if holder is not None:
                raise Conflict(f"address {each.address} belongs to task {holder}: detach that one first")

    def _build(self, task: Task, fresh: FreshNamespace) -> None:
        netns.keep(fresh.fd, self.places.task(task.task_id))
        plan = self.plan(task)
        for each, where in zip(plan, task.networks, strict=True):
            router = self.routers[where.network_id]
            router.attach(task.task_id, each.address, each.name, each.index, fresh.fd)
        fresh.link.execute(configure_requests(plan))

    def plan(self, task: Task) -> list[InterfacePlan]:
        """The interfaces of a task."""
        return [
            InterfacePlan(
                position=position,
                address=parse_address(each.address, "address"),
                subnet=self.routers[each.network_id].subnet,
                is_default=each.network_id == task.default_network,
            )
            for position, each in enumerate(task.networks)
        ]

    def attachment(self, task: Task) -> Attachment:
        """What ``attach`` answers."""
        interfaces = tuple(
            Interface(each.name, format_address(each.address), mac_of(each.address).hex(":"))
            for each in self.plan(task)
        )
        return Attachment(self.places.task(task.task_id), interfaces)

    def serve_names(self, task: Task, sockets: ResolverSockets) -> None:
        """Begin to answer a task's queries."""
        ordered = sorted(task.networks, key=lambda each: each.network_id != task.default_network)
        zones = [self.zones[each.network_id] for each in ordered]
        may_forward = any(not self.routers[each.network_id].network.internal for each in ordered)
        self.resolver.serve(View(task.task_id, zones, may_forward), sockets)
        self.loop.soon(lambda: self._hand_over(task.task_id))

    def _hand_over(self, task_id: str) -> None:
        sockets = self.resolver.sockets_of(task_id)
        if sockets is not None:
            self.keeper.put(f"dns-udp+{task_id}", sockets.udp.fileno())
            self.keeper.put(f"dns-tcp+{task_id}", sockets.tcp.fileno())

    def detach(self, task_id: str) -> None:
        """Drop every hold on a task's namespace; the kernel takes links down in its own time, many at once."""
        began = time.monotonic()
        task = self.tasks.pop(task_id, None)
        if task is None:
            return
        self.store.remove(KIND_TASK, task_id)
        failure: KernelError | None = None
        for each in task.networks:
            try:
                self.routers[each.network_id].detach(task_id)
            except KernelError as found:
                failure = found
        self.resolver.stop(task_id)
        self.keeper.drop(f"dns-udp+{task_id}")
        self.keeper.drop(f"dns-tcp+{task_id}")
        netns.release(self.places.task(task_id))
        self.counters.detach.add(time.monotonic() - began)
        if failure is not None:
            raise failure

    # ---- services --------------------------------------------------------------------------------------------------
    def services_set(self, network_id: str, services: tuple[Service, ...]) -> None:
        """Replace all services of a network."""
        router = self.router(network_id)
        wanted = {service.id: service for service in services}
        if len(wanted) < len(services):
            raise InvalidRequest(f"services of network {network_id}: an id appears twice")
        self._check_services(router, services, wanted.keys())
        removed = [service_id for service_id in router.services if service_id not in wanted]
        changed = [service for service in services if router.services.get(service.id) != service]
        for service_id in removed:
            self.store.remove(KIND_SERVICE, f"{network_id}+{service_id}")
            self.zones[network_id].remove(service_id)
        for service in changed:
            self._save_service(network_id, service)
        router.put_services(changed, removed)
        self._forget_soon()

    def services_keep(self, network_id: str, service_ids: tuple[str, ...]) -> None:
        """Forget all services of a network but these."""
        for service_id in self.router(network_id).services.keys() - set(service_ids):
            self.service_remove(network_id, service_id)

    def service_patch(self, network_id: str, service: Service) -> None:
        """Add or replace one service: the cost is that of its own endpoints."""
        router = self.router(network_id)
        if router.services.get(service.id) == service:
            return
        if service.id not in router.services and len(router.services) >= limits.MAX_SERVICES_PER_NETWORK:
            raise LimitExceeded(f"network {network_id} has {limits.MAX_SERVICES_PER_NETWORK} services, the limit")
        self._check_services(router, (service,), router.services.keys() - {service.id})
        self._save_service(network_id, service)
        router.put_service(service)
        self._forget_soon()

    def service_remove(self, network_id: str, service_id: str) -> None:
        """Forget one service; one that is gone is fine."""
        router = self.router(network_id)
        self.store.remove(KIND_SERVICE, f"{network_id}+{service_id}")
        self.zones[network_id].remove(service_id)
        router.put_services([], [service_id])
        self._forget_soon()

    def _save_service(self, network_id: str, service: Service) -> None:
        record = {"network_id": network_id, "service": to_json(service)}
        self.store.save(KIND_SERVICE, f"{network_id}+{service.id}", record)
        self.zones[network_id].put(service)

    @staticmethod
    def _check_services(router: Router, services: Iterable[Service], others: Iterable[str]) -> None:
        holders = {
            router.services[service_id].vip: service_id
            for service_id in others
            if service_id in router.services and router.services[service_id].vip
        }
        for service in services:
            remotes = (remote.address for remote in service.remotes)
            for text in (service.vip, *(endpoint.address for endpoint in service.endpoints), *remotes):
                if text and parse_address(text, "address") not in router.subnet:
                    raise InvalidRequest(
                        f"service {service.name}: {text} is not in {router.network.subnet} of network "
                        f"{router.network.name}"
                    )
            if service.vip and holders.setdefault(service.vip, service.id) != service.id:
                raise Conflict(
                    f"service {service.name}: VIP {service.vip} belongs to service {holders[service.vip]}; "
                    f"one of the two must change"
                )

    def _forget_soon(self) -> None:
        """Many changes, one walk through the connections: it takes milliseconds, the kernel has one table for all."""
        if not self._forgetting:
            self._forgetting = True
            self.loop.after(_FORGET_AFTER_S, self._forget_stale_flows)

    def _forget_stale_flows(self) -> None:
        self._forgetting = False
        for router in self.routers.values():
            self.counters.flows_forgotten += router.forget_stale_flows()

    # ---- published ports -------------------------------------------------------------------------------------------
    def ports_set(self, ports: tuple[PublishedPort, ...]) -> None:
        """Replace all published ports of the node."""
        wanted: dict[tuple[str, str, int], PublishedPort] = {}
        for port in ports:
            self._check_port(port, wanted)
            if wanted.setdefault(port.key, port) != port:
                raise Conflict(f"port {_describe(port)} is published twice: by {wanted[port.key].service_id} as well")
        for key in self.ports.keys() - wanted.keys():
            self.store.remove(KIND_PORT, _port_file(self.ports[key]))
        for key, port in wanted.items():
            if self.ports.get(key) != port:
                self.store.save(KIND_PORT, _port_file(port), to_json(port))
        self.ports = wanted
        for network_id, router in self.routers.items():
            router.set_ports(ports_of_network(wanted.values(), network_id))
        self.node.publish(wanted.values(), self.routers)
        self._forget_soon()

    def port_patch(self, port: PublishedPort) -> None:
        """Add or replace one published port."""
        present = self.ports.get(port.key)
        if present == port:
            return
        if present is None and len(self.ports) >= limits.MAX_PORTS:
            raise LimitExceeded(f"this node publishes {limits.MAX_PORTS} ports, the limit: remove some first")
        self._check_port(port, {key: other for key, other in self.ports.items() if key != port.key})
        self.store.save(KIND_PORT, _port_file(port), to_json(port))
        self.ports[port.key] = port
        if present is not None and present.network_id != port.network_id:
            self._withdraw(present)
        router = self.routers[port.network_id]
        router.put_port(port)
        self.node.publish_one(port, router)
        self._forget_soon()

    def port_remove(self, host_ip: str, protocol: str, published: int) -> None:
        """Close one published port; one that is closed is fine."""
        port = self.ports.pop((host_ip, protocol, published), None)
        if port is None:
            return
        self.store.remove(KIND_PORT, _port_file(port))
        self.node.unpublish_one(port)
        self._withdraw(port)
        self._forget_soon()

    def _withdraw(self, port: PublishedPort) -> None:
        """Take a port out of its router unless another address of the node still leads to it."""
        key = (port.protocol, port.published)
        if key not in ports_of_network(self.ports.values(), port.network_id):
            self.routers[port.network_id].remove_port(key)

    def _check_port(self, port: PublishedPort, others: dict[tuple[str, str, int], PublishedPort]) -> None:
        router = self.router(port.network_id)
        for address in port.endpoints:
            if parse_address(address, "endpoint") not in router.subnet:
                raise InvalidRequest(f"port {_describe(port)}: endpoint {address} is not in {router.network.subnet}")
        for other in others.values():
            same = (other.protocol, other.published, other.network_id) == (
                port.protocol,
                port.published,
                port.network_id,
            )
            if same and (other.target, other.service_id) != (port.target, port.service_id):
                raise Conflict(
                    f"port {_describe(port)} leads to {port.service_id}:{port.target}, and on another address of the "
                    f"node to {other.service_id}:{other.target}: within one network a port has one meaning, use another"
                )


def ports_of_network(ports: Iterable[PublishedPort], network_id: str) -> dict[tuple[str, int], PublishedPort]:
    """The ports that lead into a network, by (protocol, published)."""
    return {(port.protocol, port.published): port for port in ports if port.network_id == network_id}


def _describe(port: PublishedPort) -> str:
    address = f"{port.host_ip}:" if port.host_ip else ""
    return f"{address}{port.published}/{port.protocol}"


def _port_file(port: PublishedPort) -> str:
    return f"{port.host_ip or 'any'}+{port.protocol}+{port.published}"


def adopt_sockets(kept: dict[str, int], task_id: str) -> ResolverSockets | None:
    """The resolver sockets of a task among the fds that the keeper gave back, if both are there."""
    udp, tcp = kept.pop(f"dns-udp+{task_id}", None), kept.pop(f"dns-tcp+{task_id}", None)
    if udp is not None and tcp is not None:
        sockets = ResolverSockets(socket.socket(fileno=udp), socket.socket(fileno=tcp))
        sockets.udp.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        sockets.tcp.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        return sockets
    for fd in (udp, tcp):
        if fd is not None:
            os.close(fd)
    return None
