"""A real manager process that listens on TLS, and everything that its root can issue."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orch_proto import ca_pb2 as ca
from orch_proto.ca_pb2_grpc import CAStub
from orch_proto.control_pb2_grpc import ControlStub
from orch_proto.objects_pb2 import ChangeAction, Cluster, Node, StoreChanges
from orch_proto.specs_pb2 import NodeAvailability, NodeRole
from orch_rpc.addresses import Address
from orch_rpc.certificates import Authority
from orch_rpc.channels import unix_channel
from orch_rpc.errors import rpc_errors
from orch_rpc.founding import FoundedTrust, found_trust
from orch_rpc.identity import Identity, IdentityStore
from orch_rpc.tls import manager_channel
from unit.trust.servers import TestCluster, now_unix_ms

CLUSTER_ID = "cluster1"
FOUNDER = "manager1"
_START_WAIT_S = 25.0


def _founding(trust: FoundedTrust, address: Address) -> StoreChanges:
    """What orchd writes for a new cluster."""
    cluster = Cluster(id=CLUSTER_ID, root_ca=trust.root_ca)
    cluster.spec.annotations.name = "default"
    node = Node(id=FOUNDER, role=NodeRole.NODE_ROLE_MANAGER, certificate=trust.node_certificate)
    node.spec.annotations.name = "one"
    node.spec.desired_role = NodeRole.NODE_ROLE_MANAGER
    node.spec.availability = NodeAvailability.NODE_AVAILABILITY_ACTIVE
    node.manager.address = str(address)
    node.manager.leader = True
    changes = StoreChanges()
    for wrapper in (cluster, node):
        added = changes.changes.add(action=ChangeAction.CHANGE_ACTION_CREATE)
        getattr(added.object, type(wrapper).__name__.lower()).CopyFrom(wrapper)
    return changes


def _free_ports() -> int:
    """A port that is free, and the one above it."""
    for _ in range(50):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two free ports beside each other")


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


class RealManager:
    """`python -m orch_manager` with an identity."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = Address("127.0.0.1", _free_ports())
        self.socket = folder / "manager.sock"
        self.trust = found_trust(CLUSTER_ID, FOUNDER, now_unix_ms=now_unix_ms())
        root = Authority(self.trust.root_ca.certificate_pem, self.trust.root_ca.key_pem)
        #: Issues what the cluster's own root would.
        self.cluster = TestCluster(CLUSTER_ID, root)
        self.identities = IdentityStore(folder)
        self.log = folder / "log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.identities.save(self.trust.identity)
        bootstrap = self.folder / "bootstrap.pb"
        bootstrap.write_bytes(_founding(self.trust, self.address).SerializeToString())
        arguments = ["--state-dir", self.folder / "state", "--run-dir", self.folder, "--node-id", FOUNDER]
        arguments += ["--bootstrap", bootstrap, "--identity-dir", self.folder, "--metrics-address", ""]
        arguments += ["--listen-address", str(self.address)]
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "orch_manager", *map(str, arguments), stderr=log
            )
        deadline = time.monotonic() + _START_WAIT_S
        while True:
            assert self._process.returncode is None, self.log.read_text()
            assert time.monotonic() < deadline, "the manager did not listen in time"
            ports = (self.address.port, self.address.port + 1)
            if self.socket.exists() and all(_listens(self.address.host, port) for port in ports):
                return
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    # ---- speaking with it ----------------------------------------------------------------------------

    @asynccontextmanager
    async def as_local(self) -> Any:
        """The authority's and the control API's stubs over the unix socket."""
        async with unix_channel(self.socket) as channel:
            with rpc_errors("call"):
                yield CAStub(channel), ControlStub(channel)

    @asynccontextmanager
    async def as_identity(self, identity: Identity) -> Any:
        """The same over TLS with a certificate."""
        async with manager_channel(self.address, identity) as channel:
            with rpc_errors("call"):
                yield CAStub(channel), ControlStub(channel)

    async def tokens(self, **rotate: bool) -> ca.JoinTokensResponse:
        async with self.as_local() as (authority, _):
            answer: ca.JoinTokensResponse = await authority.JoinTokens(ca.JoinTokensRequest(**rotate))
            return answer

    async def root_status(self) -> ca.RootStatusResponse:
        async with self.as_local() as (authority, _):
            answer: ca.RootStatusResponse = await authority.RootStatus(ca.RootStatusRequest())
            return answer


def with_manager(folder: Path, story: Callable[[RealManager], Awaitable[None]]) -> None:
    async def run() -> None:
        manager = RealManager(folder)
        try:
            await manager.start()
            async with asyncio.timeout(40):
                await story(manager)
        finally:
            await manager.stop()

    asyncio.run(run())
