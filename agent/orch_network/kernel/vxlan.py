"""VXLAN devices and their forwarding entries: requests to the kernel and readings from it.

Source of the layouts: linux/if_link.h (IFLA_VXLAN_*), linux/neighbour.h. Unicast alone: no group, no learning.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from orch_network.kernel import rtnetlink as rt
from orch_network.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Request, attribute, nested, text
from orch_network.kernel.netlink import parse_attributes as parse

_IFLA_VXLAN_ID, _IFLA_VXLAN_LOCAL, _IFLA_VXLAN_TTL = 1, 4, 5
_IFLA_VXLAN_LEARNING, _IFLA_VXLAN_PORT = 7, 15
_AF_BRIDGE = 7
_NTF_SELF = 0x02
_NUD_NOARP = 0x40
_IFINFO = struct.Struct("=BxHiII")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_U32 = struct.Struct("=I")
_TTL = 64

OVERHEAD_BYTES = 50
"""Outer Ethernet, IPv4, UDP and VXLAN headers (RFC 7348)."""


@dataclass(frozen=True, slots=True)
class Vxlan:
    """What makes a device the one that is wanted: identifier, own address and UDP port of the underlay."""

    vni: int
    local: bytes
    port: int


def create(name: str, vxlan: Vxlan, mac: bytes, mtu: int, netns_fd: int) -> Request:
    """A device in another namespace; its UDP socket stays in the namespace of the netlink socket."""
    data = nested(
        rt.IFLA_INFO_DATA,
        attribute(_IFLA_VXLAN_ID, _U32.pack(vxlan.vni)),
        attribute(_IFLA_VXLAN_LOCAL, vxlan.local),
        attribute(_IFLA_VXLAN_TTL, bytes((_TTL,))),
        attribute(_IFLA_VXLAN_LEARNING, b"\0"),
        attribute(_IFLA_VXLAN_PORT, vxlan.port.to_bytes(2, "big")),
    )
    body = (
        _IFINFO.pack(rt.AF_UNSPEC, 0, 0, 0, 0)
        + text(rt.IFLA_IFNAME, name)
        + attribute(rt.IFLA_ADDRESS, mac)
        + attribute(rt.IFLA_MTU, _U32.pack(mtu))
        + attribute(rt.IFLA_NET_NS_FD, _U32.pack(netns_fd))
        + nested(rt.IFLA_LINKINFO, text(rt.IFLA_INFO_KIND, "vxlan"), data)
    )
    return Request(f"create VXLAN device {vxlan.vni}", rt.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def read(body: bytes) -> Vxlan | None:
    """What one body of ``list_links`` says of a VXLAN device; None for a link of another kind."""
    info = parse(parse(body, _IFINFO.size).get(rt.IFLA_LINKINFO, b""))
    if info.get(rt.IFLA_INFO_KIND, b"").rstrip(b"\0") != b"vxlan":
        return None
    data = parse(info.get(rt.IFLA_INFO_DATA, b""))
    (vni,) = _U32.unpack(data.get(_IFLA_VXLAN_ID, bytes(4)))
    return Vxlan(vni, data.get(_IFLA_VXLAN_LOCAL, b""), int.from_bytes(data.get(_IFLA_VXLAN_PORT, b""), "big"))


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A permanent forwarding entry: frames for ``mac`` go to the node at ``node`` of the underlay."""

    link: int
    mac: bytes
    node: bytes


def replace_forwarding(entry: Forwarding) -> Request:
    """Add or replace a forwarding entry."""
    body = _NEIGHBOUR.pack(_AF_BRIDGE, entry.link, rt.NUD_PERMANENT | _NUD_NOARP, _NTF_SELF, 0)
    body += attribute(rt.NDA_LLADDR, entry.mac) + attribute(rt.NDA_DST, entry.node)
    what = f"set forwarding to node {rt.dotted(entry.node)}"
    return Request(what, rt.RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_forwarding(entry: Forwarding) -> Request:
    """Remove a forwarding entry; one that is gone is fine."""
    body = _NEIGHBOUR.pack(_AF_BRIDGE, entry.link, 0, _NTF_SELF, 0)
    body += attribute(rt.NDA_LLADDR, entry.mac) + attribute(rt.NDA_DST, entry.node)
    return Request(f"delete forwarding to node {rt.dotted(entry.node)}", rt.RTM_DELNEIGH, 0, body, rt.GONE)


def list_forwarding() -> Request:
    """Dump of all forwarding entries; read each body with ``read_forwarding``."""
    return Request("list forwarding entries", rt.RTM_GETNEIGH, 0, _NEIGHBOUR.pack(_AF_BRIDGE, 0, 0, 0, 0))


def read_forwarding(body: bytes) -> Forwarding | None:
    """One body of ``list_forwarding``; None for an entry without a node (a bridge's, a link's own multicast)."""
    _family, link, _state, _flags, _kind = _NEIGHBOUR.unpack_from(body)
    attributes = parse(body, _NEIGHBOUR.size)
    node = attributes.get(rt.NDA_DST, b"")
    return Forwarding(link, attributes.get(rt.NDA_LLADDR, b""), node) if len(node) == 4 else None
