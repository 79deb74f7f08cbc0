"""A member with everything real: its log on disk, its messages over gRPC with mutual TLS on loopback."""

from pathlib import Path
from typing import Any

from orch_proto import raft_pb2
from orch_proto.raft_pb2_grpc import add_RaftServicer_to_server
from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import StateMachine
from orch_raft.limits import EngineOptions
from orch_raft.transport.client import GrpcTransport, mutual_channels
from orch_raft.transport.service import RaftService
from orch_rpc import servers, tls
from orch_rpc.addresses import parse_address
from orch_rpc.errors import Unimplemented
from orch_rpc.identity import IdentitySource


class NoCalls:
    """Nobody joins or leaves by a call here."""

    async def join(self, _request: raft_pb2.RaftJoinRequest, _context: Any) -> raft_pb2.RaftJoinResponse:
        raise Unimplemented("cannot join")

    async def leave(self, _request: raft_pb2.RaftLeaveRequest, _context: Any) -> raft_pb2.RaftLeaveResponse:
        raise Unimplemented("cannot leave")

    async def resolve_address(
        self, _request: raft_pb2.RaftResolveAddressRequest, _context: Any
    ) -> raft_pb2.RaftResolveAddressResponse:
        raise Unimplemented("cannot resolve")


class TlsMember:
    """An engine, its transport and its server."""

    def __init__(
        self,
        folder: Path,
        source: IdentitySource,
        port: int,
        machine: StateMachine,
        options: EngineOptions | None = None,
    ) -> None:
        self.address = f"127.0.0.1:{port}"
        self.source = source
        self.transport = GrpcTransport(mutual_channels(source), self.address)
        self.engine = ReplicatedEngine(folder, machine, transport=self.transport, options=options)
        self._server = servers.new_server()

    async def start(self, *extra_servicers: Any) -> None:
        service = RaftService(self.engine, self.transport, calls=NoCalls())
        add_RaftServicer_to_server(service, self._server)
        for add in extra_servicers:
            add(self._server)
        await servers.start_on_tls(
            self._server, parse_address(self.address), tls.mutual_server_credentials(self.source)
        )
        await self.engine.start()

    async def stop(self) -> None:
        await self.engine.stop()
        await self._server.stop(None)
