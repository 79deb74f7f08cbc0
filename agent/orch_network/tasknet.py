"""A task's network namespace: made in advance, configured at attach, its resolver sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from orch_network import limits
from orch_network.errors import KernelError
from orch_network.ipv4 import Subnet
from orch_network.kernel import netns
from orch_network.kernel import rtnetlink as rt
from orch_network.kernel.netlink import NETLINK_ROUTE, NetlinkSocket, Request
from orch_network.kernel.nftables import Nftables
from orch_network.rules import task_ruleset
from orch_network.tables import install, repair_ruleset

_FIRST_INDEX = 100
"""Link numbers inside a task: chosen by us, clear of the tunnel links that some kernels make in every namespace."""
_LOOPBACK_INDEX = 1
_RULE_MAIN, _FIRST_RULE, _FIRST_TABLE = 100, 101, 101


@dataclass(slots=True)
class ResolverSockets:
    """The sockets at 127.0.0.11 inside a task's namespace, to which its port 53 is redirected."""

    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        """Close both, and with them their hold on the namespace."""
        self.udp.close()
        self.tcp.close()

    def ports(self) -> tuple[int, int]:
        """(UDP port, TCP port)."""
        return self.udp.getsockname()[1], self.tcp.getsockname()[1]


def open_resolver_sockets() -> ResolverSockets:
    """Bind both sockets in the current namespace, whose loopback is up."""
    with contextlib.ExitStack() as undo:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        undo.callback(udp.close)
        udp.bind((limits.DNS_ADDRESS, 0))
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        undo.callback(tcp.close)
        tcp.bind((limits.DNS_ADDRESS, 0))
        tcp.listen(limits.DNS_MAX_TCP_PER_TASK)
        undo.pop_all()
        return ResolverSockets(udp, tcp)


@dataclass(slots=True)
class FreshNamespace:
    """A namespace with loopback, resolver sockets and redirect, and no links yet."""

    fd: int
    link: NetlinkSocket
    sockets: ResolverSockets

    def close(self) -> None:
        """Release the namespace and the sockets."""
        self.release()
        self.sockets.close()

    def release(self) -> None:
        """Release what only the attach needed."""
        self.link.close()
        os.close(self.fd)


def make_namespace(namespaces: netns.Namespaces) -> FreshNamespace:
    """A new namespace, ready for its links."""
    with contextlib.ExitStack() as undo, namespaces.inside_new() as fd:
        link = NetlinkSocket(NETLINK_ROUTE)
        undo.callback(link.close)
        link.execute([rt.set_link_up(_LOOPBACK_INDEX, "lo")])
        if netns.read_sysctl("ipv6/conf/default/disable_ipv6") == "0":
            # Links of tasks are IPv4 only; ::1 on the loopback stays.
            netns.write_sysctl("ipv6/conf/default/disable_ipv6", "1")
        sockets = open_resolver_sockets()
        undo.callback(sockets.close)
        nftables = Nftables()
        try:
            install(nftables, task_ruleset(*sockets.ports()))
        finally:
            nftables.close()
        undo.pop_all()
        return FreshNamespace(fd, link, sockets)


class NamespacePool:
    """Namespaces made in idle moments. They hang on nothing but our fds, so they vanish with this process."""

    def __init__(self, namespaces: netns.Namespaces, size: int) -> None:
        self._namespaces = namespaces
        self._size = size
        self._ready: deque[FreshNamespace] = deque()

    def take(self) -> FreshNamespace:
        """One from the pool, or a new one."""
        return self._ready.popleft() if self._ready else make_namespace(self._namespaces)

    def refill_one(self) -> bool:
        """Add one if some are missing; returns whether more are."""
        if len(self._ready) < self._size:
            self._ready.append(make_namespace(self._namespaces))
        return len(self._ready) < self._size

    def close(self) -> None:
        """Give all back."""
        while self._ready:
            self._ready.popleft().close()


@dataclass(frozen=True, slots=True)
class InterfacePlan:
    """One interface of a task."""

    position: int
    address: bytes
    subnet: Subnet
    is_default: bool

    @property
    def name(self) -> str:
        """The usual names, beginning with eth0."""
        return f"eth{self.position}"

    @property
    def index(self) -> int:
        """The number of the link inside the task."""
        return _FIRST_INDEX + self.position


def configure_requests(plan: Sequence[InterfacePlan]) -> list[Request]:
    """What a task's namespace needs once its links are there: addresses, next hop, routes.

    With several networks, answers leave by the interface whose address they carry: a routing rule per further
    interface, after a look at the main table's specific routes.
    """
    requests: list[Request] = []
    gateway = limits.GATEWAY_ADDRESS
    for each in plan:
        requests.append(rt.set_link_up(each.index, each.name))
        requests.append(rt.add_address(each.index, each.address, 32))
        requests.append(rt.replace_neighbour(rt.Neighbour(each.index, gateway, limits.GATEWAY_MAC)))
    requests += [rt.replace_route(route) for route in wanted_routes(plan)]
    if len(plan) > 1:
        requests.append(rt.add_rule(_RULE_MAIN, rt.RT_TABLE_MAIN, only_specific=True))
        for each in plan:
            if not each.is_default:
                priority, table = _FIRST_RULE + each.position, _FIRST_TABLE + each.position
                requests.append(rt.add_rule(priority, table, each.address))
    return requests


def wanted_routes(plan: Sequence[InterfacePlan]) -> list[rt.Route]:
    """The routes of a task's namespace."""
    routes = []
    gateway, everywhere = limits.GATEWAY_ADDRESS, b"\0\0\0\0"
    for each in plan:
        if each.is_default:
            routes.append(rt.Route(everywhere, 0, each.index, gateway, each.address))
        else:
            routes.append(rt.Route(everywhere, 0, each.index, gateway, each.address, _FIRST_TABLE + each.position))
        if len(plan) > 1:
            network, length = each.subnet.network, each.subnet.prefix_length
            routes.append(rt.Route(network, length, each.index, gateway, each.address))
    return routes


def missing_inside(link: NetlinkSocket, plan: Sequence[InterfacePlan]) -> list[str]:
    """What a task's namespace lacks of ``configure_requests``, as sentences; links themselves apart."""
    addresses = {rt.read_address(body) for body in link.dump(rt.list_addresses())}
    routes = {rt.read_route(body) for body in link.dump(rt.list_routes())}
    neighbours = {rt.read_neighbour(body) for body in link.dump(rt.list_neighbours())}
    found = [f"{each.name} lacked its address" for each in plan if (each.index, each.address, 32) not in addresses]
    found += [f"route {route.describe()} was missing" for route in wanted_routes(plan) if route not in routes]
    found += [
        f"{each.name} lacked its next hop"
        for each in plan
        if rt.Neighbour(each.index, limits.GATEWAY_ADDRESS, limits.GATEWAY_MAC) not in neighbours
    ]
    if len(plan) > 1:
        priorities = {rt.read_rule_priority(body) for body in link.dump(rt.list_rules())}
        wanted = {_RULE_MAIN} | {_FIRST_RULE + each.position for each in plan if not each.is_default}
        found += [f"routing rule {priority} was missing" for priority in sorted(wanted - priorities)]
    return found


def links_down_or_missing(link: NetlinkSocket, plan: Sequence[InterfacePlan]) -> list[InterfacePlan]:
    """The interfaces that are not there or not up."""
    up = {each.index for each in map(rt.read_link, link.dump(rt.list_links())) if each.is_up}
    return [each for each in plan if each.index not in up]


class EnteredTask:
    """A task's namespace entered again, for repair."""

    def __init__(self, namespaces: netns.Namespaces, fd: int) -> None:
        self.fd = fd
        with namespaces.inside(fd):
            self.link = NetlinkSocket(NETLINK_ROUTE)
            try:
                self.nftables = Nftables()
            except KernelError:
                self.link.close()
                raise

    def close(self) -> None:
        """Release the sockets and the fd."""
        self.link.close()
        self.nftables.close()
        os.close(self.fd)

    def repair_resolver(self, sockets: ResolverSockets) -> list[str]:
        """Restore the redirect to the resolver's sockets."""
        return repair_ruleset(self.nftables, task_ruleset(*sockets.ports()))
