"""How a service is reached: its networks, published ports and endpoint."""

from __future__ import annotations

import ipaddress
from typing import Final

from orch_cli.compose.nodes import ListNode, MapNode, ScalarNode
from orch_cli.compose.project import DEFAULT_NETWORK, Project
from orch_cli.compose.report import nearest
from orch_cli.compose.short_forms import PROTOCOLS, Port, check_address, pair_ports, parse_port_range, parse_ports
from orch_cli.compose.view import View, variable_hint
from orch_proto.types_pb2 import (
    ENDPOINT_MODE_DNSRR,
    ENDPOINT_MODE_VIP,
    PORT_PROTOCOL_SCTP,
    PORT_PROTOCOL_TCP,
    PORT_PROTOCOL_UDP,
    PUBLISH_MODE_HOST,
    PUBLISH_MODE_INGRESS,
    EndpointSpec,
    NetworkAttachmentConfig,
    PortConfig,
    PublishMode,
)

_PROTOCOL: Final = {"tcp": PORT_PROTOCOL_TCP, "udp": PORT_PROTOCOL_UDP, "sctp": PORT_PROTOCOL_SCTP}
_MODE: Final = {"ingress": PUBLISH_MODE_INGRESS, "host": PUBLISH_MODE_HOST}


def read_attachments(service: View, key: str, project: Project, aliases: list[str]) -> list[NetworkAttachmentConfig]:
    """The networks of a service; without any it is on the stack's default network. ``aliases`` go on each."""
    mode = service.text("network_mode")
    if mode is not None:
        if service.has("networks"):
            service.error("network_mode", "does not go together with networks", "", "remove one of them")
        elif mode == "host":
            if service.has("ports"):
                why = "the task listens on the node's own addresses"
                service.error("ports", "does not go together with network_mode: host", why, "remove one of them")
            return []
        elif mode not in ("bridge", "default"):
            service.error(
                "network_mode",
                f"{mode!r} is not supported yet",
                "a task has a network namespace of its own",
                "remove it, and use networks",
            )
    common = list(dict.fromkeys([key, *aliases]))
    result = []
    for name, view in service.named("networks"):
        item = project.networks.get(name)
        if item is None:
            hint = nearest(name, project.networks) or "add it to the top-level `networks:`"
            view.error("", f"the network {name!r} is not defined", "it is not in the top-level `networks:`", hint)
            continue
        project.used_networks.add(name)
        result.append(
            NetworkAttachmentConfig(
                target=item.name,
                aliases=list(dict.fromkeys([*common, *view.words("aliases")])),
                ipv4_address=_fixed_address(view, service, project, name),
                interface_name=view.text("interface_name") or "",
                priority=view.integer("priority", -(2**31), 2**31 - 1) or 0,
            )
        )
    if not service.has("networks") or (
        isinstance(service.get("networks"), ListNode | MapNode) and not list(service.named("networks"))
    ):
        project.used_networks.add(DEFAULT_NETWORK)
        result.append(NetworkAttachmentConfig(target=project.networks[DEFAULT_NETWORK].name, aliases=common))
    return sorted(result, key=lambda attachment: (-attachment.priority, attachment.target))


def _fixed_address(view: View, service: View, project: Project, network: str) -> str:
    text = view.text("ipv4_address")
    if text is None:
        return ""
    try:
        address = str(ipaddress.IPv4Address(text))
    except ValueError as error:
        view.error("ipv4_address", f"{text!r} is no IPv4 address", str(error))
        return ""
    replicas = service.view("deploy").integer("replicas")
    if replicas not in (None, 1):
        view.error(
            "ipv4_address",
            "a fixed address needs one replica",
            f"the service has {replicas}",
            "remove it, names resolve",
        )
    item = project.networks[network]
    if not item.external and not item.has_subnet:
        view.error(
            "ipv4_address",
            "a fixed address needs a subnet",
            f"the network {network} has none of its own",
            f"add ipam.config with a subnet to networks.{network}",
        )
    return address


def read_endpoint(service: View, deploy: View, project: Project) -> EndpointSpec:
    """Published ports and the endpoint's mode."""
    mode = deploy.choice("endpoint_mode", ("vip", "dnsrr", "VIP", "DNSRR"))
    spec = EndpointSpec(mode=ENDPOINT_MODE_DNSRR if (mode or "").lower() == "dnsrr" else ENDPOINT_MODE_VIP)
    seen: dict[tuple[int, int, int, str], str] = {}
    for node, path in service.items("ports"):
        if isinstance(node, MapNode):
            ports = _long(View(node, path, project.report))
        elif isinstance(node, ScalarNode):
            ports = _short(node, path, project)
        else:
            ports = []
        for port in ports:
            key = (port.published_port, port.protocol, port.mode, port.host_ip)
            if port.published_port and key in seen:
                project.report.error(
                    node.mark,
                    path,
                    f"the port {port.published_port} is published twice",
                    f"{seen[key]} has it too",
                    "remove one",
                )
                continue
            seen[key] = path
            if port.mode == PUBLISH_MODE_INGRESS and spec.mode == ENDPOINT_MODE_DNSRR:
                project.report.error(
                    node.mark,
                    path,
                    "a service with endpoint_mode dnsrr cannot publish in ingress mode",
                    "it has no virtual address",
                    "use mode: host, or endpoint_mode: vip",
                )
            spec.ports.append(port)
    return spec


def _short(node: ScalarNode, path: str, project: Project) -> list[PortConfig]:
    if isinstance(node.value, bool | float):
        project.report.error(node.mark, path, f"{node.text} is no port", "a port is a whole number or text", "quote it")
        return []
    try:
        ports = parse_ports(node.text if isinstance(node.value, str) else str(node.value))
    except ValueError as error:
        project.report.error(
            node.mark,
            path,
            f"{node.text!r} is no port",
            str(error),
            variable_hint(node) or "write published:target, such as 8080:80",
        )
        return []
    return [_config(port, PUBLISH_MODE_INGRESS) for port in ports]


def _config(port: Port, mode: PublishMode.ValueType, name: str = "", app_protocol: str = "") -> PortConfig:
    return PortConfig(
        name=name,
        protocol=_PROTOCOL[port.protocol],
        target_port=port.target,
        published_port=port.published,
        mode=mode,
        host_ip=port.host_ip,
        app_protocol=app_protocol,
    )


def _long(view: View) -> list[PortConfig]:
    target = view.integer("target", 1, 65535)
    if target is None:
        if not view.has("target"):
            view.error("target", "target is missing", "a port needs the container's port", "add target:")
        return []
    protocol = view.choice("protocol", (*PROTOCOLS, *(word.upper() for word in PROTOCOLS))) or "tcp"
    mode = _MODE[view.choice("mode", tuple(_MODE)) or "ingress"]
    published = view.scalar("published")
    host_ip = view.text("host_ip") or ""
    try:
        host_ip = check_address(host_ip) if host_ip else ""
    except ValueError as error:
        view.error("host_ip", str(error))
    text = "" if published is None else published.text.strip()
    try:
        if text not in ("", "0"):
            parse_port_range(text)
        ports = pair_ports((target, target), text, protocol.lower(), host_ip)
    except ValueError as error:
        view.error("published", f"{text!r} cannot be published", str(error))
        return []
    return [_config(port, mode, view.text("name") or "", view.text("app_protocol") or "") for port in ports]
