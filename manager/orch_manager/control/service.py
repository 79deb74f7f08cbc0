"""The gRPC side of the control API; see control.proto."""
# ruff: noqa: N802 - methods bear the names of the contract

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from orch_manager.control.cluster import ClusterApi
from orch_manager.control.events import cluster_events
from orch_manager.control.objects import Objects
from orch_manager.control.queries import kind_of, predicate, public, resolve
from orch_manager.control.stacks.service import Stacks
from orch_manager.control.streams import Streams
from orch_manager.control.watching import watch
from orch_manager.dispatcher.calls import NodeCalls
from orch_manager.faults import told_as
from orch_manager.store.store import Store
from orch_proto import control_pb2 as control
from orch_proto import defaults
from orch_proto.control_pb2_grpc import ControlServicer
from orch_proto.node_pb2 import LogLines, RelayOutput
from orch_proto.objects_pb2 import Node
from orch_rpc.authorization import current_call
from orch_rpc.callers import CallerKind
from orch_rpc.errors import Unavailable

_Context = Any
_BARRIER_S: Final = defaults.LEADER_WAIT_MS / 1000
#: Metadata: with "1" the answer may be out of date, and is given even while there is no leader.
STALE_KEY: Final = "orch-stale"


class ControlService(ControlServicer):
    """Answers people's tools.

    Args:
        store: read.
        stacks: deploys.
        objects: single objects.
        streams: logs, exec, image data.
        calls: questions to nodes.
        cluster: the cluster itself.
    """

    def __init__(
        self,
        store: Store,
        *,
        stacks: Stacks,
        objects: Objects,
        streams: Streams,
        calls: NodeCalls,
        cluster: ClusterApi,
    ) -> None:
        self._store = store
        self._stacks = stacks
        self._objects = objects
        self._streams = streams
        self._calls = calls
        self._cluster = cluster

    async def _barrier(self, *, stale: bool) -> None:
        """Makes the reads that follow linearizable, unless the caller does not want that."""
        if stale:
            return
        what = "cannot read the cluster's state"
        try:
            async with asyncio.timeout(_BARRIER_S):
                with told_as(what):
                    await self._store.read_barrier()
        except TimeoutError as error:
            todo = "try again soon; `orch --stale ...` shows what this manager knows, which may be out of date"
            raise Unavailable(what, "no leader confirmed that it would be current", todo) from error

    # ---- stacks --------------------------------------------------------------------------------------

    async def ApplyStack(self, request: control.ApplyStackRequest, context: _Context) -> control.ApplyStackResponse:
        """Deploys a stack."""
        del context
        caller = current_call().caller
        if caller.kind is CallerKind.USER:
            # Who shows a certificate is its holder, whatever name the request brings.
            request.author = caller.id
        return await self._stacks.apply(request)

    async def PlanStack(self, request: control.ApplyStackRequest, context: _Context) -> control.PlanStackResponse:
        """Says what a deploy would do."""
        del context
        return await self._stacks.plan(request)

    async def RemoveStack(self, request: control.RemoveStackRequest, context: _Context) -> control.RemoveStackResponse:
        """Begins the removal of a stack."""
        del context
        return await self._stacks.remove(request)

    # ---- objects -------------------------------------------------------------------------------------

    async def Get(self, request: control.GetRequest, context: _Context) -> control.GetResponse:
        """One object."""
        await self._barrier(stale=request.stale or is_stale(context))
        item = resolve(self._store, kind_of(request.kind), request.reference)
        return control.GetResponse(object=public(item))

    async def List(self, request: control.ListRequest, context: _Context) -> control.ListResponse:
        """Objects of a kind."""
        await self._barrier(stale=request.stale or is_stale(context))
        matches = predicate(self._store, request.filters)
        items: list[Any] = [item for item in self._store.all(kind_of(request.kind)) if matches(item)]
        items.sort(key=lambda item: (item.meta.created_at_unix_ms, item.id))
        return control.ListResponse(objects=[public(item) for item in items], index=self._store.index)

    async def Create(self, request: control.CreateRequest, context: _Context) -> control.CreateResponse:
        """Makes one object."""
        del context
        return control.CreateResponse(object=public(await self._objects.create(request)))

    async def Update(self, request: control.UpdateRequest, context: _Context) -> control.UpdateResponse:
        """Changes one object."""
        del context
        updated, warnings = await self._objects.update(request)
        return control.UpdateResponse(object=public(updated), warnings=warnings)

    async def Remove(self, request: control.RemoveRequest, context: _Context) -> control.RemoveResponse:
        """Removes one object."""
        del context
        object_id, name, warnings = await self._objects.remove(request)
        return control.RemoveResponse(id=object_id, name=name, warnings=warnings)

    async def ScaleServices(
        self, request: control.ScaleServicesRequest, context: _Context
    ) -> control.ScaleServicesResponse:
        """Sets replicas."""
        del context
        return control.ScaleServicesResponse(services=await self._objects.scale(request))

    async def Watch(self, request: control.WatchRequest, context: _Context) -> AsyncIterator[control.WatchEvent]:
        """Streams changes."""
        await self._barrier(stale=is_stale(context))
        async for event in watch(self._store, request):
            yield event

    async def Events(self, request: control.EventsRequest, context: _Context) -> AsyncIterator[control.ClusterEvent]:
        """Streams sentences about changes."""
        await self._barrier(stale=is_stale(context))
        async for event in cluster_events(self._store, request):
            yield event

    # ---- cluster -------------------------------------------------------------------------------------

    async def ClusterInfo(self, request: control.ClusterInfoRequest, context: _Context) -> control.ClusterInfoResponse:
        """How the cluster is."""
        del request
        return await self._cluster.info(stale=is_stale(context))

    async def Backup(self, request: control.BackupRequest, context: _Context) -> AsyncIterator[control.BackupPart]:
        """Streams the whole state at one moment."""
        del request
        await self._barrier(stale=is_stale(context))
        async for part in self._cluster.backup():
            yield part

    async def UnlockKey(self, request: control.UnlockKeyRequest, context: _Context) -> control.UnlockKeyResponse:
        """Shows or changes the key that opens locked managers."""
        del context
        return await self._cluster.unlock_key(request.action)

    # ---- nodes ---------------------------------------------------------------------------------------

    async def CallNodes(self, request: control.CallNodesRequest, context: _Context) -> control.CallNodesResponse:
        """Puts a small question to nodes."""
        del context
        nodes = [resolve(self._store, Node, request.node)] if request.node else self._calls.ready_nodes()
        return control.CallNodesResponse(answers=await self._calls.ask_all(nodes, request.call))

    async def Logs(self, request: control.LogsRequest, context: _Context) -> AsyncIterator[LogLines]:
        """Streams log lines."""
        del context
        async for lines in self._streams.logs(request):
            yield lines

    async def Exec(self, request_iterator: Any, context: _Context) -> AsyncIterator[RelayOutput]:
        """Runs a command in a task."""
        del request_iterator
        async for output in self._streams.exec(context):
            yield output

    async def SendToNode(self, request_iterator: Any, context: _Context) -> AsyncIterator[RelayOutput]:
        """Brings an image to a node."""
        del request_iterator
        async for output in self._streams.send_to_node(context):
            yield output


def is_stale(context: _Context) -> bool:
    """Whether the caller is content with what this manager knows, without asking whether it is the newest."""
    return (STALE_KEY, "1") in tuple(context.invocation_metadata() or ())
