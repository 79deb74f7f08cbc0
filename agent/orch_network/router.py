"""The router of one network on this node: its namespace, its uplink, the links of its tasks, its balancing maps.

Of a network that spans nodes it has a VXLAN device as well, with a route per remote task and, per remote node, one
neighbour, one forwarding entry and one route for answers to the clients that come through that node.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orch_network import limits
from orch_network.balancing import Balancing, Changes
from orch_network.digest import short_digest
from orch_network.errors import KernelError
from orch_network.ipv4 import Subnet, format_address, mac_of, parse_address, parse_subnet
from orch_network.kernel import conntrack, netns, vxlan
from orch_network.kernel import rtnetlink as rt
from orch_network.kernel.netlink import NETLINK_ROUTE, NetlinkSocket, Request
from orch_network.kernel.nftables import Batch, Nftables
from orch_network.kernel.nftexpr import PROTOCOL_UDP
from orch_network.overlay import MESH_TABLE, Overlay
from orch_network.protocol import Network, PublishedPort, Service
from orch_network.rules import (
    ANSWER_MARK,
    MESH_ANSWER_MARK,
    ROUTER_BACKENDS,
    ROUTER_PUBLISHED,
    Ruleset,
    router_ruleset,
)
from orch_network.tables import change_elements, install, repair_elements, repair_ruleset

_FIRST_TASK_INDEX = 1000
_ANSWER_RULE, _ANSWER_TABLE = 100, 100
"""The routing rule for answers to outside clients, and its table, which knows the uplink alone."""
_MESH_RULE = 101
"""The routing rule for answers to clients that came through another node."""
_FADING_S = 10.0
"""How long the kernel may take to remove the links of a namespace that was let go."""


def task_link_name(task_id: str) -> str:
    """The router's end of a task's link; 14 of at most 15 characters."""
    return limits.TASK_LINK_PREFIX + short_digest(task_id.encode(), 6)


@dataclass(slots=True)
class TaskLink:
    """A task's place in this network."""

    task_id: str
    address: bytes
    index: int


@dataclass(frozen=True, slots=True)
class Uplink:
    """The link-local pair between the node and a router, number ``index`` of the pool."""

    index: int

    @property
    def node_address(self) -> bytes:
        """The node's end."""
        return self._address(1)

    @property
    def router_address(self) -> bytes:
        """The router's end: where the node sends what is published."""
        return self._address(2)

    def _address(self, host: int) -> bytes:
        base = int.from_bytes(limits.UPLINK_POOL, "big")
        return (base + 4 * self.index + host).to_bytes(4, "big")


class Router:
    """One network's router. Made by ``open``; every method but that talks only to its own namespace."""

    def __init__(self, network: Network, uplink: Uplink, path: str, link_name: str) -> None:
        self.network = network
        self.uplink = uplink
        self.path = path
        self.link_name = link_name
        self.subnet: Subnet = parse_subnet(network.subnet, "subnet")
        self.gateway = parse_address(network.gateway, "gateway")
        self.tasks: dict[str, TaskLink] = {}
        self.task_of_address: dict[bytes, str] = {}
        self.balancing = Balancing()
        self.overlay = Overlay(network)
        self._fading: dict[str, float] = {}
        self._up: dict[str, int] = {}
        self._next_index = _FIRST_TASK_INDEX
        self._link: NetlinkSocket
        self._nftables: Nftables
        self.fd = -1

    # ---- namespace -------------------------------------------------------------------------------------------------
    def ruleset(self) -> Ruleset:
        """The constant rules of this router."""
        wanted = self.overlay.wanted
        return router_ruleset(
            self.subnet,
            self.gateway,
            self.uplink.router_address,
            internal=self.network.internal,
            underlay=wanted.local if wanted is not None else b"",
        )

    def open(self, namespaces: netns.Namespaces) -> bool:
        """Enter into possession of the namespace; makes it if there is none. Returns whether it was made."""
        made = not namespaces.is_namespace(self.path)
        if made:
            self._make(namespaces)
        else:
            self.fd = netns.open_namespace(self.path)
            with namespaces.inside(self.fd):
                self._open_sockets()
            self._learn()
        return made

    def _make(self, namespaces: netns.Namespaces) -> None:
        with namespaces.inside_new() as fd:
            self._write_sysctls()
            self._open_sockets()
        self.fd = fd
        install(self._nftables, self.ruleset())
        netns.keep(fd, self.path)

    def _open_sockets(self) -> None:
        self._link = NetlinkSocket(NETLINK_ROUTE)
        self._nftables = Nftables()

    @staticmethod
    def _wanted_sysctls() -> dict[str, str]:
        return {
            "ipv4/ip_forward": "1",
            # Strict on task links (a task cannot speak with another's address), off on the uplink.
            "ipv4/conf/all/rp_filter": "0",
            "ipv4/conf/default/rp_filter": "1",
            # The next hop of all tasks is one link-local address: redirects would be wrong.
            "ipv4/conf/all/send_redirects": "0",
            "ipv4/conf/default/send_redirects": "0",
            "ipv6/conf/default/disable_ipv6": "1",
            "ipv6/conf/all/disable_ipv6": "1",
        }

    def _write_sysctls(self) -> list[str]:
        changed = []
        for name, value in self._wanted_sysctls().items():
            present = netns.read_sysctl(name)
            if present not in (value, ""):
                netns.write_sysctl(name, value)
                changed.append(name)
        return changed

    def _learn(self) -> None:
        """Take the owners of slots and the free link numbers from the kernel: a restart moves no flow."""
        links = self._links()
        self._up = {name: link.index for name, link in links.items()}
        highest = max(self._up.values(), default=0)
        self._next_index = max(_FIRST_TASK_INDEX, highest + 1)
        for set_name in (ROUTER_BACKENDS.name, ROUTER_PUBLISHED.name):
            self.balancing.learn(self._nftables.elements(limits.TABLE, set_name))

    def restore(self, services: Iterable[Service], ports: Mapping[tuple[str, int], PublishedPort]) -> None:
        """After a restart: want these again, with the slots as the kernel has them. ``repair`` does the rest."""
        services = list(services)
        self.overlay.remotes.change({service.id: service for service in services})
        self.balancing.restore(services, ports)

    def close(self) -> None:
        """Let go of fds; the namespace stays as long as it is mounted."""
        self._link.close()
        self._nftables.close()
        os.close(self.fd)

    def _links(self) -> dict[str, rt.Link]:
        links = map(rt.read_link, self._link.dump(rt.list_links()))
        return {link.name: link for link in links}

    # ---- tasks -----------------------------------------------------------------------------------------------------
    def attach(self, task_id: str, address: bytes, far_name: str, far_index: int, netns_fd: int) -> None:
        """Link a task's namespace: pair of links, route and neighbour in one batch."""
        name = task_link_name(task_id)
        link = TaskLink(task_id, address, self._next_index)
        self._next_index += 1
        try:
            self._link.execute(self._attach_requests(link, name, far_name, far_index, netns_fd))
        except KernelError as failure:
            if failure.number != errno.EEXIST:
                self._link.execute([rt.delete_link(name)])
                raise
            # The link of an earlier namespace of this task, which the kernel is still taking down.
            self._link.execute([rt.delete_link(name)])
            self._link.execute(self._attach_requests(link, name, far_name, far_index, netns_fd))
        self._fading.pop(name, None)
        self.tasks[task_id] = link
        self._up[name] = link.index
        self.task_of_address[address] = task_id

    def _attach_requests(
        self, link: TaskLink, name: str, far_name: str, far_index: int, netns_fd: int
    ) -> list[Request]:
        near = rt.LinkEnd(name, limits.GATEWAY_MAC, link.index)
        far = rt.LinkEnd(far_name, mac_of(link.address), far_index, netns_fd)
        return [rt.create_veth(near, far, self.network.mtu), *self._task_entries(link)]

    @staticmethod
    def _task_entries(link: TaskLink) -> list[Request]:
        return [
            rt.replace_route(rt.Route(link.address, 32, link.index)),
            rt.replace_neighbour(rt.Neighbour(link.index, link.address, mac_of(link.address))),
        ]

    def adopt(self, task_id: str, address: bytes) -> bool:
        """After a restart: take over a task's link; False if the kernel has none."""
        index = self._up.get(task_link_name(task_id))
        if index is None:
            return False
        self.tasks[task_id] = TaskLink(task_id, address, index)
        self.task_of_address[address] = task_id
        return True

    def detach(self, task_id: str) -> None:
        """Make the task's address unreachable at once; its link goes with its namespace, in the kernel's own time."""
        link = self.tasks.pop(task_id, None)
        if link is None:
            return
        self.task_of_address.pop(link.address, None)
        self._up.pop(task_link_name(task_id), None)
        self._fading[task_link_name(task_id)] = time.monotonic() + _FADING_S
        self._link.execute(
            [
                rt.delete_route(rt.Route(link.address, 32, link.index)),
                rt.delete_neighbour(rt.Neighbour(link.index, link.address, b"")),
            ]
        )
        self._link.execute(self.overlay.reopen_way(link.address))

    # ---- other nodes -----------------------------------------------------------------------------------------------
    def move_overlay(self, network: Network) -> None:
        """Want another way of being carried between nodes; ``lacks_overlay`` and ``repair`` do the rest."""
        self.network = network
        self.overlay.move(network)
        if self.overlay.wanted is None:
            self.leave_overlay()

    def lacks_overlay(self) -> bool:
        """Whether the VXLAN device is missing, or one of other settings."""
        if self.overlay.wanted is None:
            return False
        bodies = {rt.read_link(body).name: body for body in self._link.dump(rt.list_links())}
        body = bodies.get(limits.OVERLAY_LINK)
        return body is None or vxlan.read(body) != self.overlay.wanted

    def leave_overlay(self) -> None:
        """Remove the VXLAN device now: its identifier is taken in the whole node as long as it is there."""
        self.overlay.index = 0
        self._link.execute([rt.delete_link(limits.OVERLAY_LINK)])

    # ---- balancing -------------------------------------------------------------------------------------------------
    @property
    def services(self) -> dict[str, Service]:
        """The services of this network by id."""
        return self.balancing.services

    @property
    def ports(self) -> dict[tuple[str, int], PublishedPort]:
        """The ports that lead into this network, by (protocol, published)."""
        return self.balancing.ports

    def put_service(self, service: Service) -> None:
        """Add or replace one service."""
        self.put_services([service], [])

    def put_services(self, changed: Iterable[Service], removed: Iterable[str]) -> None:
        """Replace services and remove others in one atomic batch."""
        changed, removed = list(changed), list(removed)
        services: dict[str, Service | None] = dict.fromkeys(removed)
        services.update((service.id, service) for service in changed)
        difference = self.overlay.remotes.change(services)
        # A way there before traffic, and no traffic before the way is gone.
        self._link.execute(self.overlay.open_ways(difference, self.task_of_address))
        self._change(self.balancing.put_services(changed, removed))
        self._link.execute(self.overlay.close_ways(difference))

    def set_ports(self, ports: Mapping[tuple[str, int], PublishedPort]) -> None:
        """Replace the ports that lead into this network, by (protocol, published)."""
        self._change(self.balancing.set_ports(ports))

    def put_port(self, port: PublishedPort) -> None:
        """Add or replace one port."""
        self._change(self.balancing.put_port(port))

    def remove_port(self, key: tuple[str, int]) -> None:
        """Remove one port; one that is gone is fine."""
        changes = self.balancing.remove_port(key)
        if changes:
            self._change(changes)

    def _change(self, changes: Changes) -> None:
        batch = Batch(f"balance network {self.network.name}")
        for set_name, (before, after) in changes.items():
            change_elements(batch, set_name, before, after)
        try:
            self._nftables.commit(batch)
        except KernelError:
            # Somebody changed the table by hand, so the difference does not apply: compare with what is there.
            repair_ruleset(self._nftables, self.ruleset())
            repair_elements(self._nftables, self.balancing.wanted_elements())

    def forget_stale_flows(self) -> int:
        """Drop tracked UDP flows of removed backends, which would go on to them for ever. Returns how many."""
        stale = self.balancing.take_stale()
        return conntrack.forget_flows(self._nftables.netlink, PROTOCOL_UDP, stale) if stale else 0

    def overfull(self) -> list[str]:
        """The virtual addresses with more backends than slots."""
        return self.balancing.overfull()

    # ---- reconciliation --------------------------------------------------------------------------------------------
    def repair(self, namespaces: netns.Namespaces) -> list[tuple[str, str]]:
        """Make the namespace what it should be, tasks' links apart; returns (kind, what was wrong)."""
        found: list[tuple[str, str]] = []
        if not namespaces.is_namespace(self.path):
            netns.release(self.path)
            netns.keep(self.fd, self.path)
            found.append(("router-mount", f"{self.path} was not mounted"))
        with namespaces.inside(self.fd):
            found += [("router-sysctl", f"{name} differed") for name in self._write_sysctls()]
        found += [("router-table", text) for text in repair_ruleset(self._nftables, self.ruleset())]
        found += [
            ("router-elements", text) for text in repair_elements(self._nftables, self.balancing.wanted_elements())
        ]
        links = self._links()
        self._up = {name: link.index for name, link in links.items() if link.is_up}
        overlay = links.get(limits.OVERLAY_LINK)
        self.overlay.index = overlay.index if overlay is not None and self.overlay.wanted is not None else 0
        found += self._repair_stale_links(links)
        found += self._repair_addresses(links)
        found += self._repair_routes(links)
        found += self._repair_rule()
        found += self._repair_neighbours(links)
        found += self.overlay.repair_forwarding(self._link)
        return found

    def has_link(self, task_id: str) -> bool:
        """Whether the kernel had the task's link, up, when ``repair`` last looked (a look per task would cost much)."""
        return task_id in self.tasks and self._up.get(task_link_name(task_id)) == self.tasks[task_id].index

    def _repair_stale_links(self, links: dict[str, rt.Link]) -> list[tuple[str, str]]:
        now = time.monotonic()
        self._fading = {name: until for name, until in self._fading.items() if until > now}
        wanted = {task_link_name(task_id) for task_id in self.tasks}
        stale = [
            name
            for name in links
            if name.startswith(limits.TASK_LINK_PREFIX) and name not in wanted and name not in self._fading
        ]
        self._link.execute([rt.delete_link(name) for name in stale])
        return [("stale-link", f"link {name} belongs to no task") for name in stale]

    def _repair_addresses(self, links: dict[str, rt.Link]) -> list[tuple[str, str]]:
        found, requests = [], []
        present = {rt.read_address(body) for body in self._link.dump(rt.list_addresses())}
        wanted = [("lo", self.gateway, 32), (limits.ROUTER_UPLINK, self.uplink.router_address, 30)]
        for name in ("lo", limits.ROUTER_UPLINK, limits.OVERLAY_LINK):
            link = links.get(name)
            if link is not None and not link.is_up:
                requests.append(rt.set_link_up(link.index, name))
                found.append(("router-link", f"{name} was down"))
        for name, address, prefix_length in wanted:
            link = links.get(name)
            if link is None:
                continue
            if (link.index, address, prefix_length) not in present:
                requests.append(rt.add_address(link.index, address, prefix_length))
                found.append(("router-address", f"{name} lacked {format_address(address)}/{prefix_length}"))
        self._link.execute(requests)
        return found

    def _repair_routes(self, links: dict[str, rt.Link]) -> list[tuple[str, str]]:
        wanted = {_route_key(route): route for route in self._wanted_routes(links)}
        read = (rt.read_route(body) for body in self._link.dump(rt.list_routes()))
        present = {_route_key(route): route for route in read if route is not None}
        missing = [route for key, route in wanted.items() if present.get(key) != route]
        stale = [route for key, route in present.items() if key not in wanted]
        self._link.execute([rt.delete_route(route) for route in stale])
        self._link.execute([rt.replace_route(route) for route in missing])
        return [("router-route", f"route {route.describe()} was missing or differed") for route in missing] + [
            ("stale-route", f"route {route.describe()} leads nowhere") for route in stale
        ]

    def _wanted_routes(self, links: dict[str, rt.Link]) -> list[rt.Route]:
        routes = [rt.Route(self.subnet.network, self.subnet.prefix_length, kind=rt.RTN_UNREACHABLE)]
        uplink = links.get(limits.ROUTER_UPLINK)
        if uplink is not None:
            outward = rt.Route(b"\0\0\0\0", 0, uplink.index, self.uplink.node_address)
            routes += [outward, replace(outward, table=_ANSWER_TABLE)]
        routes += self.overlay.wanted_routes(self.task_of_address)
        indexes = {link.index for link in links.values()}
        routes += [rt.Route(link.address, 32, link.index) for link in self.tasks.values() if link.index in indexes]
        return routes

    def _repair_rule(self) -> list[tuple[str, str]]:
        priorities = {rt.read_rule_priority(body) for body in self._link.dump(rt.list_rules())}
        wanted = [(_ANSWER_RULE, _ANSWER_TABLE, ANSWER_MARK)]
        if self.overlay.wanted is not None:
            wanted.append((_MESH_RULE, MESH_TABLE, MESH_ANSWER_MARK))
        missing = [rule for rule in wanted if rule[0] not in priorities]
        self._link.execute([rt.add_rule(priority, table, mark=mark) for priority, table, mark in missing])
        return [("router-rule", f"routing rule {priority} was missing") for priority, _, _ in missing]

    def _repair_neighbours(self, links: dict[str, rt.Link]) -> list[tuple[str, str]]:
        indexes = {link.index for link in links.values()}
        wanted = {
            rt.Neighbour(link.index, link.address, mac_of(link.address))
            for link in self.tasks.values()
            if link.index in indexes
        }
        wanted |= self.overlay.wanted_neighbours()
        read = (rt.read_neighbour(body) for body in self._link.dump(rt.list_neighbours()))
        present = {neighbour for neighbour in read if neighbour is not None}
        own = {link.index for name, link in links.items() if name.startswith(limits.TASK_LINK_PREFIX)}
        own |= {self.overlay.index} - {0}
        wanted_places = {(neighbour.link, neighbour.address) for neighbour in wanted}
        stale = [
            neighbour
            for neighbour in present
            if neighbour.link in own and (neighbour.link, neighbour.address) not in wanted_places
        ]
        missing = wanted - present
        self._link.execute([rt.delete_neighbour(neighbour) for neighbour in stale])
        self._link.execute([rt.replace_neighbour(neighbour) for neighbour in missing])
        return [
            ("router-neighbour", f"neighbour {format_address(neighbour.address)} was missing or differed")
            for neighbour in missing
        ] + [("stale-neighbour", f"neighbour {format_address(neighbour.address)} leads nowhere") for neighbour in stale]


def _route_key(route: rt.Route) -> tuple[bytes, int, int]:
    return route.destination, route.prefix_length, route.table
