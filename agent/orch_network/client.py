"""A blocking client of the network process, for tests and tools (the agent's own client is asynchronous)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from orch_network import limits, protocol
from orch_network.errors import ConnectionLost, NetworkFailure
from orch_network.kernel.buffers import enlarge_buffers
from orch_network.protocol import Attachment, Network, PublishedPort, Service, Task, to_json


class NetworkClient:
    """One connection. Every method raises the failure that the process reports, or ConnectionLost."""

    def __init__(self, path: str, timeout_s: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(timeout_s)
        self._seq = 0
        try:
            enlarge_buffers(self._socket, 2 * limits.MAX_MESSAGE_BYTES)
            self._socket.connect(path)
        except OSError as failure:
            self._socket.close()
            raise ConnectionLost(f"cannot reach the network process at {path}: {failure}; is it running?") from failure

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, op: str, **arguments: object) -> Any:
        """Any operation; returns its ``ok``."""
        value, fds = self._call(op, **arguments)
        for fd in fds:
            os.close(fd)
        return value

    def _call(self, op: str, **arguments: object) -> tuple[Any, list[int]]:
        self._seq += 1
        packet = protocol.request(self._seq, op, **arguments)
        try:
            self._socket.send(packet)
            data, fds, _flags, _address = socket.recv_fds(self._socket, limits.MAX_MESSAGE_BYTES, 1)
        except OSError as failure:
            raise ConnectionLost(
                f"{op}: the network process did not answer ({failure}); connect and repeat"
            ) from failure
        if not data:
            raise ConnectionLost(f"{op}: the network process closed the connection; connect and repeat")
        answer = protocol.decode(data)
        if answer.get("seq") != self._seq:
            raise NetworkFailure(f"{op}: an answer with number {answer.get('seq')}, expected {self._seq}")
        return protocol.read_answer(answer), fds

    def network_set(self, network: Network) -> None:
        """Want a network."""
        self.call(protocol.OP_NETWORK_SET, network=to_json(network))

    def network_remove(self, network_id: str) -> None:
        """Forget a network that no task and no port uses."""
        self.call(protocol.OP_NETWORK_REMOVE, id=network_id)

    def attach(self, task: Task) -> Attachment:
        """Attach a task."""
        return protocol.read_attachment(self.call(protocol.OP_ATTACH, task=to_json(task)))

    def attach_with_namespace(self, task: Task) -> tuple[Attachment, int]:
        """Attach a task and receive its namespace's fd, which the caller owns."""
        value, fds = self._call(protocol.OP_ATTACH, task=to_json(task), send_netns=True)
        return protocol.read_attachment(value), fds[0]

    def detach(self, task_id: str) -> None:
        """Detach a task."""
        self.call(protocol.OP_DETACH, task_id=task_id)

    def services_set(self, network_id: str, services: Iterable[Service]) -> None:
        """Replace all services of a network."""
        self.call(protocol.OP_SERVICES_SET, network_id=network_id, services=[to_json(each) for each in services])

    def service_patch(self, network_id: str, service: Service) -> None:
        """Add or replace one service."""
        self.call(protocol.OP_SERVICE_PATCH, network_id=network_id, service=to_json(service))

    def service_remove(self, network_id: str, service_id: str) -> None:
        """Forget one service."""
        self.call(protocol.OP_SERVICE_REMOVE, network_id=network_id, service_id=service_id)

    def ports_set(self, ports: Iterable[PublishedPort]) -> None:
        """Replace all published ports."""
        self.call(protocol.OP_PORTS_SET, ports=[to_json(each) for each in ports])

    def port_patch(self, port: PublishedPort) -> None:
        """Add or replace one published port."""
        self.call(protocol.OP_PORT_PATCH, port=to_json(port))

    def port_remove(self, protocol_name: str, published: int, host_ip: str = "") -> None:
        """Close one published port."""
        self.call(protocol.OP_PORT_REMOVE, protocol=protocol_name, published=published, host_ip=host_ip)

    def status(self) -> dict[str, Any]:
        """Wanted against kernel, warnings, counters."""
        return dict(self.call(protocol.OP_STATUS))

    def stats(self) -> dict[str, Any]:
        """Counters."""
        return dict(self.call(protocol.OP_STATS))

    def reconcile(self) -> list[dict[str, str]]:
        """Compare and repair now; returns the repairs."""
        return list(self.call(protocol.OP_RECONCILE)["repairs"])

    def shutdown(self, *, remove: bool = False) -> None:
        """End the process; with ``remove``, take down all that it made."""
        self.call(protocol.OP_SHUTDOWN, remove=remove)
