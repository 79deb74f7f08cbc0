"""Rows of task lists: names, states, errors, in docker's words."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final

from orch_cli.output.listing import Listing, cut, natural_key, short_id
from orch_cli.output.units import format_ago, format_duration
from orch_proto.objects_pb2 import Node, NodeState, Task
from orch_proto.types_pb2 import PUBLISH_MODE_HOST, PortConfig, PortProtocol, TaskState

TASKS: Final = Listing(
    columns=(
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
    ),
    quiet="ID",
)
ERROR_LENGTH: Final = 60  # docker cuts at 30, which hides most reasons
TASK_FILTERS: Final = ("id", "name", "node", "desired-state", "service", "label")


def state_word(state: TaskState.ValueType) -> str:
    """``running`` for TASK_STATE_RUNNING; for a number we do not know, the number."""
    try:
        return TaskState.Name(state).removeprefix("TASK_STATE_").lower()
    except ValueError:
        return str(state)


def task_name(task: Task) -> str:
    """``shop_web.1``; tasks of global services carry their node's id instead of a slot."""
    return f"{task.service_name}.{task.slot or task.node_id}"


def is_out_of_sight(task: Task, node: Node | None) -> bool:
    """Whether a task that has not ended is on a node that is not heard of: nobody can tell how it is."""
    return (
        node is not None
        and node.status.state == NodeState.NODE_STATE_DOWN
        and task.status.state <= TaskState.TASK_STATE_RUNNING
    )


def current_state(task: Task, node: Node | None, now_ms: int) -> str:
    """``Running 2 minutes ago``; of a task out of sight, since when it is that."""
    if node is not None and is_out_of_sight(task, node):
        return f"Disconnected {format_ago(node.status.since_unix_ms, now_ms)}".rstrip()
    paused = task.status.state == TaskState.TASK_STATE_RUNNING and task.status.message == "paused"
    word = f"{state_word(task.status.state).capitalize()}{' (paused)' if paused else ''}"
    return f"{word} {format_ago(task.status.timestamp_unix_ms, now_ms)}".rstrip()


def task_reason(task: Task, node: Node | None = None, now_ms: int = 0) -> str:
    """Why a task is not well: its error, or why it waits; empty when there is nothing to say."""
    status = task.status
    if node is not None and is_out_of_sight(task, node):
        seen = f"node down, last seen {state_word(status.state)}"
        left_ms = node.status.since_unix_ms + task.spec.disconnect_grace_ms - now_ms
        if task.desired_state > TaskState.TASK_STATE_RUNNING or left_ms <= 0:
            return seen
        return f"{seen}; waiting up to {format_duration(left_ms / 1000)}".lower()
    if status.error:
        return status.error
    if status.state == TaskState.TASK_STATE_RUNNING:
        # After the state itself stands what was asked for and the node could not do.
        return status.message if status.message.startswith("out of memory") else status.message.partition("; ")[2]
    if status.state == TaskState.TASK_STATE_PENDING and status.message and status.message != "pending":
        return status.message
    return ""


def protocol_word(protocol: PortProtocol.ValueType) -> str:
    """``tcp`` for PORT_PROTOCOL_TCP."""
    return PortProtocol.Name(protocol).removeprefix("PORT_PROTOCOL_").lower().replace("unspecified", "tcp")


def task_rows(
    tasks: Iterable[Task],
    nodes: Mapping[str, Node],
    *,
    no_trunc: bool = False,
    resolve: bool = True,
    now_ms: int | None = None,
) -> list[dict[str, str]]:
    """Rows by service and slot; earlier tasks of a slot stand below its newest one."""
    now_ms = now_ms if now_ms is not None else time.time_ns() // 1_000_000
    ordered = sorted(
        tasks,
        key=lambda task: (
            natural_key(task.service_name),
            task.slot,
            task.node_id if not task.slot else "",
            -task.meta.created_at_unix_ms,
        ),
    )
    rows = []
    previous = ""
    for task in ordered:
        name = task_name(task)
        node = nodes.get(task.node_id)
        node_name = node.description.hostname if node is not None and resolve else ""
        error = task_reason(task, node, now_ms)
        shown = error if no_trunc else cut(error, ERROR_LENGTH)
        rows.append(
            {
                "ID": short_id(task.id, full=no_trunc),
                "Name": f" \\_ {name}" if name == previous else name,
                "Image": task.spec.container.image,
                "Node": node_name or short_id(task.node_id, full=no_trunc or resolve),
                "DesiredState": state_word(task.desired_state).capitalize(),
                "CurrentState": current_state(task, node, now_ms),
                "Error": f'"{shown}"' if shown else "",
                "Ports": ", ".join(
                    f"{port.host_ip or '*'}:{port.published_port}->{port.target_port}/{protocol_word(port.protocol)}"
                    for port in task.status.ports
                    if port.mode == PUBLISH_MODE_HOST
                ),
            }
        )
        previous = name
    return rows


def format_ports(ports: Iterable[PortConfig]) -> str:
    """Published ports as ``*:8080->80/tcp``; neighbours are joined: ``*:80-81->80-81/tcp``."""
    groups: list[list[int | str]] = []
    for port in sorted(ports, key=lambda item: (item.host_ip, item.protocol, item.target_port, item.published_port)):
        if port.mode == PUBLISH_MODE_HOST:
            continue
        protocol, host = protocol_word(port.protocol), port.host_ip or "*"
        last = groups[-1] if groups else None
        if (
            last is not None
            and last[0] == host
            and last[1] == protocol
            and last[3] == port.published_port - 1
            and last[5] == port.target_port - 1
        ):
            last[3], last[5] = port.published_port, port.target_port
        else:
            groups.append(
                [host, protocol, port.published_port, port.published_port, port.target_port, port.target_port]
            )
    return ", ".join(
        f"{host}:{first if first == last else f'{first}-{last}'}->{low if low == high else f'{low}-{high}'}/{protocol}"
        for host, protocol, first, last, low, high in groups
    )
