"""What the nodes' networks must know of each service: names, virtual addresses, the tasks that may be given traffic."""

from __future__ import annotations

from orch_manager import tasks as states
from orch_manager.store.tables import Reader
from orch_proto.dispatcher_pb2 import ServiceEndpoints, ServiceOnNetwork, TaskEndpoint
from orch_proto.objects_pb2 import Network, Node, Service, Stack, Task
from orch_proto.types_pb2 import EndpointMode, PublishMode


def alias_in_stack(service: Service, stack: Stack | None) -> str:
    """The name that neighbours in the stack use: "web" of "shop_web"; empty outside a stack."""
    name = service.spec.annotations.name
    prefix = f"{stack.annotations.name}_" if stack is not None else ""
    return name.removeprefix(prefix) if prefix and name.startswith(prefix) else ""


def _gets_traffic(task: Task) -> bool:
    return task.status.state == states.RUNNING and task.desired_state <= states.RUNNING


def _is_on_network(task: Task) -> bool:
    return task.status.state >= states.ASSIGNED and not states.has_ended(task)


def describe(reader: Reader, service: Service) -> ServiceEndpoints:
    """A service as it is now."""
    spec = service.spec
    described = ServiceEndpoints(
        service_id=service.id,
        name=spec.annotations.name,
        mode=spec.endpoint.mode or EndpointMode.ENDPOINT_MODE_VIP,
        ports=service.endpoint.ports,
    )
    addresses = {vip.network_id: vip.address for vip in service.endpoint.virtual_ips}
    short = alias_in_stack(service, reader.get(Stack, service.stack_id))
    on: dict[str, ServiceOnNetwork] = {}
    for wish in spec.task.networks:
        network = reader.get(Network, wish.target)
        if network is None:
            continue
        if described.ports and not described.ingress_network_id and not network.spec.internal:
            described.ingress_network_id = network.id
        aliases = dict.fromkeys([short, *wish.aliases])
        aliases.pop("", None)
        aliases.pop(described.name, None)
        on[network.id] = described.networks.add(
            network_id=network.id, virtual_ip=addresses.get(network.id, ""), aliases=list(aliases)
        )
    if meshed_network(described):
        nodes = (node.description.data_path_address for node in reader.all(Node))
        described.mesh_addresses.extend(sorted({address for address in nodes if address}))
    for task in sorted(reader.find(Task, service_id=service.id), key=lambda each: (each.slot, each.id)):
        node = reader.get(Node, task.node_id)
        # What runs on a node that is not heard of may be there still, but traffic for it would be lost.
        if _is_on_network(task) and node is not None and states.node_is_up(node):
            _add_task(task, node.description.data_path_address, on)
    return described


def meshed_network(described: ServiceEndpoints) -> str:
    """The network that every node needs, as it answers on the service's published ports; empty when there is none."""
    is_meshed = any(port.mode != PublishMode.PUBLISH_MODE_HOST for port in described.ports)
    return described.ingress_network_id if is_meshed else ""


def _add_task(task: Task, data_path_address: str, on: dict[str, ServiceOnNetwork]) -> None:
    for attachment in task.networks:
        there = on.get(attachment.network_id)
        if there is not None and attachment.addresses:
            endpoint = TaskEndpoint(
                task_id=task.id,
                slot=task.slot,
                address=attachment.addresses[0].partition("/")[0],
                node_id=task.node_id,
                hostname=f"{task.service_name}.{task.slot}.{task.id}",
                data_path_address=data_path_address,
            )
            (there.endpoints if _gets_traffic(task) else there.silent).append(endpoint)


class EndpointBook:
    """Every service's description, worked out when asked for and kept until it changes; shared by all sessions."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._described: dict[str, ServiceEndpoints | None] = {}

    def get(self, service_id: str) -> ServiceEndpoints | None:
        """The service now; None when it is gone."""
        if service_id not in self._described:
            service = self._reader.get(Service, service_id)
            self._described[service_id] = describe(self._reader, service) if service is not None else None
        return self._described[service_id]

    def forget(self, service_id: str) -> None:
        """The service or one of its endpoints changed."""
        self._described.pop(service_id, None)

    def clear(self) -> None:
        """Anything may have changed."""
        self._described.clear()


def changes_endpoints(old: Task | None, new: Task | None) -> bool:
    """True when a change of a task changes its service's description."""
    return _part_in_network(old) != _part_in_network(new)


def _part_in_network(task: Task | None) -> tuple[bool, bool]:
    return (_is_on_network(task), _gets_traffic(task)) if task is not None else (False, False)
