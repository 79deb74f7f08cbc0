"""The node daemon's own API, on a unix socket: what is about this node rather than about the cluster."""

from __future__ import annotations

from typing import Any, Protocol

import grpc

from orch_agent.node_state import Membership
from orch_proto import daemon_pb2 as daemon
from orch_proto import daemon_pb2_grpc
from orch_proto import specs_pb2 as specs
from orch_proto.version import VERSION
from orch_rpc.errors import Unimplemented

_NEXT_ISSUE = "several nodes come with the consensus of several managers; this version runs one node"
_Context = grpc.aio.ServicerContext[Any, Any]


class NodeDaemon(Protocol):
    """What the API asks of the daemon."""

    hostname: str

    @property
    def membership(self) -> Membership | None:
        """The node's place in a cluster."""

    def describe(self) -> daemon.NodeInfoResponse:
        """The daemon's state, without what the API knows itself."""

    async def init_cluster(self, request: daemon.InitClusterRequest) -> daemon.InitClusterResponse:
        """Makes a cluster of one manager."""

    async def leave_cluster(self, *, force: bool) -> list[str]:
        """Stops the tasks and forgets the cluster; returns notes for people."""

    def shut_down(self, *, remove_everything: bool) -> None:
        """Asks the daemon to end."""


class DaemonService(daemon_pb2_grpc.DaemonServicer):
    """Serves the Daemon API."""

    def __init__(self, node: NodeDaemon) -> None:
        self._node = node

    async def NodeInfo(self, request: daemon.NodeInfoRequest, context: _Context) -> daemon.NodeInfoResponse:  # noqa: N802, ARG002 -- gRPC's names
        """State of this node."""
        info = self._node.describe()
        info.hostname = self._node.hostname
        info.version = VERSION
        membership = self._node.membership
        if membership is not None:
            info.node_id = membership.node_id
            info.cluster_id = membership.cluster_id
            info.role = specs.NODE_ROLE_MANAGER if membership.role == "manager" else specs.NODE_ROLE_WORKER
            info.advertise_address = membership.advertise_address
        return info

    async def InitCluster(self, request: daemon.InitClusterRequest, context: _Context) -> daemon.InitClusterResponse:  # noqa: N802, ARG002
        """Makes a cluster of one manager."""
        return await self._node.init_cluster(request)

    async def JoinCluster(self, request: daemon.JoinClusterRequest, context: _Context) -> daemon.JoinClusterResponse:  # noqa: N802, ARG002
        """Joins a cluster."""
        raise Unimplemented("cannot join a cluster", _NEXT_ISSUE, "make a cluster of this node with orch cluster init")

    async def LeaveCluster(self, request: daemon.LeaveClusterRequest, context: _Context) -> daemon.LeaveClusterResponse:  # noqa: N802, ARG002
        """Leaves the cluster."""
        return daemon.LeaveClusterResponse(notes=await self._node.leave_cluster(force=request.force))

    async def UnlockCluster(  # noqa: N802
        self,
        request: daemon.UnlockClusterRequest,  # noqa: ARG002
        context: _Context,  # noqa: ARG002
    ) -> daemon.UnlockClusterResponse:
        """Unseals a locked manager."""
        raise Unimplemented("cannot unlock", "this cluster is not locked: autolock comes with several managers", "")

    async def RecoverCluster(self, request: daemon.RecoverClusterRequest, context: _Context) -> Any:  # noqa: N802, ARG002
        """Makes this manager the only one."""
        raise Unimplemented("cannot recover", _NEXT_ISSUE, "")

    async def RestoreCluster(self, request_iterator: Any, context: _Context) -> Any:  # noqa: N802, ARG002
        """Makes a cluster from a backup."""
        raise Unimplemented("cannot restore", _NEXT_ISSUE, "")

    async def Shutdown(self, request: daemon.ShutdownRequest, context: _Context) -> daemon.ShutdownResponse:  # noqa: N802, ARG002
        """Ends the daemon."""
        self._node.shut_down(remove_everything=request.remove_everything)
        return daemon.ShutdownResponse()
