"""What is said on the control socket: operations, values, encoding.

One JSON object per SOCK_SEQPACKET packet, at most 1 MiB::

    -> {"seq": 7, "op": "attach", "task": {…}}
    <- {"seq": 7, "ok": {…}}                                  or
    <- {"seq": 7, "error": {"kind": "conflict", "message": "…"}}

Answers come in the order of the requests of a connection. Every operation is idempotent: after a lost connection,
ask again. With ``"send_netns": true`` the answer to ``attach`` carries the namespace's fd (SCM_RIGHTS), for those who
do not share the mount namespace of the network process.
"""

from __future__ import annotations

import json
import marshal
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from orch_network import limits
from orch_network.errors import BY_KIND, InvalidRequest, NetworkFailure
from orch_network.fields import Fields
from orch_network.ipv4 import parse_address, parse_subnet

OP_NETWORK_SET = "network_set"
OP_NETWORK_REMOVE = "network_remove"
OP_ATTACH = "attach"
OP_DETACH = "detach"
OP_SERVICES_SET = "services_set"
OP_SERVICES_KEEP = "services_keep"
OP_SERVICE_PATCH = "service_patch"
OP_SERVICE_REMOVE = "service_remove"
OP_PORTS_SET = "ports_set"
OP_PORT_PATCH = "port_patch"
OP_PORT_REMOVE = "port_remove"
OP_STATUS = "status"
OP_STATS = "stats"
OP_RECONCILE = "reconcile"
OP_SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Network:
    """A network as wanted on this node. ``gateway`` is the router's own address; ``mtu`` in bytes.

    With ``vni`` it spans nodes: ``underlay`` is the address of this node that others send its traffic to, by UDP to
    ``vxlan_port``. With ``vni`` 0 it ends at this node.
    """

    id: str
    name: str
    subnet: str
    gateway: str
    internal: bool = False
    mtu: int = 1500
    vni: int = 0
    underlay: str = ""
    vxlan_port: int = limits.VXLAN_PORT


def read_network(value: object, where: str = "network") -> Network:
    """A validated Network."""
    fields = Fields(value, where)
    network = Network(
        id=fields.identifier("id"),
        name=fields.name("name"),
        subnet=fields.text("subnet"),
        gateway=fields.text("gateway"),
        internal=fields.boolean("internal", default=False),
        mtu=fields.integer("mtu", limits.MIN_MTU, limits.MAX_MTU, 1500),
        vni=fields.integer("vni", 0, limits.MAX_VNI, 0),
        underlay=fields.text("underlay", ""),
        vxlan_port=fields.integer("vxlan_port", 1, 65535, limits.VXLAN_PORT),
    )
    fields.done()
    subnet = parse_subnet(network.subnet, f"{where}: subnet")
    gateway = parse_address(network.gateway, f"{where}: gateway")
    if gateway not in subnet or gateway == subnet.network:
        raise InvalidRequest(f"{where}: gateway {network.gateway} is not a host address of {network.subnet}")
    if network.vni:
        parse_address(network.underlay, f"{where}: underlay")
    return network


@dataclass(frozen=True, slots=True)
class TaskAddress:
    """A task's address in one network."""

    network_id: str
    address: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task as wanted; its interfaces are eth0, eth1 … in the order of ``networks``.

    ``default_network`` is the network of its default route: one of ``networks``, or "" if it has none.
    """

    task_id: str
    networks: tuple[TaskAddress, ...] = ()
    default_network: str = ""


def _read_task_address(value: object, where: str) -> TaskAddress:
    fields = Fields(value, where)
    address = TaskAddress(network_id=fields.identifier("network_id"), address=fields.text("address"))
    fields.done()
    parse_address(address.address, f"{where}: address")
    return address


def read_task(value: object, where: str = "task") -> Task:
    """A validated Task; without ``default_network`` the first network is it."""
    fields = Fields(value, where)
    task_id = fields.identifier("task_id")
    networks = fields.objects("networks", limits.MAX_NETWORKS_PER_TASK, _read_task_address)
    default_network = fields.optional_identifier("default_network") or (networks[0].network_id if networks else "")
    fields.done()
    ids = [network.network_id for network in networks]
    if len(set(ids)) != len(ids):
        raise InvalidRequest(f"{where}: task {task_id} names a network twice; one address per network")
    if default_network and default_network not in ids:
        raise InvalidRequest(f"{where}: default_network {default_network} is not among the networks of task {task_id}")
    return Task(task_id, networks, default_network)


@dataclass(frozen=True, slots=True)
class Interface:
    """A link inside a task's namespace."""

    name: str
    address: str
    mac: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """Answer to ``attach``: the path of the namespace and what is in it."""

    netns: str
    interfaces: tuple[Interface, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running task of a service, on whatever node; ``aliases`` are names of this one (its hostname)."""

    task_id: str
    slot: int
    address: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Remote:
    """The address of a task on another node, and that node's address in the underlay."""

    address: str
    node: str


@dataclass(frozen=True, slots=True)
class Service:
    """A service in a network; ``vip`` "" means that its name stands for all addresses (dnsrr).

    ``endpoints`` may be given traffic. ``remotes`` are all of its tasks on other nodes, those that are starting or
    stopping as well; ``peers`` the nodes that clients of its published ports come through.
    """

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    vip: str = ""
    endpoints: tuple[Endpoint, ...] = ()
    remotes: tuple[Remote, ...] = ()
    peers: tuple[str, ...] = ()


# Each telling of a service names all of its endpoints, nearly all as before: those are not examined again. The keys are
# the endpoints as they came, in a form that keeps types apart.
_KNOWN_ENDPOINTS: dict[bytes, Endpoint] = {}


def _read_endpoint(value: object, where: str) -> Endpoint:
    try:
        key = marshal.dumps(value, 2)  # type: ignore[arg-type]  # what cannot be written raises
    except ValueError:
        return _examine_endpoint(value, where)
    known = _KNOWN_ENDPOINTS.get(key)
    if known is None:
        known = _examine_endpoint(value, where)
        if len(_KNOWN_ENDPOINTS) >= 2 * limits.MAX_ENDPOINTS:
            _KNOWN_ENDPOINTS.clear()
        _KNOWN_ENDPOINTS[key] = known
    return known


def _examine_endpoint(value: object, where: str) -> Endpoint:
    fields = Fields(value, where)
    endpoint = Endpoint(
        task_id=fields.identifier("task_id"),
        slot=fields.integer("slot", 0, 1 << 31, 0),
        address=fields.text("address"),
        aliases=fields.names("aliases", limits.MAX_ALIASES),
    )
    fields.done()
    parse_address(endpoint.address, f"{where}: address")
    return endpoint


def _read_remote(value: object, where: str) -> Remote:
    fields = Fields(value, where)
    remote = Remote(address=fields.text("address"), node=fields.text("node"))
    fields.done()
    parse_address(remote.address, f"{where}: address")
    parse_address(remote.node, f"{where}: node")
    return remote


def read_service(value: object, where: str = "service") -> Service:
    """A validated Service."""
    fields = Fields(value, where)
    service = Service(
        id=fields.identifier("id"),
        name=fields.name("name"),
        aliases=fields.names("aliases", limits.MAX_ALIASES),
        vip=fields.text("vip", ""),
        endpoints=fields.objects("endpoints", limits.MAX_ENDPOINTS, _read_endpoint),
        remotes=fields.objects("remotes", limits.MAX_ENDPOINTS, _read_remote),
        peers=fields.objects("peers", limits.MAX_PEERS, _read_endpoint_address),
    )
    fields.done()
    if service.vip:
        parse_address(service.vip, f"{where}: vip")
    return service


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the node that leads to a service; ``host_ip`` "" means every address of the node."""

    protocol: str
    published: int
    network_id: str
    service_id: str
    target: int
    host_ip: str = ""
    endpoints: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes a port one and the same: (host_ip, protocol, published)."""
        return (self.host_ip, self.protocol, self.published)


def read_port(value: object, where: str = "port") -> PublishedPort:
    """A validated PublishedPort."""
    fields = Fields(value, where)
    port = PublishedPort(
        protocol=fields.text("protocol"),
        published=fields.integer("published", 1, 65535),
        network_id=fields.identifier("network_id"),
        service_id=fields.identifier("service_id"),
        target=fields.integer("target", 1, 65535),
        host_ip=fields.text("host_ip", ""),
        endpoints=fields.objects("endpoints", limits.MAX_ENDPOINTS, _read_endpoint_address),
    )
    fields.done()
    if port.protocol not in ("tcp", "udp"):
        raise InvalidRequest(f"{where}: protocol {port.protocol!r} cannot be published; use tcp or udp")
    if port.host_ip:
        parse_address(port.host_ip, f"{where}: host_ip")
    return port


def _read_endpoint_address(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}: must be an IPv4 address")
    parse_address(value, where)
    return value


# ---- packets -------------------------------------------------------------------------------------------------------
def to_json(value: Any) -> Any:
    """A value of this module as plain objects and lists (dataclasses.asdict takes five times as long)."""
    if is_dataclass(value):
        return {name: to_json(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def encode(message: Mapping[str, object]) -> bytes:
    """One packet; InvalidRequest above the size limit."""
    data = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    if len(data) > limits.MAX_MESSAGE_BYTES:
        raise InvalidRequest(f"a message of {len(data)} bytes exceeds {limits.MAX_MESSAGE_BYTES}; use service_patch")
    return data


def decode(data: bytes) -> dict[str, Any]:
    """The object of one packet; InvalidRequest if it is none."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as failure:
        raise InvalidRequest(f"a packet is not JSON: {failure}") from failure
    if not isinstance(message, dict):
        raise InvalidRequest("a packet must hold one JSON object")
    return message


def request(seq: int, op: str, **arguments: object) -> bytes:
    """A request packet."""
    return encode({"seq": seq, "op": op, **arguments})


def read_answer(message: Mapping[str, Any]) -> Any:
    """The ``ok`` of an answer; raises the failure that it reports."""
    if "error" in message:
        error = message["error"]
        raise BY_KIND.get(error.get("kind", ""), NetworkFailure)(error.get("message", "unknown failure"))
    return message.get("ok")


def read_attachment(value: object) -> Attachment:
    """The answer to ``attach``."""

    def read_interface(item: object, where: str) -> Interface:
        fields = Fields(item, where)
        return Interface(fields.text("name"), fields.text("address"), fields.text("mac"))

    fields = Fields(value, "attachment")
    return Attachment(fields.text("netns"), fields.objects("interfaces", limits.MAX_NETWORKS_PER_TASK, read_interface))
