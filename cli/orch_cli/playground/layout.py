"""Where everything of a playground stands and what it is called: pure, so `down` finds by name what a crash left."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from orch_proto import defaults
from orch_rpc.errors import InvalidArgument, NotFound

DEFAULT_NAME: Final = "playground"
#: Private, and the far end of the last pool from which Docker cuts networks: seldom taken. A clash is refused.
DEFAULT_SUBNET: Final = IPv4Network("172.31.250.0/24")
#: Nodes are numbered from 1 and take the addresses after this one.
_FIRST_NODE_OFFSET: Final = 10
#: "/run/orch-NAME/node-100/manager.sock" and deeper sockets stay below the 108 bytes of a unix socket's path.
_NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9-]{0,19}")
_SMALLEST_PREFIX: Final = 26


@dataclass(frozen=True)
class NodePlace:
    """One node's names, paths and address."""

    number: int
    hostname: str
    address: IPv4Address
    namespace: str
    port: str
    state_dir: Path
    run_dir: Path
    cgroup_parent: str

    @property
    def hardware_address(self) -> str:
        """Of the node's interface: locally administered, and the same after a loss of power, as on a real host."""
        return "02:42:" + self.address.packed.hex(":")

    @property
    def daemon_file(self) -> Path:
        """Which process the node's daemon is: its pid and start time."""
        return self.run_dir.with_suffix(".daemon")

    @property
    def images(self) -> Path:
        """The node's image store, or the link to the one of all nodes."""
        return self.state_dir / "images"

    @property
    def log_file(self) -> Path:
        """What the daemon writes to standard error."""
        return self.state_dir / "orchd.log"

    @property
    def daemon_socket(self) -> Path:
        """Where the node daemon answers."""
        return self.run_dir / "orchd.sock"

    @property
    def manager_socket(self) -> Path:
        """Where the node's manager answers."""
        return self.run_dir / "manager.sock"

    @property
    def namespace_path(self) -> Path:
        """The handle by which the node's network namespace is entered."""
        return NAMESPACES / self.namespace

    @property
    def metrics_address(self) -> str:
        """Where Prometheus finds the node when metrics are shown outside it."""
        return f"{self.address}:{defaults.NODE_METRICS_PORT}"

    @property
    def manager_metrics_address(self) -> str:
        """Where Prometheus finds the manager when metrics are shown outside the node."""
        return f"{self.address}:{defaults.MANAGER_METRICS_PORT}"


NAMESPACES: Final = Path("/run/netns")


@dataclass(frozen=True)
class Layout:
    """All of one playground.

    Args:
        name: of the playground; part of every path, link and cgroup.
        subnet: of the nodes; its first address is the host's.
        node_count: how many nodes.
    """

    name: str
    subnet: IPv4Network
    node_count: int

    def __post_init__(self) -> None:
        if not _NAME_PATTERN.fullmatch(self.name):
            raise InvalidArgument(
                f"cannot use {self.name!r} as the name of a playground",
                "it becomes part of paths and interface names",
                "use at most 20 lower-case letters, digits and hyphens, a letter first",
            )
        if self.subnet.prefixlen > _SMALLEST_PREFIX:
            raise InvalidArgument(
                f"cannot use {self.subnet} for a playground",
                "it has too few addresses",
                f"use a /{_SMALLEST_PREFIX} or larger",
            )

    @property
    def run_root(self) -> Path:
        """Sockets and runtime state, on tmpfs."""
        return Path(f"/run/orch-{self.name}")

    @property
    def state_root(self) -> Path:
        """Images, logs, the cluster's state and the record."""
        return Path(f"/var/lib/orch-{self.name}")

    @property
    def record(self) -> Path:
        """Says that the playground exists and with which options; written first, removed last."""
        return self.state_root / "playground.json"

    @property
    def images(self) -> Path:
        """The image store that the nodes have between them, unless each has its own."""
        return self.state_root / "images"

    @property
    def scrape_file(self) -> Path:
        """Prometheus' configuration for this playground, written when metrics are shown."""
        return self.state_root / "prometheus.yml"

    @property
    def faults_file(self) -> Path:
        """What is broken on purpose: who cannot reach whom, and whose packets are late."""
        return self.run_root / "faults.json"

    @property
    def cgroup_root(self) -> str:
        """The cgroup above all nodes, relative to each hierarchy's root."""
        return f"/orch-{self.name}"

    @property
    def host_link(self) -> str:
        """The host's end of its own cable to the switch."""
        return f"orb-{self._tag}"

    @property
    def switch(self) -> str:
        """The network namespace of the bridge that joins the nodes."""
        return f"orch-{self.name}-switch"

    @property
    def switch_path(self) -> Path:
        """The handle by which the switch's namespace is entered."""
        return NAMESPACES / self.switch

    @property
    def table(self) -> str:
        """The nftables table with the nodes' way out."""
        return f"orch_playground_{self.name.replace('-', '_')}"

    @property
    def gateway(self) -> IPv4Address:
        """The host's address on the bridge."""
        return self.subnet[1]

    @property
    def _tag(self) -> str:
        # Interface names hold 15 characters, a playground's name may have 20.
        return hashlib.sha256(self.name.encode()).hexdigest()[:6]

    @property
    def nodes(self) -> tuple[NodePlace, ...]:
        """Every node, in order."""
        return tuple(self._node(number) for number in range(1, self.node_count + 1))

    def _node(self, number: int) -> NodePlace:
        hostname = f"node-{number}"
        return NodePlace(
            number=number,
            hostname=hostname,
            address=self.subnet[_FIRST_NODE_OFFSET + number],
            namespace=f"orch-{self.name}-{hostname}",
            port=hostname,
            state_dir=self.state_root / hostname,
            run_dir=self.run_root / hostname,
            cgroup_parent=f"{self.cgroup_root}/{hostname}",
        )

    def node(self, reference: str) -> NodePlace:
        """The node called ``node-1`` or ``1``.

        Raises:
            NotFound: there is no such node.
        """
        for place in self.nodes:
            if reference in {place.hostname, str(place.number)}:
                return place
        raise NotFound(
            f"cannot find node {reference} in playground {self.name}",
            f"it has {', '.join(place.hostname for place in self.nodes)}",
            "name one of those",
        )
