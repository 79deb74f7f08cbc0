"""The MTU of what is carried between nodes: that of the interface with the data-path address, less the headers."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys

from orch_network import limits
from orch_network.kernel.vxlan import OVERHEAD_BYTES
from orch_proto import defaults

_SIOCGIFADDR, _SIOCGIFMTU = 0x8915, 0x8921  # linux/sockios.h
_IFREQ = struct.Struct("=16s24s")


def overlay_mtu(address: str) -> int:
    """The MTU in bytes; the default where no interface but loopback has the address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            if name != "lo" and _ask(asking, _SIOCGIFADDR, name)[4:8] == socket.inet_aton(address):
                mtu = int.from_bytes(_ask(asking, _SIOCGIFMTU, name)[:4], sys.byteorder) - OVERHEAD_BYTES
                return max(limits.MIN_MTU, min(mtu, limits.MAX_MTU))
    return defaults.NETWORK_MTU


def _ask(asking: socket.socket, request: int, name: str) -> bytes:
    """What the kernel says of an interface; zeros where it has nothing to say, or the interface has gone."""
    try:
        answer = fcntl.ioctl(asking, request, _IFREQ.pack(name.encode(), bytes(24)))
    except OSError:
        return bytes(24)
    return answer[16:]
