"""The filters a node must pass, each refusing with a reason; in Swarm's order (SwarmKit: scheduler/filter.go)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from orch_manager import tasks as states
from orch_manager.scheduler.constraints import first_broken, normal_architecture
from orch_manager.scheduler.nodes import HostPort, NodeInfo, host_ports, ports_clash
from orch_proto import privileges
from orch_proto.objects_pb2 import Task


@dataclass(frozen=True, slots=True)
class Demand:
    """What the tasks of a group ask of a node, worked out once."""

    service_id: str
    spec_version: int
    nano_cpus: int
    memory_bytes: int
    constraints: tuple[str, ...]
    preferences: tuple[str, ...]
    platforms: tuple[tuple[str, str], ...]
    ports: tuple[HostPort, ...]
    max_replicas_per_node: int
    privileges: tuple[str, ...] = ()

    @staticmethod
    def of(task: Task) -> Demand:
        """The demand of a task; identical for all tasks of a service version."""
        placement, reserved = task.spec.placement, task.spec.resources.reservations
        return Demand(
            service_id=task.service_id,
            spec_version=task.spec_version,
            nano_cpus=reserved.nano_cpus,
            memory_bytes=reserved.memory_bytes,
            constraints=tuple(placement.constraints),
            preferences=tuple(preference.spread_descriptor for preference in placement.preferences),
            platforms=tuple(
                (platform.os, normal_architecture(platform.architecture)) for platform in placement.platforms
            ),
            ports=tuple(host_ports(task.endpoint.ports)),
            max_replicas_per_node=placement.max_replicas_per_node,
            privileges=privileges.wanted(task.spec.container),
        )


def _ready(_demand: Demand, info: NodeInfo) -> str:
    return states.node_takes_tasks(info.node)


def _resources(demand: Demand, info: NodeInfo) -> str:
    if demand.memory_bytes > info.memory_free_bytes:
        return "insufficient memory"
    if demand.nano_cpus > info.cpu_free:
        return "insufficient CPU"
    return ""


def _constraints(demand: Demand, info: NodeInfo) -> str:
    broken = first_broken(demand.constraints, info.node)
    return f"constraint {broken} not met" if broken else ""


def _platform(demand: Demand, info: NodeInfo) -> str:
    if not demand.platforms:
        return ""
    mine = info.node.description.platform
    architecture = normal_architecture(mine.architecture)
    for system, wanted in demand.platforms:
        if system in ("", mine.os.lower()) and wanted in ("", architecture):
            return ""
    return "unsupported platform"


def _policy(demand: Demand, info: NodeInfo) -> str:
    refused = privileges.first_refused(demand.privileges, info.node.description.policies) if demand.privileges else ""
    return f"{refused} not allowed" if refused else ""


def _host_ports(demand: Demand, info: NodeInfo) -> str:
    for port in demand.ports:
        if any(ports_clash(port, taken) for taken in info.ports):
            return f"host port {port[2]} in use"
    return ""


def _max_replicas(demand: Demand, info: NodeInfo) -> str:
    limit = demand.max_replicas_per_node
    if limit and info.by_service.get(demand.service_id, 0) >= limit:
        return "max replicas per node reached"
    return ""


Filter = Callable[[Demand, NodeInfo], str]
#: Name (a metric's label) and function, in the order in which they are asked.
FILTERS: Final[tuple[tuple[str, Filter], ...]] = (
    ("ready", _ready),
    ("resource", _resources),
    ("constraint", _constraints),
    ("platform", _platform),
    ("policy", _policy),
    ("host-port", _host_ports),
    ("max-replicas", _max_replicas),
)
#: Those whose answer changes when a task of the same group is placed on the node.
_CHANGED_BY_PLACING: Final = tuple(
    check for name, check in FILTERS if name in ("resource", "host-port", "max-replicas")
)


def refusal(demand: Demand, info: NodeInfo) -> tuple[str, str]:
    """The first filter that refuses the node, and why; two empty strings when it may take the task."""
    for name, check in FILTERS:
        reason = check(demand, info)
        if reason:
            return name, reason
    return "", ""


def refusal_after_placing(demand: Demand, info: NodeInfo) -> str:
    """Why a node that passed all filters before takes no further task of the group; empty when it does."""
    for check in _CHANGED_BY_PLACING:
        reason = check(demand, info)
        if reason:
            return reason
    return ""


def explain(reasons: Counter[str]) -> str:
    """The sentence that a task without a place carries: "no suitable node (insufficient memory on 1 node)"."""
    if not reasons:
        return "no suitable node (the cluster has no nodes)"
    parts = [f"{reason} on {count} node{'s' if count > 1 else ''}" for reason, count in sorted(reasons.items())]
    return f"no suitable node ({'; '.join(parts)})"
