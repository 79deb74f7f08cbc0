"""IPv4 addresses and subnets as bytes, without the weight of the ``ipaddress`` module."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from orch_network.errors import InvalidRequest


def parse_address(text: str, what: str) -> bytes:
    """Four bytes of a dotted address in its canonical form; InvalidRequest names ``what``."""
    try:
        packed = socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError, TypeError) as failure:
        raise InvalidRequest(f"{what}: {text!r} is not an IPv4 address; write it as 10.0.1.5") from failure
    return packed


def format_address(packed: bytes) -> str:
    """The dotted form."""
    return socket.inet_ntop(socket.AF_INET, packed)


@dataclass(frozen=True, slots=True)
class Subnet:
    """A subnet; ``network`` has no host bits."""

    network: bytes
    prefix_length: int

    def __contains__(self, address: bytes) -> bool:
        mask = 0xFFFFFFFF << (32 - self.prefix_length) & 0xFFFFFFFF
        return int.from_bytes(address, "big") & mask == int.from_bytes(self.network, "big")

    def overlaps(self, other: Subnet) -> bool:
        """Whether some address is in both."""
        return self.network in other or other.network in self


def parse_subnet(text: str, what: str) -> Subnet:
    """A subnet in the form 10.0.1.0/24, prefix length 8 to 30, host bits zero."""
    address, slash, length_text = text.partition("/")
    if not slash or not length_text.isdecimal() or not 8 <= int(length_text) <= 30:
        raise InvalidRequest(f"{what}: {text!r} is not a subnet of prefix length 8 to 30; write it as 10.0.1.0/24")
    subnet = Subnet(parse_address(address, what), int(length_text))
    if subnet.network not in subnet:
        raise InvalidRequest(f"{what}: {text!r} has bits set beyond its prefix; the address must be the network's own")
    return subnet


def mac_of(address: bytes) -> bytes:
    """The locally administered MAC of a task's address: fixed by the address, so that nobody has to learn it."""
    return b"\x02\x42" + address
