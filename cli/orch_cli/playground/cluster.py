"""Makes one cluster of a playground's nodes, and asks its managers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from typing import Any, Final

from orch_cli.playground import daemon
from orch_cli.playground.layout import NodePlace
from orch_cli.playground.processes import ProcessId
from orch_cli.playground.record import Record
from orch_proto import (
    ca_pb2,
    ca_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    daemon_pb2,
    daemon_pb2_grpc,
    objects_pb2,
    types_pb2,
)
from orch_rpc.channels import unix_channel
from orch_rpc.errors import OrchError, rpc_errors

_READY_LIMIT_S: Final = 40.0
_CALL_LIMIT_S: Final = 2.0
_POLL_S: Final = 0.02


async def answering(found: Record, nodes: Iterable[NodePlace]) -> None:
    """Waits until the daemons of some nodes answer.

    Raises:
        FailedPrecondition: one ended, or did not answer in time.
    """
    daemons = found.daemons
    await _all(daemon.wait_for_answer(node, daemons[node.hostname]) for node in nodes)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Does several things at once; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


async def form(found: Record) -> None:
    """Makes a cluster of the first node, joins all others at once, and waits until all are ready.

    Raises:
        OrchError: a daemon ended, or refused; or not all were ready in time.
    """
    daemons = found.daemons
    first, *others = found.layout.nodes
    await daemon.wait_for_answer(first, daemons[first.hostname])
    await _init(first)
    if others:
        tokens = await _tokens(first)
        await _all(
            _join(node, daemons[node.hostname], first, tokens.manager if found.is_manager(node) else tokens.worker)
            for node in others
        )
    await _wait_until_ready(found, first)


async def _init(node: NodePlace) -> None:
    with rpc_errors("make the cluster"):
        async with unix_channel(node.daemon_socket) as channel:
            stub: daemon_pb2_grpc.DaemonAsyncStub = daemon_pb2_grpc.DaemonStub(channel)
            request = daemon_pb2.InitClusterRequest(advertise_address=str(node.address))
            await stub.InitCluster(request, timeout=_READY_LIMIT_S)


async def _join(node: NodePlace, identity: ProcessId, first: NodePlace, token: str) -> None:
    await daemon.wait_for_answer(node, identity)
    request = daemon_pb2.JoinClusterRequest(
        remote_address=str(first.address), token=token, advertise_address=str(node.address)
    )
    with rpc_errors(f"join {node.hostname}"):
        async with unix_channel(node.daemon_socket) as channel:
            stub: daemon_pb2_grpc.DaemonAsyncStub = daemon_pb2_grpc.DaemonStub(channel)
            await stub.JoinCluster(request, timeout=_READY_LIMIT_S)


async def _tokens(node: NodePlace) -> ca_pb2.JoinTokensResponse:
    with rpc_errors("read the join tokens"):
        async with unix_channel(node.manager_socket) as channel:
            stub: ca_pb2_grpc.CAAsyncStub = ca_pb2_grpc.CAStub(channel)
            return await stub.JoinTokens(ca_pb2.JoinTokensRequest(), timeout=_CALL_LIMIT_S)


async def list_nodes(node: NodePlace) -> list[objects_pb2.Node]:
    """The cluster's nodes, by this node's manager.

    Raises:
        OrchError: the manager does not answer.
    """
    return [found.node for found in await _list(node, types_pb2.OBJECT_KIND_NODE)]


async def _list(node: NodePlace, kind: types_pb2.ObjectKind.ValueType) -> list[objects_pb2.Object]:
    with rpc_errors(f"ask the manager of {node.hostname}"):
        async with unix_channel(node.manager_socket) as channel:
            stub: control_pb2_grpc.ControlAsyncStub = control_pb2_grpc.ControlStub(channel)
            answer = await stub.List(control_pb2.ListRequest(kind=kind), timeout=_CALL_LIMIT_S)
            return list(answer.objects)


async def _info(node: NodePlace) -> control_pb2.ClusterInfoResponse:
    with rpc_errors(f"ask the manager of {node.hostname}"):
        async with unix_channel(node.manager_socket) as channel:
            stub: control_pb2_grpc.ControlAsyncStub = control_pb2_grpc.ControlStub(channel)
            return await stub.ClusterInfo(control_pb2.ClusterInfoRequest(), timeout=_CALL_LIMIT_S)


async def _wait_until_ready(found: Record, asked: NodePlace) -> None:
    deadline = time.monotonic() + _READY_LIMIT_S
    why = "no node has registered"
    while time.monotonic() < deadline:
        try:
            state = await _info(asked)
        except OrchError as error:
            why = str(error)
        else:
            ready = state.nodes_by_state["ready"]
            managers = sum(member.reachable and not member.learner for member in state.members)
            if ready >= found.layout.node_count and managers >= found.managers:
                return
            why = f"{ready} of {found.layout.node_count} nodes are ready, {managers} of {found.managers} managers"
        await asyncio.sleep(_POLL_S)
    raise daemon.did_not_start(asked, f"within {_READY_LIMIT_S:g} s {why}")


async def manager_that_answers(found: Record) -> tuple[NodePlace, list[objects_pb2.Node]] | None:
    """The first node whose manager answers a question for the cluster's nodes, with its answer; None if none does.

    A manager that has lost touch with the majority does not answer such a question.
    """

    async def ask(node: NodePlace) -> list[objects_pb2.Node]:
        return await list_nodes(node) if node.manager_socket.exists() else []

    answers = await asyncio.gather(*(ask(node) for node in found.layout.nodes), return_exceptions=True)
    for node, answer in zip(found.layout.nodes, answers, strict=True):
        if isinstance(answer, list) and answer:
            return node, answer
        if isinstance(answer, BaseException) and not isinstance(answer, OrchError):
            raise answer
    return None
