"""The table of `orch playground status`: what daemons, managers and the cluster say, and what is broken on purpose."""

from __future__ import annotations

import asyncio
from typing import Final

from orch_cli.playground import cluster, daemon, delays, faults, partition, record
from orch_cli.playground.layout import NodePlace
from orch_cli.playground.record import Record
from orch_proto import daemon_pb2, objects_pb2

COLUMNS: Final = ("NODE", "ADDRESS", "DAEMON", "CLUSTER", "MANAGER", "STATE", "NETWORK")
_NOTHING: Final = "-"


async def rows(found: Record) -> list[tuple[str, ...]]:
    """One row per node; nobody who is dead or stopped is waited for long."""
    nodes = found.layout.nodes
    answering, *infos = await asyncio.gather(
        cluster.manager_that_answers(found), *(daemon.info(node) for node in nodes)
    )
    assert answering is None or isinstance(answering, tuple)
    known = {one.id: one for one in answering[1]} if answering is not None else None
    broken = faults.load(found.layout)
    late = {node: str(delay) for node, delay in broken.delays.items()}
    if late and not delays.line_runs(found.layout):
        late = dict.fromkeys(late, "cut off, as its delay line died: heal it")
    return [
        _row(
            node,
            info if isinstance(info, daemon_pb2.NodeInfoResponse) else None,
            known,
            _network(node, broken.cuts, late),
        )
        for node, info in zip(nodes, infos, strict=True)
    ]


def _row(
    node: NodePlace,
    info: daemon_pb2.NodeInfoResponse | None,
    known: dict[str, objects_pb2.Node] | None,
    around: str,
) -> tuple[str, ...]:
    begin = (node.hostname, str(node.address), _daemon(node))
    if info is None:
        return (*begin, _NOTHING, _NOTHING, _NOTHING, around)
    membership = daemon_pb2.MembershipState.Name(info.state).removeprefix("MEMBERSHIP_STATE_").lower()
    return (*begin, membership, _manager(info, known), _state(info, known), around)


def _network(node: NodePlace, cuts: partition.Cuts, late: dict[str, str]) -> str:
    if not node.namespace_path.exists():
        return _NOTHING
    return (
        "; ".join(part for part in (partition.describe(cuts, node.hostname), late.get(node.hostname, "")) if part)
        or "ok"
    )


def _daemon(node: NodePlace) -> str:
    if not node.namespace_path.exists():
        return "off"
    identity = record.daemon_of(node)
    if identity is None or not identity.is_alive():
        return "not running"
    return f"stopped (pid {identity.pid})" if identity.is_stopped() else f"pid {identity.pid}"


def _manager(info: daemon_pb2.NodeInfoResponse, known: dict[str, objects_pb2.Node] | None) -> str:
    if not info.manager_running:
        return _NOTHING
    one = (known or {}).get(info.node_id)
    return "leader" if one is not None and one.manager.leader else "running"


def _state(info: daemon_pb2.NodeInfoResponse, known: dict[str, objects_pb2.Node] | None) -> str:
    if info.state == daemon_pb2.MEMBERSHIP_STATE_INACTIVE:
        return _NOTHING
    if known is None:
        return "no manager answers"
    one = known.get(info.node_id)
    if one is None:
        return "not in the cluster"
    return objects_pb2.NodeState.Name(one.status.state).removeprefix("NODE_STATE_").lower()
