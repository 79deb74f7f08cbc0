"""The names of one network, and what a task sees of the networks that it is in. Pure.

web, aliases of web     the VIP; without one (dnsrr) the addresses of all endpoints
tasks.web               the addresses of all endpoints
2.web                   the endpoint of slot 2
HOSTNAME                one endpoint, by its own aliases
NAME.NETWORK            any of these, of one network by name
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orch_network.ipv4 import parse_address
from orch_network.protocol import Service

Addresses = tuple[bytes, ...]


class Zone:
    """The names of one network. A change of one service costs what that service has names."""

    def __init__(self, network_name: str) -> None:
        self._suffix = f".{network_name.lower()}"
        self._network_name = network_name.lower()
        # name -> service id -> addresses: two services may share an alias, then the answer holds both.
        self._names: dict[str, dict[str, Addresses]] = {}
        self._owned: dict[str, tuple[tuple[str, ...], tuple[bytes, ...]]] = {}
        self._reverse: dict[bytes, dict[str, str]] = {}

    def put(self, service: Service) -> None:
        """Add or replace the names of a service."""
        self.remove(service.id)
        names = service_names(service)
        for name, addresses in names.items():
            self._names.setdefault(name, {})[service.id] = addresses
        reverse = service_reverse(service)
        for address, name in reverse.items():
            self._reverse.setdefault(address, {})[service.id] = f"{name}{self._suffix}"
        self._owned[service.id] = (tuple(names), tuple(reverse))

    def remove(self, service_id: str) -> None:
        """Forget the names of a service; an unknown one is fine."""
        names, addresses = self._owned.pop(service_id, ((), ()))
        for name in names:
            owners = self._names[name]
            del owners[service_id]
            if not owners:
                del self._names[name]
        for address in addresses:
            reverse_owners = self._reverse[address]
            del reverse_owners[service_id]
            if not reverse_owners:
                del self._reverse[address]

    def lookup(self, name: str) -> Addresses | None:
        """The addresses of a name in lower case; None if this network does not know it."""
        owners = self._names.get(name)
        if owners is None and name.endswith(self._suffix):
            owners = self._names.get(name[: -len(self._suffix)])
        if owners is None:
            return None
        if len(owners) == 1:
            return next(iter(owners.values()))
        return tuple(dict.fromkeys(address for addresses in owners.values() for address in addresses))

    def reverse(self, address: bytes) -> tuple[str, ...]:
        """The names of an address; empty if it is not of this network."""
        return tuple(self._reverse.get(address, {}).values())


def service_names(service: Service) -> dict[str, Addresses]:
    """All names of a service, in lower case, with their addresses."""
    endpoints = [(each, parse_address(each.address, "endpoint")) for each in service.endpoints]
    everyone: Addresses = tuple(dict.fromkeys(address for _, address in endpoints))
    front: Addresses = (parse_address(service.vip, "vip"),) if service.vip else everyone
    names: dict[str, Addresses] = {}

    def add(name: str, addresses: Addresses) -> None:
        lowered = name.lower()
        names[lowered] = tuple(dict.fromkeys((*names.get(lowered, ()), *addresses)))

    for name in dict.fromkeys((service.name, *service.aliases)):
        add(name, front)
        add(f"tasks.{name}", everyone)
        for endpoint, address in endpoints:
            if endpoint.slot:
                add(f"{endpoint.slot}.{name}", (address,))
    for endpoint, address in endpoints:
        for alias in endpoint.aliases:
            add(alias, (address,))
    return names


def service_reverse(service: Service) -> dict[bytes, str]:
    """The name, network apart, that each address of a service stands for."""
    reverse = {
        parse_address(each.address, "endpoint"): (
            f"{each.slot}.{service.name}" if each.slot else next(iter(each.aliases), service.name)
        ).lower()
        for each in service.endpoints
    }
    if service.vip:
        reverse[parse_address(service.vip, "vip")] = service.name.lower()
    return reverse


def lookup(zones: Iterable[Zone], name: str) -> Addresses | None:
    """What a task that is in ``zones`` sees under a name; None if none of them knows it."""
    found: Addresses | None = None
    for zone in zones:
        addresses = zone.lookup(name)
        if addresses is not None:
            found = addresses if found is None else tuple(dict.fromkeys((*found, *addresses)))
    return found


def reverse(zones: Iterable[Zone], address: bytes) -> tuple[str, ...]:
    """The names that a task in ``zones`` sees for an address."""
    return tuple(name for zone in zones for name in zone.reverse(address))


def rotated(addresses: Sequence[bytes], turn: int) -> Sequence[bytes]:
    """The same addresses, beginning with another one each turn."""
    if len(addresses) < 2:
        return addresses
    first = turn % len(addresses)
    return (*addresses[first:], *addresses[:first])
