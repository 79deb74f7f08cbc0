"""Rows of service lists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from orch_cli.output.listing import Listing, natural_key, short_id
from orch_cli.output.tasks import format_ports
from orch_proto.objects_pb2 import Service, Task
from orch_proto.types_pb2 import TaskState

SERVICES: Final = Listing(
    columns=(
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
    ),
    quiet="ID",
)
SERVICE_FILTERS: Final = ("id", "name", "label", "mode", "stack")


def mode_word(service: Service) -> str:
    """``replicated``, ``global``, ``replicated job`` or ``global job``."""
    return (service.spec.mode.WhichOneof("mode") or "replicated").replace("_", " ")


def replicas_text(service: Service, tasks: Iterable[Task]) -> str:
    """``2/3``, with ``(max 1 per node)`` where there is such a limit."""
    running = sum(
        task.status.state == TaskState.TASK_STATE_RUNNING and task.desired_state <= TaskState.TASK_STATE_RUNNING
        for task in tasks
    )
    limit = service.spec.task.placement.max_replicas_per_node
    suffix = f" (max {limit} per node)" if limit else ""
    return f"{running}/{service.spec.mode.replicated.replicas}{suffix}"


def service_rows(services: Iterable[Service], tasks: Iterable[Task], *, no_trunc: bool = False) -> list[dict[str, str]]:
    """Rows by name."""
    by_service: dict[str, list[Task]] = {}
    for task in tasks:
        by_service.setdefault(task.service_id, []).append(task)
    return [
        {
            "ID": short_id(service.id, full=no_trunc),
            "Name": service.spec.annotations.name,
            "Mode": mode_word(service),
            "Replicas": replicas_text(service, by_service.get(service.id, ())),
            "Image": service.spec.task.container.image.partition("@")[0],
            "Ports": format_ports(service.endpoint.ports or service.spec.endpoint.ports),
        }
        for service in sorted(services, key=lambda item: natural_key(item.spec.annotations.name))
    ]
