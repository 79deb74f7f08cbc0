"""The allocator's control loop: subnets for networks, addresses and ports for services, addresses for tasks.

A task that has them goes from NEW to PENDING.

What cannot be had stands as a sentence in the task's message and is tried again when something was given back.
"""
# ruff: noqa: ARG002 - every loop has the same methods

from __future__ import annotations

import ipaddress
from typing import Final

from orch_manager import tasks as states
from orch_manager.allocator.addresses import AddressBook, Network4, NoAddress, check_subnet, choose_subnet
from orch_manager.allocator.planning import host_addresses, pools_of
from orch_manager.allocator.ports import PortBook
from orch_manager.store.schema import Kind, StoreObject
from orch_manager.store.tables import Reader
from orch_manager.workspace import Workspace
from orch_proto import defaults
from orch_proto.objects_pb2 import Cluster, Network, Service, Task
from orch_proto.types_pb2 import EndpointMode, IpamPool, NetworkAttachment, VirtualIp

#: Drivers whose networks have addresses of ours.
_MANAGED_DRIVERS: Final = ("", "overlay", "bridge")


def is_managed(network: Network) -> bool:
    """True when orch gives out the network's addresses."""
    return network.spec.driver in _MANAGED_DRIVERS


class Allocator:
    """See the module. A `ControlLoop`."""

    def __init__(self) -> None:
        self._books: dict[str, AddressBook] = {}
        self._ports = PortBook()
        self._networks: set[str] = set()
        self._services: set[str] = set()
        self._tasks: dict[str, None] = {}
        #: Networks, services and tasks that found nothing, until something is given back.
        self._starved_networks: set[str] = set()
        self._starved_services: set[str] = set()
        self._stuck: dict[str, None] = {}

    # ---- the loop's shape --------------------------------------------------------------------------

    def reset(self, reader: Reader) -> None:
        """Rebuilds the books from what the store says was given out."""
        self.__init__()  # type: ignore[misc]  # starting over is what reset means
        for network in reader.all(Network):
            self.observe(Network, network.id, None, network)
        for service in reader.all(Service):
            self.observe(Service, service.id, None, service)
        for task in sorted(reader.all(Task), key=lambda each: each.meta.created_at_unix_ms):
            self.observe(Task, task.id, None, task)

    def observe(self, kind: Kind, object_id: str, old: StoreObject | None, new: StoreObject | None) -> None:
        """Keeps the books, and notes what asks for something."""
        if isinstance(new, Task) or isinstance(old, Task):
            self._observe_task(object_id, new if isinstance(new, Task) else None)
        elif isinstance(new, Service) or isinstance(old, Service):
            self._observe_service(object_id, old, new)
        elif isinstance(new, Network) or isinstance(old, Network):
            self._observe_network(object_id, new if isinstance(new, Network) else None)

    def has_work(self) -> bool:
        """True when something waits to be given out."""
        return bool(self._networks or self._services or self._tasks)

    def step(self, workspace: Workspace) -> int | None:
        """Networks first, then services, then tasks: each needs the one before."""
        for network_id in sorted(self._networks):
            if not workspace.may_touch(Network, network_id):
                return None
            self._networks.discard(network_id)
            self._allocate_network(workspace, network_id)
        for service_id in sorted(self._services):
            if not workspace.may_touch(Service, service_id):
                return None
            self._services.discard(service_id)
            self._allocate_service(workspace, service_id)
        for task_id in list(self._tasks):
            if not workspace.may_touch(Task, task_id):
                return None
            del self._tasks[task_id]
            self._allocate_task(workspace, task_id)
        return None

    # ---- what changed ------------------------------------------------------------------------------

    def _observe_network(self, network_id: str, network: Network | None) -> None:
        if network is None:
            self._books.pop(network_id, None)
            self._networks.discard(network_id)
            self._starved_networks.discard(network_id)
            self._networks |= self._starved_networks
            self._starved_networks.clear()
        elif not is_managed(network):
            return
        elif not network.ipam.pools:
            self._networks.add(network_id)
        elif network_id not in self._books:
            self._books[network_id] = AddressBook(network.ipam.pools[0])
            self._retry_stuck()

    def _observe_service(self, service_id: str, old: StoreObject | None, new: StoreObject | None) -> None:
        if not isinstance(new, Service):
            self._ports.release(service_id)
            for book in self._books.values():
                book.release(f"service {service_id}")
            self._services.discard(service_id)
            self._starved_services.discard(service_id)
            self._retry_stuck()
            return
        self._ports.hold(service_id, new.endpoint.ports)
        for vip in new.endpoint.virtual_ips:
            if vip.network_id in self._books:
                self._books[vip.network_id].claim(f"service {service_id}", vip.address)
        if not isinstance(old, Service) or old.spec != new.spec or old.spec_version != new.spec_version:
            self._services.add(service_id)

    def _observe_task(self, task_id: str, task: Task | None) -> None:
        if task is None or states.has_ended(task):
            self._tasks.pop(task_id, None)
            self._stuck.pop(task_id, None)
            for book in self._books.values():
                book.release(f"task {task_id}")
            self._retry_stuck()
            return
        for attachment in task.networks:
            if attachment.network_id in self._books:
                for address in attachment.addresses:
                    self._books[attachment.network_id].claim(f"task {task_id}", address)
        if task.status.state == states.NEW and states.is_wanted(task):
            if task_id not in self._stuck:
                self._tasks[task_id] = None
        else:
            self._tasks.pop(task_id, None)
            self._stuck.pop(task_id, None)

    def _retry_stuck(self) -> None:
        """Something came free or came to be: those that found nothing may ask again."""
        self._services |= self._starved_services
        self._starved_services.clear()
        if self._stuck:
            self._tasks.update(self._stuck)
            self._stuck.clear()

    # ---- networks ----------------------------------------------------------------------------------

    def _allocate_network(self, workspace: Workspace, network_id: str) -> None:
        network = workspace.get(Network, network_id)
        if network is None or network.ipam.pools:
            return
        others = [other for other in workspace.all(Network) if other.id != network_id and other.ipam.pools]
        used = {other.spec.annotations.name: ipaddress.IPv4Network(other.ipam.pools[0].subnet) for other in others}
        edited = workspace.edit(network)
        try:
            pool = self._choose_pool(workspace, network, used)
        except NoAddress:
            # The tasks on it say what they wait for.
            self._starved_networks.add(network_id)
            return
        edited.ipam.driver = network.spec.ipam.driver or "default"
        edited.ipam.pools.append(pool)
        taken = {other.vni for other in workspace.all(Network)}
        edited.vni = next(vni for vni in range(defaults.VNI_FIRST, 1 << 24) if vni not in taken)
        workspace.put(edited)

    def _choose_pool(self, workspace: Workspace, network: Network, used: dict[str, Network4]) -> IpamPool:
        pool = IpamPool()
        if network.spec.ipam.pools and network.spec.ipam.pools[0].subnet:
            pool.CopyFrom(network.spec.ipam.pools[0])
            subnet = check_subnet(pool.subnet, used)
        else:
            pools, length = pools_of(next(iter(workspace.all(Cluster)), Cluster()))
            subnet = choose_subnet(pools, length, used.values(), host_addresses(workspace))
            pool.subnet = str(subnet)
        if not pool.gateway:
            pool.gateway = str(subnet.network_address + 1)
        return pool

    # ---- services ----------------------------------------------------------------------------------

    def _allocate_service(self, workspace: Workspace, service_id: str) -> None:
        service = workspace.get(Service, service_id)
        if service is None or service.pending_delete:
            return
        edited = workspace.edit(service)
        endpoint = edited.endpoint
        present = list(endpoint.ports)
        ports, why = self._ports.allocate(service_id, service.spec.endpoint.ports, present)
        if why:
            # Ports are checked at apply; two racing deploys can still meet here. Tasks stay NEW and say so.
            self._starved_services.add(service_id)
            return
        del endpoint.ports[:]
        endpoint.ports.extend(ports)
        endpoint.spec.CopyFrom(service.spec.endpoint)
        if not self._allocate_virtual_ips(workspace, edited):
            self._starved_services.add(service_id)
            return
        if edited.endpoint != service.endpoint:
            workspace.put(edited)
            self._services.discard(service_id)
        self._retry_stuck()

    def _allocate_virtual_ips(self, workspace: Workspace, service: Service) -> bool:
        """Fills in one address per network of a service in VIP mode; False when one cannot be had yet."""
        endpoint = service.endpoint
        wanted: list[str] = []
        if service.spec.endpoint.mode != EndpointMode.ENDPOINT_MODE_DNSRR:
            for target in service.spec.task.networks:
                network = workspace.get(Network, target.target)
                if network is not None and is_managed(network):
                    wanted.append(network.id)
        owner = f"service {service.id}"
        for vip in endpoint.virtual_ips:
            if vip.network_id not in wanted and vip.network_id in self._books:
                self._books[vip.network_id].release(owner)
        try:
            fresh = [VirtualIp(network_id=each, address=self._books[each].allocate(owner)) for each in wanted]
        except (KeyError, NoAddress):
            return False
        del endpoint.virtual_ips[:]
        endpoint.virtual_ips.extend(fresh)
        return True

    # ---- tasks -------------------------------------------------------------------------------------

    def _allocate_task(self, workspace: Workspace, task_id: str) -> None:
        task = workspace.get(Task, task_id)
        if task is None or task.status.state != states.NEW or not states.is_wanted(task):
            return
        edited = workspace.edit(task)
        service = workspace.get(Service, task.service_id)
        why = self._attach(workspace, edited, service)
        if why:
            self._stuck[task_id] = None
            for book in self._books.values():
                book.release(f"task {task_id}")
            if task.status.message != why:
                waiting = workspace.edit(task)
                states.set_status(waiting, states.NEW, why, now_ms=workspace.now_ms, term=workspace.term)
                workspace.put(waiting)
            return
        states.set_status(edited, states.PENDING, "waits for a node", now_ms=workspace.now_ms, term=workspace.term)
        workspace.put(edited)

    def _attach(self, workspace: Workspace, task: Task, service: Service | None) -> str:
        """Gives a task its addresses and its copy of the service's endpoint; why not, when something is missing."""
        if service is not None:
            wanted, given = service.spec.endpoint.ports, service.endpoint.ports
            if len(wanted) != len(given):
                owner = next((owner for port in wanted if (owner := self._ports.owner_of(port, service.id))), "")
                return (
                    f"waits for its published port, which service {owner} has"
                    if owner
                    else "waits for its published ports"
                )
            task.endpoint.CopyFrom(service.endpoint)
        del task.networks[:]
        for wish in task.spec.networks:
            network = workspace.get(Network, wish.target)
            if network is None:
                return f"waits for network {wish.target}, which is not there"
            attachment = NetworkAttachment(network_id=network.id, interface_name=wish.interface_name)
            attachment.aliases.extend(wish.aliases)
            attachment.driver_options.update(wish.driver_options)
            if is_managed(network):
                book = self._books.get(network.id)
                if book is None:
                    return (
                        f"waits for a subnet of network {network.spec.annotations.name}: no address pool has one left"
                    )
                why = _take_address(book, task.id, wish.ipv4_address, attachment)
                if why:
                    return f"{why} (network {network.spec.annotations.name})"
            task.networks.append(attachment)
        return ""


def _take_address(book: AddressBook, task_id: str, wanted: str, attachment: NetworkAttachment) -> str:
    owner = f"task {task_id}"
    if wanted:
        if not book.claim(owner, wanted):
            return f"waits for address {wanted}, which is in use or not in {book.subnet}"
        attachment.addresses.append(book.with_prefix(wanted))
        return ""
    try:
        attachment.addresses.append(book.with_prefix(book.allocate(owner)))
    except NoAddress as error:
        return str(error)
    return ""
