"""The node daemon's own API, on a unix socket: what is about this node rather than about the cluster."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import grpc

from orch_agent.member import Member
from orch_agent.node_state import Membership
from orch_proto import daemon_pb2 as daemon
from orch_proto import daemon_pb2_grpc, defaults
from orch_proto import specs_pb2 as specs
from orch_proto.version import VERSION
from orch_rpc.errors import InvalidArgument

_Context = grpc.aio.ServicerContext[Any, Any]


class NodeDaemon(Protocol):
    """What the API asks of the daemon."""

    hostname: str

    @property
    def member(self) -> Member | None:
        """The node in its cluster."""

    @property
    def state_dir(self) -> Path:
        """Where a backup is put while it is received."""

    async def init_cluster(self, request: daemon.InitClusterRequest) -> daemon.InitClusterResponse:
        """Makes a cluster of one manager."""

    async def join_cluster(self, request: daemon.JoinClusterRequest) -> daemon.JoinClusterResponse:
        """Joins a cluster."""

    async def leave_cluster(self, *, force: bool) -> list[str]:
        """Stops the tasks and forgets the cluster; returns notes for people."""

    async def unlock_cluster(self, key: str) -> None:
        """Gives a locked manager its key."""

    async def recover_cluster(self) -> daemon.RecoverClusterResponse:
        """Has this node's manager go on alone."""

    async def restore_cluster(self, request: daemon.RestoreClusterRequest, backup: Path) -> Membership:
        """Makes a cluster from a backup."""

    def shut_down(self, *, remove_everything: bool) -> None:
        """Asks the daemon to end."""


class DaemonService(daemon_pb2_grpc.DaemonServicer):
    """Serves the Daemon API."""

    def __init__(self, node: NodeDaemon) -> None:
        self._node = node

    async def NodeInfo(self, request: daemon.NodeInfoRequest, context: _Context) -> daemon.NodeInfoResponse:  # noqa: N802, ARG002 -- gRPC's names
        """State of this node."""
        member = self._node.member
        info = (
            describe(member) if member is not None else daemon.NodeInfoResponse(state=daemon.MEMBERSHIP_STATE_INACTIVE)
        )
        info.hostname = self._node.hostname
        info.version = VERSION
        return info

    async def InitCluster(self, request: daemon.InitClusterRequest, context: _Context) -> daemon.InitClusterResponse:  # noqa: N802, ARG002
        """Makes a cluster of one manager."""
        return await self._node.init_cluster(request)

    async def JoinCluster(self, request: daemon.JoinClusterRequest, context: _Context) -> daemon.JoinClusterResponse:  # noqa: N802, ARG002
        """Joins a cluster."""
        return await self._node.join_cluster(request)

    async def LeaveCluster(self, request: daemon.LeaveClusterRequest, context: _Context) -> daemon.LeaveClusterResponse:  # noqa: N802, ARG002
        """Leaves the cluster."""
        return daemon.LeaveClusterResponse(notes=await self._node.leave_cluster(force=request.force))

    async def UnlockCluster(  # noqa: N802
        self,
        request: daemon.UnlockClusterRequest,
        context: _Context,  # noqa: ARG002
    ) -> daemon.UnlockClusterResponse:
        """Unseals a locked manager."""
        await self._node.unlock_cluster(request.unlock_key)
        return daemon.UnlockClusterResponse()

    async def RecoverCluster(  # noqa: N802
        self,
        request: daemon.RecoverClusterRequest,  # noqa: ARG002
        context: _Context,  # noqa: ARG002
    ) -> daemon.RecoverClusterResponse:
        """Makes this manager the only one."""
        return await self._node.recover_cluster()

    async def RestoreCluster(self, request_iterator: Any, context: _Context) -> daemon.RestoreClusterResponse:  # noqa: N802, ARG002
        """Makes a cluster from a backup, which comes in parts."""
        with tempfile.NamedTemporaryFile(dir=self._node.state_dir, prefix="restore-") as backup:
            first = await _receive(request_iterator, backup)
            backup.flush()
            restored = await self._node.restore_cluster(first, Path(backup.name))
        return daemon.RestoreClusterResponse(node_id=restored.node_id, cluster_id=restored.cluster_id)

    async def Shutdown(self, request: daemon.ShutdownRequest, context: _Context) -> daemon.ShutdownResponse:  # noqa: N802, ARG002
        """Ends the daemon."""
        self._node.shut_down(remove_everything=request.remove_everything)
        return daemon.ShutdownResponse()


async def _receive(parts: AsyncIterator[daemon.RestoreClusterRequest], stream: Any) -> daemon.RestoreClusterRequest:
    """Writes the parts of a backup down; returns the first message, which has the options.

    Raises:
        InvalidArgument: there is nothing, or more than a backup can be.
    """
    first: daemon.RestoreClusterRequest | None = None
    size = 0
    async for part in parts:
        first = first or part
        size += len(part.data)
        if size > defaults.BACKUP_BYTES:
            raise InvalidArgument("cannot restore", f"a backup has at most {defaults.BACKUP_BYTES} bytes", "")
        stream.write(part.data)
    if first is None or not size:
        raise InvalidArgument("cannot restore", "the backup is empty", "name a file that orch cluster backup made")
    return first


def describe(member: Member) -> daemon.NodeInfoResponse:
    """The state of a node that is in a cluster."""
    failure = member.manager.failure if member.manager is not None else ""
    connected = member.agent.session_connected
    state = daemon.MEMBERSHIP_STATE_ACTIVE if connected else daemon.MEMBERSHIP_STATE_PENDING
    if member.manager is not None and member.manager.locked:
        state = daemon.MEMBERSHIP_STATE_LOCKED
    elif failure or member.has_expired:
        state = daemon.MEMBERSHIP_STATE_ERROR
    return daemon.NodeInfoResponse(
        state=state,
        node_id=member.membership.node_id,
        cluster_id=member.membership.cluster_id,
        role=specs.NODE_ROLE_MANAGER if member.is_manager else specs.NODE_ROLE_WORKER,
        advertise_address=member.membership.advertise_address,
        manager_addresses=member.membership.managers,
        manager_socket=str(member.manager_socket) if member.is_manager else "",
        manager_running=member.manager is not None and member.manager.running,
        session_connected=connected,
        error=" ".join((failure or member.agent.last_error).split()),
    )
