"""Published ports: one service a port, cluster-wide in ingress mode. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from orch_manager.scheduler.nodes import HostPort, ports_clash
from orch_proto import defaults
from orch_proto.types_pb2 import PortConfig, PortProtocol, PublishMode


def protocol_name(protocol: PortProtocol.ValueType) -> str:
    """A protocol as people write it: tcp."""
    return PortProtocol.Name(protocol).removeprefix("PORT_PROTOCOL_").lower() if protocol else "tcp"


def _key(port: PortConfig) -> HostPort:
    return port.host_ip, port.protocol or PortProtocol.PORT_PROTOCOL_TCP, port.published_port


class PortBook:
    """Which service has which port."""

    def __init__(self) -> None:
        self._held: dict[str, list[HostPort]] = {}
        self._by_number: dict[tuple[int, int], list[tuple[HostPort, str]]] = {}

    def owner_of(self, port: PortConfig, besides: str = "") -> str:
        """Id of the service that has a port which clashes with this one; empty when it is free."""
        key = _key(port)
        for taken, owner in self._by_number.get(key[1:], ()):
            if owner != besides and ports_clash(key, taken):
                return owner
        return ""

    def hold(self, service_id: str, ports: Sequence[PortConfig]) -> None:
        """Notes what the store says a service has, instead of what it had. Host-mode ports are the nodes' affair."""
        self.release(service_id)
        keys = [_key(port) for port in ports if port.mode != PublishMode.PUBLISH_MODE_HOST and port.published_port]
        self._held[service_id] = keys
        for key in keys:
            self._by_number.setdefault(key[1:], []).append((key, service_id))

    def release(self, service_id: str) -> None:
        """Takes back a service's ports."""
        for key in self._held.pop(service_id, ()):
            left = [entry for entry in self._by_number[key[1:]] if entry[1] != service_id]
            if left:
                self._by_number[key[1:]] = left
            else:
                del self._by_number[key[1:]]

    def allocate(
        self, service_id: str, wanted: Sequence[PortConfig], present: Sequence[PortConfig]
    ) -> tuple[list[PortConfig], str]:
        """The ports of a service with every published port filled in, and why one cannot be had (empty: all can).

        Args:
            service_id: whose.
            wanted: from its specification; published port 0 asks for a dynamic one.
            present: what it has now; dynamic ones are kept.
        """
        kept = {(port.target_port, port.protocol, port.mode): port.published_port for port in present}
        result: list[PortConfig] = []
        for spec in wanted:
            port = PortConfig()
            port.CopyFrom(spec)
            if not port.published_port:
                port.published_port = kept.get((port.target_port, port.protocol, port.mode), 0) or self._dynamic(
                    port, service_id, result
                )
                if not port.published_port:
                    return [], (
                        f"no port is left between {defaults.DYNAMIC_PORT_FIRST} and {defaults.DYNAMIC_PORT_LAST}: "
                        "name a published port"
                    )
            elif port.mode != PublishMode.PUBLISH_MODE_HOST and (owner := self.owner_of(port, service_id)):
                return [], f"port {port.published_port}/{protocol_name(port.protocol)} is published by service {owner}"
            result.append(port)
        self.hold(service_id, result)
        return result, ""

    def _dynamic(self, port: PortConfig, service_id: str, chosen: Sequence[PortConfig]) -> int:
        """A free dynamic port, 0 when none is left."""
        mine = {(other.protocol, other.published_port) for other in chosen}
        for number in range(defaults.DYNAMIC_PORT_FIRST, defaults.DYNAMIC_PORT_LAST + 1):
            candidate = PortConfig(protocol=port.protocol, published_port=number)
            if (port.protocol, number) not in mine and not self.owner_of(candidate, service_id):
                return number
        return 0
