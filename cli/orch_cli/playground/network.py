"""The wires of a playground: a switch in a namespace of its own, a namespace and a cable per node, the way out."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final, TextIO

from orch_cli.playground import partition, tools
from orch_cli.playground.layout import Layout, NodePlace
from orch_rpc.errors import FailedPrecondition

_LINKS: Final = Path("/sys/class/net")
_ROUTES: Final = Path("/proc/net/route")
_FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")
#: Interfaces inside the switch.
BRIDGE: Final = "bridge"
_HOST_PORT: Final = "host"
#: Where br_netfilter is loaded, bridged packets pass the rules and the connection tracking of IP as well: not here.
_NO_FILTERS_OF_IP: Final = (
    "for f in /proc/sys/net/bridge/bridge-nf-call-*tables; do if [ -e $f ]; then echo 0 > $f; fi; done"
)
#: Which playgrounds need forwarding, and what the host had before the first of them.
_FORWARD_USERS: Final = Path("/run/orch-playground-forwarding.json")


def overlapping_route(table: str, subnet: IPv4Network, own_link: str) -> str | None:
    """What in a routing table (the text of /proc/net/route) a subnet collides with; None if nothing.

    The default route collides with nothing.
    """
    for line in table.splitlines()[1:]:
        link, destination, _, _, _, _, _, mask = line.split()[:8]
        length = int(mask, 16).bit_count()
        if length == 0 or link == own_link:
            continue
        # Numbers stand there in the byte order of the machine; every platform that orch runs on is little-endian.
        address = IPv4Address(int(destination, 16).to_bytes(4, "little"))
        network = IPv4Network((address, length))
        if network.overlaps(subnet):
            return f"{network} on {link}"
    return None


def check_free(layout: Layout) -> None:
    """Refuses when names or addresses of the playground are in use.

    Raises:
        FailedPrecondition: says what is in the way.
    """
    remedy = "remove it with: orch playground down --name " + layout.name
    if (_LINKS / layout.host_link).exists():
        raise FailedPrecondition(f"cannot make interface {layout.host_link}", "an earlier playground left one", remedy)
    for namespace in (layout.switch_path, *(node.namespace_path for node in layout.nodes)):
        if namespace.exists():
            raise FailedPrecondition(
                f"cannot make network namespace {namespace.name}", "an earlier playground left one", remedy
            )
    clash = overlapping_route(_ROUTES.read_text(encoding="ascii"), layout.subnet, layout.host_link)
    if clash is not None:
        raise FailedPrecondition(
            f"cannot use {layout.subnet} for playground {layout.name}",
            f"this host has a route to {clash}",
            "choose another range with --subnet",
        )


def make_switch(layout: Layout) -> None:
    """The bridge, the host's cable to it, and the nodes' way out.

    The bridge has a namespace of its own, so that no firewall of the host sees what nodes send to each other, and the
    rules that part them are out of everybody's way.
    """
    tools.run("ip", "netns", "add", layout.switch)
    commands = (
        f"link add {BRIDGE} type bridge mcast_snooping 0",
        f"link set {BRIDGE} up",
        f"link add {_HOST_PORT} type veth peer name {layout.host_link} netns {os.getpid()}",
        f"link set {_HOST_PORT} master {BRIDGE} up",
    )
    tools.run("ip", "-netns", layout.switch, "-batch", "-", stdin="\n".join(commands))
    tools.inside(layout.switch_path, "sh", "-c", _NO_FILTERS_OF_IP)
    tools.inside(layout.switch_path, "nft", "-f", "-", stdin=partition.RULES)
    tools.run("ip", "address", "add", f"{layout.gateway}/{layout.subnet.prefixlen}", "dev", layout.host_link)
    tools.run("ip", "link", "set", layout.host_link, "up")
    tools.run("nft", "-f", "-", stdin=_way_out(layout))
    _claim_forwarding(layout.name)


def make_node(layout: Layout, node: NodePlace) -> None:
    """A node's namespace and its cable to the switch."""
    tools.run("ip", "netns", "add", node.namespace)
    commands = (
        "link set lo up",
        f"link add eth0 address {node.hardware_address} type veth peer name {node.port} netns {layout.switch}",
        f"address add {node.address}/{layout.subnet.prefixlen} dev eth0",
        "link set eth0 up",
        f"route add default via {layout.gateway}",
    )
    tools.run("ip", "-netns", node.namespace, "-batch", "-", stdin="\n".join(commands))
    tools.run("ip", "-netns", layout.switch, "link", "set", node.port, "master", BRIDGE, "up")


def remove_node(node: NodePlace) -> None:
    """Removes a node's namespace, and with it its links. The node's processes must be gone."""
    if node.namespace_path.exists():
        # The kernel takes a namespace apart a moment later; the name of the port is free at once only this way.
        tools.attempt("ip", "-netns", node.namespace, "link", "delete", "eth0")
        tools.run("ip", "netns", "delete", node.namespace)


def _way_out(layout: Layout) -> str:
    return f"""\
add table ip {layout.table}
delete table ip {layout.table}
table ip {layout.table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {layout.subnet} ip daddr != {layout.subnet} masquerade
  }}
}}
"""


def remove(layout: Layout) -> None:
    """Removes whatever there is of it. The nodes' processes must be gone."""
    for node in layout.nodes:
        remove_node(node)
    if (_LINKS / layout.host_link).exists():
        tools.run("ip", "link", "delete", layout.host_link)
    if layout.switch_path.exists():
        tools.run("ip", "netns", "delete", layout.switch)
    # Adding first makes the removal succeed whether or not the table is there. Without nft there can be no table.
    if shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin") is not None:
        tools.run("nft", "-f", "-", stdin=f"add table ip {layout.table}\ndelete table ip {layout.table}\n")
    _release_forwarding(layout.name)


@contextmanager
def _forwarding_state() -> Iterator[TextIO]:
    while True:
        with _FORWARD_USERS.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _file_is_at(file, _FORWARD_USERS):
                file.seek(0)
                yield file
                return


def _file_is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is still the one at a path: the last holder of its lock may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read_state(file: TextIO) -> tuple[str, list[str]]:
    text = file.read()
    if not text:
        return _FORWARD.read_text(encoding="ascii").strip(), []
    content = json.loads(text)
    return str(content["before"]), [str(user) for user in content["users"]]


def _write_state(file: TextIO, before: str, users: list[str]) -> None:
    file.seek(0)
    file.truncate()
    if users:
        json.dump({"before": before, "users": users}, file)
    else:
        _FORWARD_USERS.unlink()


def _claim_forwarding(name: str) -> None:
    with _forwarding_state() as file:
        before, users = _read_state(file)
        _write_state(file, before, sorted({*users, name}))
        _FORWARD.write_text("1", encoding="ascii")


def _release_forwarding(name: str) -> None:
    if not _FORWARD_USERS.exists():
        return
    with _forwarding_state() as file:
        before, users = _read_state(file)
        was_there = name in users
        users = [user for user in users if user != name]
        _write_state(file, before, users)
        if was_there and not users:
            _FORWARD.write_text(before, encoding="ascii")
