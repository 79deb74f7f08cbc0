"""What must hold after every write, whatever happens."""

from __future__ import annotations

import ipaddress
from collections import Counter

from orch_manager import tasks as states
from orch_manager.store.changes import Event
from orch_manager.store.tables import Reader
from orch_manager.store.watch import Resync, Watch
from orch_proto.objects_pb2 import Network, Node, Service, Task
from orch_proto.types_pb2 import UpdateOrder


class Invariants:
    """Collects what is broken, as sentences."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def follow(self, watch: Watch, reader: Reader) -> None:
        """Checks every change since the last call, and the state as it is."""
        for event in watch.drain():
            if isinstance(event, Resync):
                continue
            self._change(event)
        self._slots(reader)
        self._addresses(reader)
        self._ports(reader)
        self._resources(reader)

    def _change(self, event: Event) -> None:
        old, new = event.old, event.new
        if not isinstance(old, Task) or not isinstance(new, Task):
            return
        if new.status.state < old.status.state:
            self.broken.append(f"task {new.id}: observed state fell from {old.status.state} to {new.status.state}")
        if new.desired_state < old.desired_state:
            self.broken.append(f"task {new.id}: desired state fell from {old.desired_state} to {new.desired_state}")
        if old.node_id and old.node_id != new.node_id:
            self.broken.append(f"task {new.id}: moved from {old.node_id} to {new.node_id}")
        if states.has_ended(old) and new.status.state != old.status.state:
            self.broken.append(f"task {new.id}: ended twice, {old.status.state} and {new.status.state}")

    def _slots(self, reader: Reader) -> None:
        live = Counter((task.service_id, task.slot) for task in reader.all(Task) if states.is_wanted(task))
        for (service_id, slot), count in live.items():
            service = reader.get(Service, service_id)
            start_first = service is not None and service.spec.update.order == UpdateOrder.UPDATE_ORDER_START_FIRST
            if count > (2 if start_first else 1):
                self.broken.append(f"service {service_id}: {count} live tasks in slot {slot}")

    def _addresses(self, reader: Reader) -> None:
        taken: dict[tuple[str, str], str] = {}
        subnets: dict[str, ipaddress.IPv4Network] = {}
        for network in reader.all(Network):
            if network.ipam.pools:
                subnet = ipaddress.IPv4Network(network.ipam.pools[0].subnet)
                for other, theirs in subnets.items():
                    if theirs.overlaps(subnet):
                        self.broken.append(f"networks {other} and {network.id} overlap: {theirs}, {subnet}")
                subnets[network.id] = subnet
                taken[(network.id, network.ipam.pools[0].gateway)] = "gateway"
        owners = [
            (vip.network_id, vip.address, f"service {service.id}")
            for service in reader.all(Service)
            for vip in service.endpoint.virtual_ips
        ]
        owners += [
            (attachment.network_id, address.partition("/")[0], f"task {task.id}")
            for task in reader.all(Task)
            if not states.has_ended(task)
            for attachment in task.networks
            for address in attachment.addresses
        ]
        for network_id, address, owner in owners:
            before = taken.setdefault((network_id, address), owner)
            if before != owner:
                self.broken.append(f"{before} and {owner} both have {address}")

    def _ports(self, reader: Reader) -> None:
        taken: dict[tuple[int, int], str] = {}
        for service in reader.all(Service):
            for port in service.endpoint.ports:
                before = taken.setdefault((port.protocol, port.published_port), service.id)
                if before != service.id:
                    self.broken.append(f"services {before} and {service.id} both publish {port.published_port}")

    def _resources(self, reader: Reader) -> None:
        used: Counter[str] = Counter()
        for task in reader.all(Task):
            if states.holds_resources(task):
                used[task.node_id] += task.spec.resources.reservations.memory_bytes
        for node in reader.all(Node):
            if used[node.id] > node.description.resources.memory_bytes:
                self.broken.append(f"node {node.id}: {used[node.id]} bytes reserved, more than it has")
