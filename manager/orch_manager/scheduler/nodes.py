"""What the scheduler knows of each node: room left, tasks by service, ports taken, recent failures."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from orch_manager import tasks as states
from orch_proto import defaults
from orch_proto.objects_pb2 import Node, Task
from orch_proto.types_pb2 import PortConfig, PortProtocol, PublishMode

#: Address, protocol, port; the address "" stands for all.
HostPort = tuple[str, int, int]


def host_ports(ports: Iterable[PortConfig]) -> list[HostPort]:
    """The ports that a task takes on its own node."""
    return [
        (port.host_ip, port.protocol or PortProtocol.PORT_PROTOCOL_TCP, port.published_port)
        for port in ports
        if port.mode == PublishMode.PUBLISH_MODE_HOST and port.published_port
    ]


def ports_clash(one: HostPort, other: HostPort) -> bool:
    """True when two published ports cannot stand on one node."""
    return one[1:] == other[1:] and (one[0] == other[0] or one[0] in ("", "0.0.0.0") or other[0] in ("", "0.0.0.0"))  # noqa: S104 - compared, not bound


class NodeInfo:
    """One node and what is on it."""

    __slots__ = ("_failures", "_held", "by_service", "cpu_free", "memory_free_bytes", "node", "ports", "total")

    def __init__(self, node: Node) -> None:
        self.node = node
        self._held: dict[str, tuple[Task, bool]] = {}
        #: Wanted tasks of each service: what spread looks at.
        self.by_service: Counter[str] = Counter()
        self.total = 0
        self.ports: Counter[HostPort] = Counter()
        self.cpu_free = 0
        self.memory_free_bytes = 0
        self._failures: dict[tuple[str, int], deque[int]] = {}
        self.set_node(node)

    def set_node(self, node: Node) -> None:
        """Takes a new version of the node; its capacity may have changed."""
        self.node = node
        self.cpu_free = node.description.resources.nano_cpus
        self.memory_free_bytes = node.description.resources.memory_bytes
        for task, _ in self._held.values():
            self.cpu_free -= task.spec.resources.reservations.nano_cpus
            self.memory_free_bytes -= task.spec.resources.reservations.memory_bytes

    def put(self, task: Task) -> None:
        """Counts a task of this node, in its newest version."""
        self.drop(task.id)
        if states.has_ended(task):
            return
        wanted = states.is_wanted(task)
        self._held[task.id] = (task, wanted)
        self.cpu_free -= task.spec.resources.reservations.nano_cpus
        self.memory_free_bytes -= task.spec.resources.reservations.memory_bytes
        if wanted:
            self.by_service[task.service_id] += 1
            self.total += 1
        for port in host_ports(task.endpoint.ports):
            self.ports[port] += 1

    def drop(self, task_id: str) -> None:
        """Forgets a task; nothing when it was not here."""
        held = self._held.pop(task_id, None)
        if held is None:
            return
        task, wanted = held
        self.cpu_free += task.spec.resources.reservations.nano_cpus
        self.memory_free_bytes += task.spec.resources.reservations.memory_bytes
        if wanted:
            self.by_service[task.service_id] -= 1
            if not self.by_service[task.service_id]:
                del self.by_service[task.service_id]
            self.total -= 1
        for port in host_ports(task.endpoint.ports):
            self.ports[port] -= 1
            if not self.ports[port]:
                del self.ports[port]

    def note_failure(self, service_id: str, spec_version: int, at_ms: int) -> None:
        """Remembers that a task of this service version failed here."""
        times = self._failures.setdefault((service_id, spec_version), deque(maxlen=defaults.FAULTY_NODE_FAILURES))
        times.append(at_ms)

    def is_faulty(self, service_id: str, spec_version: int, now_ms: int) -> bool:
        """True when this service version failed here too often lately: the node is then the last choice."""
        times = self._failures.get((service_id, spec_version))
        if times is None:
            return False
        if times[-1] < now_ms - defaults.FAULTY_NODE_WINDOW_MS:
            del self._failures[(service_id, spec_version)]
            return False
        return len(times) == defaults.FAULTY_NODE_FAILURES and times[0] >= now_ms - defaults.FAULTY_NODE_WINDOW_MS

    @property
    def task_ids(self) -> Iterable[str]:
        """Ids of the tasks that take room here."""
        return self._held.keys()


class NodeSet:
    """All nodes. Fed with every version of nodes and tasks, in order; feeding the same twice changes nothing."""

    def __init__(self) -> None:
        self.infos: dict[str, NodeInfo] = {}
        self._where: dict[str, str] = {}
        self._failed: set[str] = set()

    def put_node(self, node: Node) -> None:
        """A node was made or changed."""
        info = self.infos.get(node.id)
        if info is None:
            self.infos[node.id] = NodeInfo(node)
        else:
            info.set_node(node)

    def drop_node(self, node_id: str) -> None:
        """A node is gone."""
        info = self.infos.pop(node_id, None)
        for task_id in list(info.task_ids) if info else ():
            self._where.pop(task_id, None)

    def put_task(self, task: Task, now_ms: int) -> None:
        """A task was made or changed."""
        before = self._where.get(task.id)
        if before is not None and before != task.node_id and before in self.infos:
            self.infos[before].drop(task.id)
        info = self.infos.get(task.node_id)
        if info is None:
            self._where.pop(task.id, None)
            return
        self._where[task.id] = task.node_id
        info.put(task)
        if states.failed(task) and task.id not in self._failed:
            self._failed.add(task.id)
            at_ms = task.status.timestamp_unix_ms or now_ms
            info.note_failure(task.service_id, task.spec_version, min(at_ms, now_ms))

    def drop_task(self, task_id: str) -> None:
        """A task is gone from the store."""
        node_id = self._where.pop(task_id, None)
        self._failed.discard(task_id)
        if node_id is not None and node_id in self.infos:
            self.infos[node_id].drop(task_id)
