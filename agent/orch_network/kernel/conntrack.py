"""Connection tracking entries over netlink: find the flows of an address, forget them.

Source: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection

from orch_network.kernel.netlink import NetlinkSocket, Request, attribute, parse_attributes

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_TUPLE_ORIG, _TUPLE_REPLY, _ID = 1, 2, 12
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE, _PROTO_NUMBER = 1, 1
_NESTED = 0x8000
_FAMILY_IPV4 = struct.pack(">BBH", 2, 0, 0)


def forget_flows(netlink: NetlinkSocket, protocol: int, backends: Collection[bytes]) -> int:
    """Delete the entries whose answers come from one of ``backends``, so that the next packet is balanced anew.

    ``netlink`` is a NETLINK_NETFILTER socket of the namespace in question. Returns the number of entries deleted.
    """
    doomed: list[Request] = []
    for body in netlink.dump(Request("list tracked connections", _GET, 0, _FAMILY_IPV4)):
        entry = parse_attributes(body, 4)
        reply = parse_attributes(entry.get(_TUPLE_REPLY, b""))
        number = parse_attributes(reply.get(_TUPLE_PROTO, b"")).get(_PROTO_NUMBER, b"")
        source = parse_attributes(reply.get(_TUPLE_IP, b"")).get(_IP_SOURCE, b"")
        if number == bytes((protocol,)) and source in backends:
            selector = _FAMILY_IPV4 + attribute(_TUPLE_ORIG | _NESTED, entry[_TUPLE_ORIG])
            if _ID in entry:
                selector += attribute(_ID, entry[_ID])
            doomed.append(Request("forget a tracked connection", _DELETE, 0, selector, frozenset({errno.ENOENT})))
    netlink.execute(doomed)
    return len(doomed)
