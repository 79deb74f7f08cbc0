"""Bounds and fixed values of the node's network, each with its unit and reason."""

from __future__ import annotations

from typing import Final

SLOTS: Final = 120
"""Slots per virtual address: divides evenly by 1-6, 8, 10, 12, 15, 20 … backends; 7 backends differ by 6 %."""

MAX_MESSAGE_BYTES: Final = 1 << 20
"""One packet on the control socket; the kernel must find the space for it in one piece."""
MAX_CLIENTS: Final = 64
"""Control connections at a time; the agent needs one."""
MAX_NETWORKS: Final = 1024
"""Networks on one node; each costs a namespace and two netlink sockets."""
MAX_TASKS: Final = 4096
"""Tasks on one node; each costs a namespace and two DNS sockets."""
MAX_NETWORKS_PER_TASK: Final = 32
MAX_SERVICES_PER_NETWORK: Final = 4096
MAX_ENDPOINTS: Final = 4096
"""Endpoints of one service."""
MAX_PEERS: Final = 4096
"""Nodes that clients of one service come through."""
MAX_VNI: Final = (1 << 24) - 1
VXLAN_PORT: Final = 4789
"""RFC 7348."""
MAX_ALIASES: Final = 64
MAX_PORTS: Final = 8192
MIN_MTU, MAX_MTU = 576, 65535

RECONCILE_EVERY_S: Final = 30.0
POOL_SIZE: Final = 16
"""Task namespaces made in advance, about 80 kB of kernel memory each: takes 0.5 ms off a container's start."""

DNS_ADDRESS: Final = "127.0.0.11"
DNS_TTL_S: Final = 5
"""Short, as addresses of tasks come and go; a lookup costs 20 microseconds."""
DNS_MAX_IN_FLIGHT: Final = 1024
"""Queries that wait for upstream servers, all tasks together."""
DNS_MAX_IN_FLIGHT_PER_TASK: Final = 256
"""So that one task cannot use up what all share."""
DNS_UPSTREAM_TIMEOUT_S: Final = 2.0
"""Per upstream server."""
DNS_MAX_SERVERS: Final = 3
"""Upstream servers that are used, as in resolv.conf(5)."""
DNS_TCP_IDLE_S: Final = 10.0
DNS_MAX_TCP: Final = 512
DNS_MAX_TCP_PER_TASK: Final = 32

GATEWAY_ADDRESS: Final = bytes((169, 254, 1, 1))
"""Every task's next hop; it exists only as a permanent neighbour entry."""
GATEWAY_MAC: Final = bytes.fromhex("026f72636801")
"""Locally administered; the same on every router, so that a task's neighbour entry never changes."""
UPLINK_POOL: Final = bytes((169, 254, 64, 0))
UPLINK_PREFIX_LENGTH: Final = 18
"""Link-local /30 pairs between the node and its routers: 169.254.64.0 - 169.254.127.255, clear of 169.254.169.254."""

TABLE: Final = "orch"
"""The nftables table (family ip), in the node, in every router and in every task."""
USER_CHAIN: Final = "user"
"""The node table's chain for the operator's own rules; never changed by orch."""
UPLINK_PREFIX: Final = "orn-"
"""How the names of the node's ends of uplinks begin."""
ROUTER_UPLINK: Final = "up0"
"""The router's end of its uplink."""
OVERLAY_LINK: Final = "vx0"
"""The router's VXLAN device."""
TASK_LINK_PREFIX: Final = "t-"
"""How the names of the routers' ends of tasks' links begin."""
