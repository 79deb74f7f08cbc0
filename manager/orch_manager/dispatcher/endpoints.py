"""What the nodes' networks must know of each service: names, virtual addresses, the tasks that may be given traffic."""

from __future__ import annotations

from orch_manager import tasks as states
from orch_manager.store.tables import Reader
from orch_proto.dispatcher_pb2 import ServiceEndpoints, ServiceOnNetwork, TaskEndpoint
from orch_proto.objects_pb2 import Network, Node, Service, Stack, Task
from orch_proto.types_pb2 import EndpointMode


def alias_in_stack(service: Service, stack: Stack | None) -> str:
    """The name that neighbours in the stack use: "web" of "shop_web"; empty outside a stack."""
    name = service.spec.annotations.name
    prefix = f"{stack.annotations.name}_" if stack is not None else ""
    return name.removeprefix(prefix) if prefix and name.startswith(prefix) else ""


def _gets_traffic(task: Task) -> bool:
    return task.status.state == states.RUNNING and task.desired_state <= states.RUNNING


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
    for task in sorted(reader.find(Task, service_id=service.id), key=lambda each: (each.slot, each.id)):
        # What runs on a node that is not heard of may be there still, but traffic for it would be lost.
        if _gets_traffic(task) and states.node_is_up(reader.get(Node, task.node_id)):
            _add_task(task, on)
    return described


def _add_task(task: Task, on: dict[str, ServiceOnNetwork]) -> None:
    for attachment in task.networks:
        there = on.get(attachment.network_id)
        if there is not None and attachment.addresses:
            there.endpoints.append(
                TaskEndpoint(
                    task_id=task.id,
                    slot=task.slot,
                    address=attachment.addresses[0].partition("/")[0],
                    node_id=task.node_id,
                    hostname=f"{task.service_name}.{task.slot}.{task.id}",
                )
            )


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
    before = old is not None and _gets_traffic(old)
    after = new is not None and _gets_traffic(new)
    return before != after
