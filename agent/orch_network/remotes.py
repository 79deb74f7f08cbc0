"""The tasks of a network that run on other nodes, and those nodes. Pure.

Each service tells of its own tasks. For a moment two may tell of one address, when it has passed from an ended task to
a new one; the one that told last is believed, and what the other takes back takes nothing away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from orch_network.ipv4 import parse_address
from orch_network.protocol import Service


@dataclass(frozen=True, slots=True)
class Difference:
    """What a change means for the kernel: routes as address to node, and nodes that came or went."""

    routes_set: dict[bytes, bytes]
    routes_gone: dict[bytes, bytes]
    nodes_new: frozenset[bytes]
    nodes_gone: frozenset[bytes]


class Remotes:
    """Which node each remote address is behind."""

    def __init__(self) -> None:
        self.routes: dict[bytes, bytes] = {}
        self._told: dict[str, tuple[dict[bytes, bytes], frozenset[bytes]]] = {}
        self._claims: dict[bytes, dict[str, bytes]] = {}
        self._node_users: Counter[bytes] = Counter()

    @property
    def nodes(self) -> Collection[bytes]:
        """The nodes to which there is a way: those of remote tasks, and those that clients come through."""
        return self._node_users.keys()

    def change(self, changed: Mapping[str, Service | None]) -> Difference:
        """Take in services by id, None for one that is gone."""
        nodes_before = set(self._node_users)
        touched: set[bytes] = set()
        for service_id, service in changed.items():
            routes = {
                parse_address(each.address, "remote"): parse_address(each.node, "node")
                for each in (service.remotes if service is not None else ())
            }
            peers = frozenset(parse_address(each, "peer") for each in (service.peers if service is not None else ()))
            old_routes, old_peers = self._told.pop(service_id, ({}, frozenset()))
            if routes or peers:
                self._told[service_id] = (routes, peers)
            touched |= self._claim(service_id, old_routes, routes)
            self._node_users.update(peers)
            self._node_users.subtract(old_peers)
        before = {address: self.routes[address] for address in touched if address in self.routes}
        after = {address: next(reversed(self._claims[address].values())) for address in touched & self._claims.keys()}
        self._node_users.update(after.values())
        self._node_users.subtract(before.values())
        self._node_users = +self._node_users
        for address in before.keys() - after.keys():
            del self.routes[address]
        self.routes.update(after)
        nodes_after = self._node_users.keys()
        return Difference(
            routes_set={address: node for address, node in after.items() if before.get(address) != node},
            routes_gone={address: node for address, node in before.items() if address not in after},
            nodes_new=frozenset(nodes_after - nodes_before),
            nodes_gone=frozenset(nodes_before - nodes_after),
        )

    def _claim(self, service_id: str, old: Mapping[bytes, bytes], new: Mapping[bytes, bytes]) -> set[bytes]:
        """Replace a service's claims; returns the addresses concerned."""
        touched = {address for address in old.keys() | new.keys() if old.get(address) != new.get(address)}
        for address in touched:
            claims = self._claims.setdefault(address, {})
            claims.pop(service_id, None)
            if address in new:
                claims[service_id] = new[address]
            if not claims:
                del self._claims[address]
        return touched
