"""Links, addresses, routes, neighbours and routing rules: requests to the kernel and readings from it.

Source of the layouts: linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h, linux/fib_rules.h. IPv4 addresses are
``bytes`` of length 4 throughout.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from orch_network.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    attribute,
    nested,
    parse_attributes,
    text,
)

AF_UNSPEC = 0
AF_INET = 2
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_NET_NS_FD = 1, 3, 4, 18, 28
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 7, 15
RT_TABLE_MAIN = 254
RTN_UNICAST, RTN_UNREACHABLE = 1, 7
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTNH_F_ONLINK = 4
RTPROT_ORCH = 111
"""Our mark on routes (a number that linux/rtnetlink.h leaves free), so that reconciliation touches no one else's."""
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
FRA_SRC, FRA_PRIORITY, FRA_FWMARK, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE = 2, 6, 10, 14, 15
FR_ACT_TO_TBL = 1

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_U32 = struct.Struct("=I")

GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})
_THERE = frozenset({errno.EEXIST})


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """One end of a veth pair. ``index`` 0 lets the kernel choose; ``netns_fd`` -1 is the socket's own namespace."""

    name: str
    mac: bytes
    index: int = 0
    netns_fd: int = -1


def create_veth(near: LinkEnd, far: LinkEnd, mtu: int) -> Request:
    """A veth pair, the near end up, the far end made directly in its namespace (down: a peer cannot be opened sooner).

    One queue each: queues are allocated per possible CPU otherwise, which costs time and memory per task.
    """
    queues = attribute(IFLA_NUM_TX_QUEUES, _U32.pack(1)) + attribute(IFLA_NUM_RX_QUEUES, _U32.pack(1))
    far_parts = [_IFINFO.pack(AF_UNSPEC, 0, far.index, 0, 0), _link_attributes(far, mtu), queues]
    if far.netns_fd >= 0:
        far_parts.append(attribute(IFLA_NET_NS_FD, _U32.pack(far.netns_fd)))
    body = (
        _IFINFO.pack(AF_UNSPEC, 0, near.index, IFF_UP, IFF_UP)
        + _link_attributes(near, mtu)
        + queues
        + nested(
            IFLA_LINKINFO, text(IFLA_INFO_KIND, "veth"), nested(IFLA_INFO_DATA, nested(VETH_INFO_PEER, *far_parts))
        )
    )
    return Request(f"create veth {near.name}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def _link_attributes(end: LinkEnd, mtu: int) -> bytes:
    return text(IFLA_IFNAME, end.name) + attribute(IFLA_ADDRESS, end.mac) + attribute(IFLA_MTU, _U32.pack(mtu))


def set_link_up(index: int, name: str) -> Request:
    """Bring a link up."""
    return Request(f"bring up {name}", RTM_NEWLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, index, IFF_UP, IFF_UP))


def set_link_mtu(index: int, name: str, mtu: int) -> Request:
    """Change a link's MTU in bytes."""
    body = _IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + attribute(IFLA_MTU, _U32.pack(mtu))
    return Request(f"set MTU {mtu} of {name}", RTM_NEWLINK, 0, body)


def delete_link(name: str) -> Request:
    """Remove a link; one that is gone is fine."""
    body = _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
    return Request(f"delete link {name}", RTM_DELLINK, 0, body, GONE)


def add_address(index: int, address: bytes, prefix_length: int) -> Request:
    """Give a link an address."""
    scope = RT_SCOPE_UNIVERSE
    body = _IFADDR.pack(AF_INET, prefix_length, 0, scope, index)
    body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address)
    what = f"add address {dotted(address)}/{prefix_length} to link {index}"
    return Request(what, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, _THERE)


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route. ``gateway`` empty: directly reachable over the link; ``link`` 0: none (unreachable)."""

    destination: bytes
    prefix_length: int
    link: int = 0
    gateway: bytes = b""
    source: bytes = b""
    table: int = RT_TABLE_MAIN
    kind: int = RTN_UNICAST

    def describe(self) -> str:
        """The route in the words of ``ip route``."""
        target = f"{dotted(self.destination)}/{self.prefix_length}"
        return f"{target} via {dotted(self.gateway)}" if self.gateway else target


def replace_route(route: Route) -> Request:
    """Add a route, or replace the one to the same destination."""
    return Request(f"set route {route.describe()}", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, _route_body(route))


def delete_route(route: Route) -> Request:
    """Remove a route; one that is gone is fine."""
    return Request(f"delete route {route.describe()}", RTM_DELROUTE, 0, _route_body(route), GONE)


def _route_body(route: Route) -> bytes:
    direct = route.kind == RTN_UNICAST and not route.gateway
    scope = RT_SCOPE_LINK if direct else RT_SCOPE_UNIVERSE
    flags = RTNH_F_ONLINK if route.gateway else 0
    table = route.table if route.table < 256 else 0
    body = _ROUTE.pack(AF_INET, route.prefix_length, 0, 0, table, RTPROT_ORCH, scope, route.kind, flags)
    body += attribute(RTA_DST, route.destination) if route.prefix_length else b""
    body += attribute(RTA_OIF, _U32.pack(route.link)) if route.link else b""
    body += attribute(RTA_GATEWAY, route.gateway) if route.gateway else b""
    body += attribute(RTA_PREFSRC, route.source) if route.source else b""
    return body + attribute(RTA_TABLE, _U32.pack(route.table))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour entry: address on a link, and its MAC."""

    link: int
    address: bytes
    mac: bytes


def replace_neighbour(neighbour: Neighbour) -> Request:
    """Add or replace a permanent neighbour entry."""
    body = _NEIGHBOUR.pack(AF_INET, neighbour.link, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, neighbour.address) + attribute(NDA_LLADDR, neighbour.mac)
    return Request(f"set neighbour {dotted(neighbour.address)}", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_neighbour(neighbour: Neighbour) -> Request:
    """Remove a neighbour entry; one that is gone is fine."""
    body = _NEIGHBOUR.pack(AF_INET, neighbour.link, 0, 0, 0) + attribute(NDA_DST, neighbour.address)
    return Request(f"delete neighbour {dotted(neighbour.address)}", RTM_DELNEIGH, 0, body, GONE)


def add_rule(priority: int, table: int, source: bytes = b"", *, mark: int = 0, only_specific: bool = False) -> Request:
    """A routing rule: look into ``table`` (if from ``source``, if marked); ``only_specific``: not its default route."""
    body = _ROUTE.pack(AF_INET, 0, 32 if source else 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    body += attribute(FRA_PRIORITY, _U32.pack(priority)) + attribute(FRA_TABLE, _U32.pack(table))
    body += attribute(FRA_SRC, source) if source else b""
    body += attribute(FRA_FWMARK, _U32.pack(mark)) if mark else b""
    body += attribute(FRA_SUPPRESS_PREFIXLEN, _U32.pack(0)) if only_specific else b""
    return Request(f"add routing rule {priority}", RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body, _THERE)


# ---- readings ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says about a link."""

    index: int
    name: str
    mac: bytes
    mtu: int
    is_up: bool


def list_links() -> Request:
    """Dump of all links; read each body with ``read_link``."""
    return Request("list links", RTM_GETLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0))


def read_link(body: bytes) -> Link:
    """One body of ``list_links``."""
    _family, _kind, index, flags, _change = _IFINFO.unpack_from(body)
    attributes = parse_attributes(body, _IFINFO.size)
    name = attributes.get(IFLA_IFNAME, b"").rstrip(b"\0").decode()
    (mtu,) = _U32.unpack(attributes.get(IFLA_MTU, b"\0\0\0\0"))
    return Link(index, name, attributes.get(IFLA_ADDRESS, b""), mtu, bool(flags & IFF_UP))


def list_addresses() -> Request:
    """Dump of all IPv4 addresses; read each body with ``read_address``."""
    return Request("list addresses", RTM_GETADDR, 0, _IFADDR.pack(AF_INET, 0, 0, 0, 0))


def read_address(body: bytes) -> tuple[int, bytes, int]:
    """One body of ``list_addresses``: (link index, address, prefix length)."""
    _family, prefix_length, _flags, _scope, index = _IFADDR.unpack_from(body)
    attributes = parse_attributes(body, _IFADDR.size)
    return index, attributes.get(IFA_LOCAL, attributes.get(IFA_ADDRESS, b"")), prefix_length


def list_routes() -> Request:
    """Dump of all IPv4 routes; read each body with ``read_route``."""
    return Request("list routes", RTM_GETROUTE, 0, _ROUTE.pack(AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))


def read_route(body: bytes) -> Route | None:
    """One body of ``list_routes``; None for a route that is not ours."""
    _family, prefix_length, _src, _tos, table, protocol, _scope, kind, _flags = _ROUTE.unpack_from(body)
    if protocol != RTPROT_ORCH:
        return None
    attributes = parse_attributes(body, _ROUTE.size)
    (link,) = _U32.unpack(attributes.get(RTA_OIF, b"\0\0\0\0"))
    if RTA_TABLE in attributes:
        (table,) = _U32.unpack(attributes[RTA_TABLE])
    return Route(
        destination=attributes.get(RTA_DST, b"\0\0\0\0"),
        prefix_length=prefix_length,
        # An unreachable route is shown with the loopback link on some kernels.
        link=link if kind == RTN_UNICAST else 0,
        gateway=attributes.get(RTA_GATEWAY, b""),
        source=attributes.get(RTA_PREFSRC, b""),
        table=table,
        kind=kind,
    )


def list_neighbours() -> Request:
    """Dump of all IPv4 neighbours; read each body with ``read_neighbour``."""
    return Request("list neighbours", RTM_GETNEIGH, 0, _NEIGHBOUR.pack(AF_INET, 0, 0, 0, 0))


def read_neighbour(body: bytes) -> Neighbour | None:
    """One body of ``list_neighbours``; None for an entry that is not permanent."""
    _family, link, state, _flags, _kind = _NEIGHBOUR.unpack_from(body)
    if not state & NUD_PERMANENT:
        return None
    attributes = parse_attributes(body, _NEIGHBOUR.size)
    return Neighbour(link, attributes.get(NDA_DST, b""), attributes.get(NDA_LLADDR, b""))


def list_rules() -> Request:
    """Dump of the IPv4 routing rules; read each body with ``read_rule_priority``."""
    return Request("list routing rules", RTM_GETRULE, 0, _ROUTE.pack(AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))


def read_rule_priority(body: bytes) -> int:
    """The priority of one body of ``list_rules``."""
    (priority,) = _U32.unpack(parse_attributes(body, _ROUTE.size).get(FRA_PRIORITY, b"\0\0\0\0"))
    return int(priority)


def dotted(address: bytes) -> str:
    """An IPv4 address for people; anything else in hexadecimal."""
    return "%d.%d.%d.%d" % tuple(address) if len(address) == 4 else address.hex()  # noqa: UP031 - fastest form
