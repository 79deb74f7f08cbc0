"""How a network's router reaches other nodes: its VXLAN device, and the kernel's entries for remote tasks and nodes.

One route per remote task. Per remote node one neighbour and one forwarding entry, whose MAC follows from the node's
address, and one route for answers to the clients that come through that node. Nothing is learnt.
"""

from __future__ import annotations

from collections.abc import Container

from orch_network.ipv4 import format_address, mac_of, parse_address
from orch_network.kernel import rtnetlink as rt
from orch_network.kernel import vxlan
from orch_network.kernel.netlink import NetlinkSocket, Request
from orch_network.protocol import Network
from orch_network.remotes import Difference, Remotes

MESH_TABLE = 101
"""The routing table that knows the other nodes, for answers alone: to a task a node's address is the node's own."""


class Overlay:
    """The part of a router that leads to other nodes. ``index`` is the VXLAN device's, 0 while there is none."""

    def __init__(self, network: Network) -> None:
        self.remotes = Remotes()
        self.index = 0
        self.move(network)

    def move(self, network: Network) -> None:
        """Be carried as the network says: ``wanted`` is the device, None for a network that ends at this node."""
        self.wanted: vxlan.Vxlan | None = None
        if network.vni:
            self.wanted = vxlan.Vxlan(network.vni, parse_address(network.underlay, "underlay"), network.vxlan_port)

    def _route(self, address: bytes, node: bytes) -> rt.Route:
        return rt.Route(address, 32, self.index, node)

    def _answer_route(self, node: bytes) -> rt.Route:
        return rt.Route(node, 32, self.index, table=MESH_TABLE)

    def _neighbour(self, node: bytes) -> rt.Neighbour:
        return rt.Neighbour(self.index, node, mac_of(node))

    def _forwarding(self, node: bytes) -> vxlan.Forwarding:
        return vxlan.Forwarding(self.index, mac_of(node), node)

    # ---- changes ---------------------------------------------------------------------------------------------------
    def open_ways(self, difference: Difference, local: Container[bytes]) -> list[Request]:
        """What makes new remote tasks reachable; an address that is ``local`` still stays with its link."""
        if not self.index:
            return []
        requests: list[Request] = []
        for node in difference.nodes_new:
            requests += [
                rt.replace_neighbour(self._neighbour(node)),
                vxlan.replace_forwarding(self._forwarding(node)),
                rt.replace_route(self._answer_route(node)),
            ]
        routes = difference.routes_set.items()
        return requests + [rt.replace_route(self._route(*route)) for route in routes if route[0] not in local]

    def close_ways(self, difference: Difference) -> list[Request]:
        """What makes tasks that have gone unreachable, and forgets nodes that are of no more use."""
        if not self.index:
            return []
        requests = [rt.delete_route(self._route(*route)) for route in difference.routes_gone.items()]
        for node in difference.nodes_gone:
            requests += [
                rt.delete_route(self._answer_route(node)),
                vxlan.delete_forwarding(self._forwarding(node)),
                rt.delete_neighbour(self._neighbour(node)),
            ]
        return requests

    def reopen_way(self, address: bytes) -> list[Request]:
        """For an address that is local no longer: it may have passed on to another node before."""
        node = self.remotes.routes.get(address)
        return [rt.replace_route(self._route(address, node))] if node is not None and self.index else []

    # ---- reconciliation --------------------------------------------------------------------------------------------
    def wanted_routes(self, local: Container[bytes]) -> list[rt.Route]:
        """All routes that lead over the device."""
        if not self.index:
            return []
        routes = [self._answer_route(node) for node in self.remotes.nodes]
        return routes + [self._route(*route) for route in self.remotes.routes.items() if route[0] not in local]

    def wanted_neighbours(self) -> set[rt.Neighbour]:
        """All neighbours on the device."""
        return {self._neighbour(node) for node in self.remotes.nodes} if self.index else set()

    def repair_forwarding(self, link: NetlinkSocket) -> list[tuple[str, str]]:
        """Make the device's forwarding entries what they should be; returns (kind, what was wrong)."""
        if not self.index:
            return []
        read = (vxlan.read_forwarding(body) for body in link.dump(vxlan.list_forwarding()))
        present = {entry for entry in read if entry is not None and entry.link == self.index}
        wanted = {self._forwarding(node) for node in self.remotes.nodes}
        link.execute([vxlan.delete_forwarding(entry) for entry in present - wanted])
        link.execute([vxlan.replace_forwarding(entry) for entry in wanted - present])
        missing = [("overlay-forwarding", f"no forwarding to {format_address(each.node)}") for each in wanted - present]
        return missing + [
            ("stale-forwarding", f"forwarding to {format_address(each.node)} leads nowhere")
            for each in present - wanted
        ]
