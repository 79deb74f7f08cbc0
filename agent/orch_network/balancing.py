"""Which backend serves each slot of a network's virtual addresses and published ports. Pure.

Each change returns what it means for the router's sets: for each set by name the elements before and after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orch_network import limits, slots
from orch_network.ipv4 import format_address, parse_address
from orch_network.protocol import PublishedPort, Service
from orch_network.rules import (
    ROUTER_BACKENDS,
    ROUTER_HAIRPIN,
    ROUTER_PUBLISHED,
    port_word,
    port_words,
    read_slot_word,
    slot_word,
)

Owners = tuple[bytes | None, ...]
Changes = dict[str, tuple[Mapping[bytes, bytes], Mapping[bytes, bytes]]]


@dataclass(slots=True)
class Balanced:
    """A virtual address, or a published port, and who serves it."""

    owners: Owners
    members: tuple[bytes, ...] = field(default=())


class Balancing:
    """The services and ports of one network, and who serves them."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.ports: dict[tuple[str, int], PublishedPort] = {}
        self._vips: dict[bytes, Balanced] = {}
        self._published: dict[tuple[str, int], tuple[int, Balanced]] = {}
        self._learned: dict[bytes, list[bytes | None]] = {}
        self._hairpin: Counter[bytes] = Counter()
        self._stale_backends: set[bytes] = set()

    def learn(self, elements: Mapping[bytes, bytes]) -> None:
        """Take the owners of slots from the kernel's elements of one set: a restart moves no flow."""
        for key, data in elements.items():
            owners = self._learned.setdefault(key[:-4], [None] * limits.SLOTS)
            slot = read_slot_word(key[-4:])
            if slot < limits.SLOTS:
                owners[slot] = data[:4]

    def restore(self, services: Iterable[Service], ports: Mapping[tuple[str, int], PublishedPort]) -> None:
        """After a restart: want these again, with the slots as they were learned."""
        for service in services:
            self.services[service.id] = service
            self._hairpin.update(_hairpin_addresses(service))
            self._assign_vip(service)
        for key, port in ports.items():
            self._assign_port(key, port)
        self.ports = dict(ports)
        self._learned.clear()

    def put_services(self, changed: Iterable[Service], removed: Iterable[str]) -> Changes:
        """Replace services and remove others."""
        before: dict[bytes, bytes] = {}
        after: dict[bytes, bytes] = {}
        changed = list(changed)
        gone = [service_id for service_id in removed if service_id in self.services]
        touched = gone + [service.id for service in changed if service.id in self.services]
        hairpins = Counter(self._hairpin)
        for service_id in touched:
            old = self.services[service_id]
            before.update(self._backend_elements(old.vip))
            hairpins.subtract(_hairpin_addresses(old))
        for service_id in gone:
            self._drop_vip(self.services.pop(service_id).vip)
        for service in changed:
            previous = self.services.get(service.id)
            if previous is not None and previous.vip != service.vip:
                self._drop_vip(previous.vip)
            self.services[service.id] = service
            hairpins.update(_hairpin_addresses(service))
            self._assign_vip(service)
            after.update(self._backend_elements(service.vip))
        present, wanted = +self._hairpin, +hairpins
        self._hairpin = wanted
        return {
            ROUTER_BACKENDS.name: (before, after),
            ROUTER_HAIRPIN.name: (
                {address * 2: b"" for address in present.keys() - wanted.keys()},
                {address * 2: b"" for address in wanted.keys() - present.keys()},
            ),
        }

    def _assign_vip(self, service: Service) -> None:
        if not service.vip:
            return
        vip = parse_address(service.vip, "vip")
        previous = self._vips.get(vip)
        members = tuple(sorted({parse_address(endpoint.address, "endpoint") for endpoint in service.endpoints}))
        owners = slots.assign(previous.owners if previous else self._learned.get(vip, ()), members)
        if previous is not None:
            self._stale_backends |= {owner for owner in previous.owners if owner is not None} - set(members)
        self._vips[vip] = Balanced(owners, members)

    def _drop_vip(self, vip: str) -> None:
        balanced = self._vips.pop(parse_address(vip, "vip"), None) if vip else None
        if balanced is not None:
            self._stale_backends |= {owner for owner in balanced.owners if owner is not None}

    def _backend_elements(self, vip: str) -> dict[bytes, bytes]:
        if not vip:
            return {}
        address = parse_address(vip, "vip")
        balanced = self._vips.get(address)
        return _slot_elements(address, balanced.owners) if balanced is not None else {}

    def set_ports(self, ports: Mapping[tuple[str, int], PublishedPort]) -> Changes:
        """Replace the ports that lead into this network, by (protocol, published)."""
        before = self._published_elements()
        for key in self._published.keys() - ports.keys():
            self._stale_backends |= set(self._published.pop(key)[1].members)
        for key, port in ports.items():
            self._assign_port(key, port)
        self.ports = dict(ports)
        return {ROUTER_PUBLISHED.name: (before, self._published_elements())}

    def put_port(self, port: PublishedPort) -> Changes:
        """Add or replace one port."""
        key = (port.protocol, port.published)
        before = self._port_elements(key)
        self._assign_port(key, port)
        self.ports[key] = port
        return {ROUTER_PUBLISHED.name: (before, self._port_elements(key))}

    def remove_port(self, key: tuple[str, int]) -> Changes:
        """Remove one port; one that is gone is fine."""
        before = self._port_elements(key)
        if self.ports.pop(key, None) is not None:
            self._stale_backends |= set(self._published.pop(key)[1].members)
            return {ROUTER_PUBLISHED.name: (before, {})}
        return {}

    def _assign_port(self, key: tuple[str, int], port: PublishedPort) -> None:
        members = tuple(sorted({parse_address(address, "endpoint") for address in port.endpoints}))
        previous = self._published.get(key)
        learned = self._learned.get(port_words(*key), ())
        owners = slots.assign(previous[1].owners if previous else learned, members)
        if previous is not None:
            self._stale_backends |= set(previous[1].members) - set(members)
        self._published[key] = (port.target, Balanced(owners, members))

    def _port_elements(self, key: tuple[str, int]) -> dict[bytes, bytes]:
        if key not in self._published:
            return {}
        target, balanced = self._published[key]
        suffix = port_word(target)
        elements = _slot_elements(port_words(*key), balanced.owners)
        return {element: address + suffix for element, address in elements.items()}

    def _published_elements(self) -> dict[bytes, bytes]:
        return {element: data for key in self._published for element, data in self._port_elements(key).items()}

    def wanted_elements(self) -> dict[str, dict[bytes, bytes]]:
        """All elements by set."""
        backends: dict[bytes, bytes] = {}
        for service in self.services.values():
            backends.update(self._backend_elements(service.vip))
        return {
            ROUTER_BACKENDS.name: backends,
            ROUTER_PUBLISHED.name: self._published_elements(),
            ROUTER_HAIRPIN.name: {address * 2: b"" for address in +self._hairpin},
        }

    def take_stale(self) -> set[bytes]:
        """The backends that have been removed since the last call and serve nothing else."""
        if not self._stale_backends:
            return set()
        serving = {owner for balanced in self._vips.values() for owner in balanced.members}
        serving |= {owner for _, balanced in self._published.values() for owner in balanced.members}
        stale, self._stale_backends = self._stale_backends - serving, set()
        return stale

    def overfull(self) -> list[str]:
        """The virtual addresses with more backends than slots."""
        return [format_address(vip) for vip, each in self._vips.items() if len(each.members) > limits.SLOTS]


def _slot_elements(prefix: bytes, owners: Owners) -> dict[bytes, bytes]:
    return {prefix + slot_word(slot): owner for slot, owner in enumerate(owners) if owner is not None}


def _hairpin_addresses(service: Service) -> list[bytes]:
    """Endpoints that may be balanced to themselves."""
    return [parse_address(each.address, "endpoint") for each in service.endpoints] if service.vip else []
