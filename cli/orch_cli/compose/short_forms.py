"""The short forms of ports, volumes, tmpfs and host entries.

Each parser takes the text and returns values, or raises ``ValueError`` with a reason for people; nothing here knows
about files.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

MAX_PORTS: Final = 1024  # of one range; each becomes a rule on every node
PROTOCOLS: Final = ("tcp", "udp", "sctp")
PROPAGATIONS: Final = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class Port(NamedTuple):
    """One published port; ``published`` 0 lets the cluster choose."""

    target: int
    published: int
    protocol: str
    host_ip: str


class ShortVolume(NamedTuple):
    """A volume's short form taken apart. ``source`` is empty for an anonymous volume."""

    source: str
    target: str
    read_only: bool
    no_copy: bool
    propagation: str
    unknown: tuple[str, ...]


def parse_port_range(text: str, *, zero: bool = False) -> tuple[int, int]:
    """``80`` or ``80-82`` as first and last port; port 0 only where ``zero``."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no port or range of ports")
    first = int(match.group(1))
    last = int(match.group(2) or first)
    if last > 65535 or (first == 0 and not (zero and last == 0)):
        raise ValueError(f"{text!r} is out of range, ports go from 1 to 65535")
    if last < first:
        raise ValueError(f"the range {text!r} runs backwards")
    if last - first >= MAX_PORTS:
        raise ValueError(f"the range {text!r} is too large, at most {MAX_PORTS} ports")
    return first, last


def parse_ports(text: str) -> list[Port]:
    """``[[address:]published:]target[/protocol]``, with ranges."""
    rest, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise ValueError(f"the protocol {protocol!r} is unknown, known are {', '.join(PROTOCOLS)}")
    target_text, published_text, host_ip = _split_port(rest)
    target_first, target_last = parse_port_range(target_text)
    return pair_ports((target_first, target_last), published_text, protocol, host_ip)


def pair_ports(target: tuple[int, int], published_text: str, protocol: str, host_ip: str) -> list[Port]:
    """Joins a range of targets with what is published: nothing, one, as many, or a range for one target."""
    target_first, target_last = target
    count = target_last - target_first + 1
    if published_text in ("", "0"):
        return [Port(target_first + index, 0, protocol, host_ip) for index in range(count)]
    first, last = parse_port_range(published_text)
    if count == 1 and last > first:
        return [Port(target_first, published, protocol, host_ip) for published in range(first, last + 1)]
    if last - first + 1 != count:
        raise ValueError(f"{last - first + 1} published ports do not fit {count} targets")
    return [Port(target_first + index, first + index, protocol, host_ip) for index in range(count)]


def _split_port(text: str) -> tuple[str, str, str]:
    """Target, published and address of the short form."""
    head, colon, target = text.rpartition(":")
    if not colon:
        return text, "", ""
    if not target:
        raise ValueError("the port of the container is missing behind the last colon")
    host, _, published = head.rpartition(":") if ":" in head else ("", "", head)
    if not host:
        return target, published, ""
    address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return target, published, check_address(address)


def check_address(text: str) -> str:
    """An IP address in its usual form."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is no IP address") from error


def parse_volume(text: str) -> ShortVolume:
    """``[source:]target[:options]``."""
    parts = text.split(":")
    if any(not part for part in parts):
        raise ValueError("a part between colons is empty")
    if len(parts) > 3:
        raise ValueError("there are too many colons, the form is source:target:options")
    if len(parts) == 1:
        source, target, options = "", parts[0], ""
    elif len(parts) == 2:
        source, target, options = parts[0], parts[1], ""
    else:
        source, target, options = parts
    read_only = no_copy = False
    propagation = ""
    unknown = []
    for word in options.split(",") if options else ():
        if word in ("ro", "rw"):
            read_only = word == "ro"
        elif word == "nocopy":
            no_copy = True
        elif word in PROPAGATIONS:
            propagation = word
        elif word not in ("z", "Z", "cached", "delegated", "consistent"):
            unknown.append(word)
    return ShortVolume(source, target, read_only, no_copy, propagation, tuple(unknown))


def parse_extra_host(text: str) -> tuple[str, str]:
    """``name:address`` or ``name=address``; the address may be ``host-gateway`` or IPv6 with or without brackets."""
    cut = min((text.find(mark) for mark in "=:" if mark in text), default=-1)
    if cut <= 0 or cut == len(text) - 1:
        raise ValueError(f"{text!r} is no host entry, the form is name:address")
    return text[:cut], parse_host_address(text[cut + 1 :])


def parse_host_address(text: str) -> str:
    """The address of a host entry."""
    if text == "host-gateway":
        return text
    return check_address(text[1:-1] if text.startswith("[") and text.endswith("]") else text)
