"""The wires of a playground: a bridge in the host's namespace, a namespace and a veth pair per node, the way out."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final, TextIO

from orch_cli.playground import tools
from orch_cli.playground.layout import Layout, NodePlace
from orch_rpc.errors import FailedPrecondition

_LINKS: Final = Path("/sys/class/net")
_ROUTES: Final = Path("/proc/net/route")
_FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")
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
    if (_LINKS / layout.bridge).exists():
        raise FailedPrecondition(f"cannot make bridge {layout.bridge}", "an earlier playground left one", remedy)
    for node in layout.nodes:
        if node.namespace_path.exists():
            raise FailedPrecondition(
                f"cannot make network namespace {node.namespace}", "an earlier playground left one", remedy
            )
    clash = overlapping_route(_ROUTES.read_text(encoding="ascii"), layout.subnet, layout.bridge)
    if clash is not None:
        raise FailedPrecondition(
            f"cannot use {layout.subnet} for playground {layout.name}",
            f"this host has a route to {clash}",
            "choose another range with --subnet",
        )


def make(layout: Layout) -> None:
    """Makes the bridge, the nodes' namespaces and links, and the way out."""
    tools.run("ip", "link", "add", layout.bridge, "type", "bridge")
    tools.run("ip", "address", "add", f"{layout.gateway}/{layout.subnet.prefixlen}", "dev", layout.bridge)
    tools.run("ip", "link", "set", layout.bridge, "up")
    for node in layout.nodes:
        _make_node(layout, node)
    tools.run("nft", "-f", "-", stdin=_way_out(layout))
    _claim_forwarding(layout.name)


def _make_node(layout: Layout, node: NodePlace) -> None:
    inside = ("ip", "-netns", node.namespace)
    tools.run("ip", "netns", "add", node.namespace)
    tools.run(
        *("ip", "link", "add", node.host_link, "type", "veth"),
        *("peer", "name", "eth0", "netns", node.namespace),
    )
    tools.run("ip", "link", "set", node.host_link, "master", layout.bridge, "up")
    tools.run(*inside, "link", "set", "lo", "up")
    tools.run(*inside, "address", "add", f"{node.address}/{layout.subnet.prefixlen}", "dev", "eth0")
    tools.run(*inside, "link", "set", "eth0", "up")
    tools.run(*inside, "route", "add", "default", "via", str(layout.gateway))


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
        if (_LINKS / node.host_link).exists():
            tools.run("ip", "link", "delete", node.host_link)
        if node.namespace_path.exists():
            tools.run("ip", "netns", "delete", node.namespace)
    if (_LINKS / layout.bridge).exists():
        tools.run("ip", "link", "delete", layout.bridge)
    # Adding first makes the removal succeed whether or not the table is there. Without nft there can be no table.
    if shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin") is not None:
        tools.run("nft", "-f", "-", stdin=f"add table ip {layout.table}\ndelete table ip {layout.table}\n")
    _release_forwarding(layout.name)


@contextmanager
def _forwarding_state() -> Iterator[TextIO]:
    with _FORWARD_USERS.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file


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
        if name not in users:
            return
        users.remove(name)
        _write_state(file, before, users)
        if not users:
            _FORWARD.write_text(before, encoding="ascii")
