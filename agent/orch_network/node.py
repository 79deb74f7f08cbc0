"""The node's side: uplinks to the routers, published ports, masquerade, the operator's chain, other firewalls."""

# pathlib is not loaded in this small process
# ruff: noqa: PTH123

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping

from orch_network import limits
from orch_network.digest import short_digest
from orch_network.errors import KernelError, LimitExceeded
from orch_network.ipv4 import mac_of, parse_address
from orch_network.kernel import netns, vxlan
from orch_network.kernel import rtnetlink as rt
from orch_network.kernel.netlink import NETLINK_ROUTE, NetlinkSocket
from orch_network.kernel.nftables import HOOK_FORWARD, Batch, Nftables
from orch_network.protocol import PublishedPort
from orch_network.router import Router, Uplink
from orch_network.rules import NODE_PUBLISHED, NODE_PUBLISHED_AT, Ruleset, node_ruleset, port_words
from orch_network.tables import change_elements, repair_elements, repair_ruleset

_FAMILY_NAMES = {1: "inet", 2: "ip"}
_POLICY_DROP = 0


def uplink_name(root: str, network_id: str) -> str:
    """The node's end of an uplink; 12 of at most 15 characters, different for another root or network."""
    return limits.UPLINK_PREFIX + short_digest(f"{root}\0{network_id}".encode(), 4)


def free_uplink(used: Collection[int]) -> Uplink:
    """The lowest free pair of link-local addresses."""
    for index in range(limits.MAX_NETWORKS):
        if index not in used:
            return Uplink(index)
    raise LimitExceeded(f"a node has at most {limits.MAX_NETWORKS} networks; remove one that is not used")


class NodeSide:
    """Links and table ``orch`` of the namespace in which the process was started."""

    def __init__(self) -> None:
        self._link = NetlinkSocket(NETLINK_ROUTE)
        self._nftables = Nftables()
        self._ruleset: Ruleset = node_ruleset()
        self._elements: dict[str, dict[bytes, bytes]] = {NODE_PUBLISHED.name: {}, NODE_PUBLISHED_AT.name: {}}

    def close(self) -> None:
        """Release the sockets."""
        self._link.close()
        self._nftables.close()

    # ---- uplinks ---------------------------------------------------------------------------------------------------
    def connect(self, router: Router) -> None:
        """Make the uplink of a router that has none; a half of an earlier one is replaced."""
        uplink = router.uplink
        near = rt.LinkEnd(router.link_name, mac_of(uplink.node_address))
        far = rt.LinkEnd(limits.ROUTER_UPLINK, mac_of(uplink.router_address), netns_fd=router.fd)
        create = rt.create_veth(near, far, router.network.mtu)
        try:
            self._link.execute([create])
        except KernelError as failure:
            if failure.number != errno.EEXIST:
                raise
            self._link.execute([rt.delete_link(router.link_name), create])
        self._configure(router, self._index(router.link_name))

    def carry(self, router: Router) -> None:
        """Make the VXLAN device of a router, in place of one of other settings; its UDP socket is the node's."""
        wanted = router.overlay.wanted
        if wanted is None:
            return
        router.leave_overlay()
        mac = mac_of(wanted.local)
        self._link.execute([vxlan.create(limits.OVERLAY_LINK, wanted, mac, router.network.mtu, router.fd)])

    def disconnect(self, link_name: str) -> None:
        """Remove an uplink; one that is gone is fine."""
        self._link.execute([rt.delete_link(link_name)])

    def _index(self, name: str) -> int:
        for body in self._link.dump(rt.list_links()):
            link = rt.read_link(body)
            if link.name == name:
                return link.index
        raise KernelError(f"find link {name}", errno.ENODEV)

    def _configure(self, router: Router, index: int) -> None:
        self._link.execute(
            [
                rt.set_link_up(index, router.link_name),
                rt.set_link_mtu(index, router.link_name, router.network.mtu),
                rt.add_address(index, router.uplink.node_address, 30),
            ]
        )
        for name, value in _uplink_sysctls(router.link_name).items():
            netns.write_sysctl(name, value)

    def repair_uplinks(self, routers: Iterable[Router]) -> list[tuple[str, str]]:
        """Make the uplinks of all routers what they should be; returns (kind, what was wrong)."""
        found: list[tuple[str, str]] = []
        if netns.read_sysctl("ipv4/ip_forward") != "1":
            netns.write_sysctl("ipv4/ip_forward", "1")
            found.append(("node-sysctl", "net.ipv4.ip_forward was off"))
        links = {link.name: link for link in map(rt.read_link, self._link.dump(rt.list_links()))}
        addresses = {rt.read_address(body) for body in self._link.dump(rt.list_addresses())}
        wanted = {router.link_name: router for router in routers}
        for name in links:
            if name.startswith(limits.UPLINK_PREFIX) and name not in wanted:
                self.disconnect(name)
                found.append(("stale-uplink", f"link {name} belongs to no network"))
        for name, router in wanted.items():
            link = links.get(name)
            if link is None:
                self.connect(router)
                found.append(("uplink", f"uplink {name} of network {router.network.name} was missing"))
                continue
            sysctls_differ = any(netns.read_sysctl(key) != value for key, value in _uplink_sysctls(name).items())
            has_address = (link.index, router.uplink.node_address, 30) in addresses
            if not (link.is_up and link.mtu == router.network.mtu and has_address) or sysctls_differ:
                self._configure(router, link.index)
                found.append(("uplink", f"uplink {name} of network {router.network.name} differed"))
        return found

    # ---- published ports -------------------------------------------------------------------------------------------
    def publish(self, ports: Iterable[PublishedPort], routers: Mapping[str, Router]) -> None:
        """Replace all published ports."""
        after: dict[str, dict[bytes, bytes]] = {NODE_PUBLISHED.name: {}, NODE_PUBLISHED_AT.name: {}}
        for port in ports:
            set_name, key = _port_element(port)
            after[set_name][key] = routers[port.network_id].uplink.router_address
        before, self._elements = self._elements, after
        self._change(before, after)

    def publish_one(self, port: PublishedPort, router: Router) -> None:
        """Add or replace one published port."""
        set_name, key = _port_element(port)
        elements = self._elements[set_name]
        before = {key: elements[key]} if key in elements else {}
        elements[key] = router.uplink.router_address
        self._change({set_name: before}, {set_name: {key: elements[key]}})

    def unpublish_one(self, port: PublishedPort) -> None:
        """Remove one published port."""
        set_name, key = _port_element(port)
        data = self._elements[set_name].pop(key, None)
        if data is not None:
            self._change({set_name: {key: data}}, {set_name: {}})

    def expect(self, ports: Iterable[PublishedPort], routers: Mapping[str, Router]) -> None:
        """After a restart: want these ports; ``repair_table`` does the rest."""
        for port in ports:
            set_name, key = _port_element(port)
            self._elements[set_name][key] = routers[port.network_id].uplink.router_address

    def _change(self, before: Mapping[str, dict[bytes, bytes]], after: Mapping[str, dict[bytes, bytes]]) -> None:
        batch = Batch("publish ports")
        for set_name, elements in after.items():
            change_elements(batch, set_name, before[set_name], elements)
        try:
            self._nftables.commit(batch)
        except KernelError:
            self.repair_table()

    def repair_table(self) -> list[tuple[str, str]]:
        """Make the node's table what it should be; returns (kind, what was wrong)."""
        found = [("node-table", text) for text in repair_ruleset(self._nftables, self._ruleset)]
        return found + [("node-elements", text) for text in repair_elements(self._nftables, self._elements)]

    def remove_table(self) -> None:
        """Remove table ``orch``, the operator's chain included."""
        if limits.TABLE in self._nftables.tables():
            batch = Batch("remove the node's table")
            batch.delete_table(limits.TABLE)
            self._nftables.commit(batch)

    def remove_uplinks(self) -> None:
        """Remove every uplink."""
        self.repair_uplinks(())

    # ---- other firewalls -------------------------------------------------------------------------------------------
    def forward_warnings(self) -> list[str]:
        """Sentences about firewalls that may drop what is forwarded: an accept in our table cannot override them."""
        warnings = [
            f"chain {chain.name} of table {_FAMILY_NAMES.get(family, '?')} {table} drops forwarded packets by policy: "
            f"published ports and outgoing traffic of tasks fail unless it accepts links {limits.UPLINK_PREFIX}*"
            for family, table, chain, policy in self._nftables.all_chains()
            if chain.hook == HOOK_FORWARD and policy == _POLICY_DROP and table != limits.TABLE
        ]
        try:
            with open("/proc/net/ip_tables_names", encoding="ascii") as file:
                has_legacy = "filter" in file.read().split()
        except OSError:
            has_legacy = False
        if has_legacy:
            warnings.append(
                "legacy iptables has a filter table on this node, which orch cannot read: if its FORWARD chain drops, "
                f"accept links {limits.UPLINK_PREFIX}+ there"
            )
        return warnings


def _uplink_sysctls(name: str) -> dict[str, str]:
    return {
        # The node's own 127.0.0.1:port is routed to the router; the input chain keeps tasks from the way back.
        f"ipv4/conf/{name}/route_localnet": "1",
        f"ipv4/conf/{name}/rp_filter": "0",
    }


def _port_element(port: PublishedPort) -> tuple[str, bytes]:
    words = port_words(port.protocol, port.published)
    if port.host_ip:
        return NODE_PUBLISHED_AT.name, parse_address(port.host_ip, "host_ip") + words
    return NODE_PUBLISHED.name, words
