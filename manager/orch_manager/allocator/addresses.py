"""Subnets and the addresses in them. Pure; rebuilt from the store at any time."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orch_proto.types_pb2 import IpamPool

Network4 = ipaddress.IPv4Network


class NoAddress(Exception):  # noqa: N818 - says what there is not
    """Nothing is left, or what was asked for cannot be had; the text says which."""


def choose_subnet(
    pools: Sequence[str], prefix_length: int, used: Iterable[Network4], avoid: Iterable[str] = ()
) -> Network4:
    """The first free subnet of the pools.

    Args:
        pools: blocks to cut from: "10.0.0.0/8".
        prefix_length: of the subnet.
        used: subnets in use; the result overlaps none.
        avoid: addresses of hosts that must stay reachable.

    Raises:
        NoAddress: every subnet is taken.
    """
    hosts = [ipaddress.IPv4Address(address) for address in avoid]
    taken = sorted(used, key=lambda network: int(network.network_address))
    for pool in pools:
        block = ipaddress.IPv4Network(pool)
        size = 1 << (32 - prefix_length)
        position, end = int(block.network_address), int(block.broadcast_address)
        while position + size - 1 <= end:
            candidate = ipaddress.IPv4Network((position, prefix_length))
            clash = next((network for network in taken if network.overlaps(candidate)), None)
            if clash is not None:
                beyond = int(clash.broadcast_address) + 1
                position = max(position + size, (beyond + size - 1) // size * size)
            elif any(host in candidate for host in hosts):
                position += size
            else:
                return candidate
    raise NoAddress(
        f"no free subnet of /{prefix_length} in {', '.join(pools)}: remove networks that are not used, or name a subnet"
    )


def check_subnet(text: str, used: dict[str, Network4]) -> Network4:
    """A subnet that a user asked for.

    Args:
        text: "10.5.0.0/24".
        used: subnets in use by the name of their network.

    Raises:
        NoAddress: it is no IPv4 subnet, too small, or overlaps one in use.
    """
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise NoAddress(f"'{text}' is no IPv4 subnet: {error}") from error
    if network.prefixlen > 29 or network.prefixlen < 8:
        raise NoAddress(f"subnet {text} has a prefix length of {network.prefixlen}: 8 to 29 are possible")
    for name, other in used.items():
        if other.overlaps(network):
            raise NoAddress(f"subnet {text} overlaps {other} of network {name}")
    return network


@dataclass(frozen=True, slots=True)
class _Range:
    first: int
    last: int


class AddressBook:
    """The addresses of one network: who has which. An address that came back is given out again as late as possible."""

    def __init__(self, pool: IpamPool) -> None:
        self.subnet = ipaddress.IPv4Network(pool.subnet)
        block = ipaddress.IPv4Network(pool.ip_range) if pool.ip_range else self.subnet
        first, last = int(block.network_address), int(block.broadcast_address)
        if block == self.subnet:
            first, last = first + 1, last - 1
        self._range = _Range(first, last)
        self._cursor = first
        self._owner: dict[int, str] = {}
        self._held: dict[str, int] = {}
        for reserved in (str(self.subnet.network_address), str(self.subnet.broadcast_address), pool.gateway):
            if reserved:
                self._owner[int(ipaddress.IPv4Address(reserved))] = "network"
        for address in pool.auxiliary_addresses.values():
            self._owner[int(ipaddress.IPv4Address(address))] = "network"

    def claim(self, owner: str, address: str) -> bool:
        """Notes that an owner has an address, as the store says. False when another one has it or it lies outside."""
        number = int(ipaddress.IPv4Address(address.partition("/")[0]))
        if ipaddress.IPv4Address(number) not in self.subnet or self._owner.get(number, owner) != owner:
            return False
        self.release(owner)
        self._owner[number] = owner
        self._held[owner] = number
        return True

    def release(self, owner: str) -> None:
        """Takes back what an owner has; nothing when it has nothing."""
        number = self._held.pop(owner, None)
        if number is not None:
            del self._owner[number]

    def allocate(self, owner: str) -> str:
        """A free address, without prefix length; the same one when the owner has one already.

        Raises:
            NoAddress: all are taken.
        """
        if owner in self._held:
            return str(ipaddress.IPv4Address(self._held[owner]))
        span = self._range.last - self._range.first + 1
        for offset in range(min(span, len(self._owner) + 1)):
            number = self._range.first + (self._cursor - self._range.first + offset) % span
            if number not in self._owner:
                self._owner[number] = owner
                self._held[owner] = number
                self._cursor = number + 1
                return str(ipaddress.IPv4Address(number))
        raise NoAddress(f"no free address in {self.subnet} ({len(self._held)} in use): use a larger subnet")

    def with_prefix(self, address: str) -> str:
        """The address as an interface carries it."""
        return f"{address}/{self.subnet.prefixlen}"
