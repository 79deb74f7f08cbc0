"""Several real manager processes on loopback, with certificates of one cluster, as orchd would start them."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from orch_agent import certificates
from orch_proto import control_pb2 as control
from orch_proto.control_pb2_grpc import ControlStub
from orch_proto.objects_pb2 import ChangeAction, Cluster, Node, StoreChanges
from orch_proto.specs_pb2 import ConfigSpec, NodeAvailability, NodeRole
from orch_proto.types_pb2 import Annotations, ObjectKind
from orch_rpc.addresses import Address
from orch_rpc.channels import unix_channel
from orch_rpc.errors import OrchError, rpc_errors
from orch_rpc.founding import FoundedTrust, found_trust
from orch_rpc.identity import Identity, IdentityStore

CLUSTER_ID = "c" * 25
WAIT_S = 30.0


def free_port() -> int:
    """A port whose neighbour is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


async def until(condition: Callable[[], Awaitable[bool]], what: str, *, within_s: float = WAIT_S) -> None:
    """Polls; fails with the last error when it does not come true in time."""
    deadline, last = time.monotonic() + within_s, ""
    while time.monotonic() < deadline:
        try:
            if await condition():
                return
        except OrchError as error:
            last = str(error)
        await asyncio.sleep(0.02)
    raise AssertionError(f"not in {within_s:g} s: {what} {last}")


async def write(stub: ControlStub, name: str) -> None:
    """Makes a config."""
    spec = ConfigSpec(annotations=Annotations(name=name), data=b"x")
    with rpc_errors("write"):
        await stub.Create(control.CreateRequest(spec=control.Spec(config=spec)), timeout=15)


async def remove(stub: ControlStub, name: str) -> None:
    """Removes a config."""
    with rpc_errors("remove"):
        await stub.Remove(control.RemoveRequest(kind=ObjectKind.OBJECT_KIND_CONFIG, reference=name), timeout=15)


class ManagerNode:
    """One manager process and its folders."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.name = name
        self.address = Address("127.0.0.1", free_port())
        self.identities = IdentityStore(self.folder)
        self.node_id = ""
        self.process: asyncio.subprocess.Process | None = None
        self.begin: list[str | Path] = []
        self._starts = 0

    @property
    def socket(self) -> Path:
        """Of the host's command line."""
        return self.folder / "manager.sock"

    @property
    def log(self) -> str:
        """What it has said."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("log*")))

    def own(self, identity: Identity) -> None:
        """Gives it a certificate."""
        self.identities.save(identity)
        self.node_id = identity.name

    async def start(self, *further: str | Path) -> None:
        """Starts it and waits for its socket."""
        self.socket.unlink(missing_ok=True)
        arguments = ["--state-dir", self.folder / "state", "--run-dir", self.folder, "--node-id", self.node_id]
        arguments += ["--identity-dir", self.folder, "--listen-address", str(self.address), "--metrics-address", ""]
        arguments += ["--unlock-key-file", self.folder / "unlock.key"]
        self._starts += 1
        with (self.folder / f"log{self._starts}").open("w") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "orch_manager", *map(str, arguments), *map(str, (*self.begin, *further)),
                stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + WAIT_S
        while not self.socket.exists():
            assert self.process.returncode is None, f"{self.name} ended at its start: {self.log}"
            assert time.monotonic() < deadline, f"{self.name} did not open its socket: {self.log}"
            await asyncio.sleep(0.01)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    async def ended(self) -> int:
        """Waits until it ends by itself; its exit status."""
        assert self.process is not None
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    # ---- what people do ------------------------------------------------------------------------------

    @asynccontextmanager
    async def control(self) -> AsyncIterator[ControlStub]:
        """Its control API."""
        async with unix_channel(self.socket) as channel:
            yield ControlStub(channel)

    async def info(self, *, stale: bool = False) -> control.ClusterInfoResponse:
        """How the cluster is, asked here."""
        async with self.control() as stub:
            with rpc_errors("ask"):
                metadata = (("orch-stale", "1"),) if stale else ()
                return await stub.ClusterInfo(control.ClusterInfoRequest(), timeout=10, metadata=metadata)

    async def write(self, name: str) -> None:
        """Makes a config."""
        async with self.control() as stub:
            await write(stub, name)

    async def remove(self, name: str) -> None:
        """Removes a config."""
        async with self.control() as stub:
            await remove(stub, name)

    async def names(self, *, stale: bool = False) -> set[str]:
        """Names of the configs, as seen here."""
        async with self.control() as stub:
            with rpc_errors("read"):
                request = control.ListRequest(kind=ObjectKind.OBJECT_KIND_CONFIG, stale=stale)
                answer = await stub.List(request, timeout=15)
        return {item.config.spec.annotations.name for item in answer.objects}

    async def node(self, node_id: str) -> Node:
        """A node, as seen here."""
        async with self.control() as stub:
            with rpc_errors("read"):
                request = control.GetRequest(kind=ObjectKind.OBJECT_KIND_NODE, reference=node_id)
                return (await stub.Get(request, timeout=15)).object.node

    async def set_role(self, node_id: str, role: NodeRole.ValueType) -> control.UpdateResponse:
        """Promotes or demotes a node."""
        node = await self.node(node_id)
        node.spec.desired_role = role
        request = control.UpdateRequest(kind=ObjectKind.OBJECT_KIND_NODE, id=node_id, spec=control.Spec(node=node.spec))
        async with self.control() as stub:
            with rpc_errors("change the role"):
                return await stub.Update(request, timeout=15)


class ManagerCluster:
    """The managers of one cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(2)
        self.nodes: list[ManagerNode] = []
        self.trust: FoundedTrust

    async def found(self) -> ManagerNode:
        """The first one."""
        first = ManagerNode(self._folder, "m1")
        self.trust = found_trust(CLUSTER_ID, "n" * 25, now_unix_ms=time.time_ns() // 1_000_000)
        first.own(self.trust.identity)
        cluster = Cluster(id=CLUSTER_ID, root_ca=self.trust.root_ca)
        cluster.spec.annotations.name = "default"
        node = Node(id=first.node_id, role=NodeRole.NODE_ROLE_MANAGER, certificate=self.trust.node_certificate)
        node.spec.desired_role = NodeRole.NODE_ROLE_MANAGER
        node.spec.annotations.name = first.name
        node.spec.availability = NodeAvailability.NODE_AVAILABILITY_ACTIVE
        changes = StoreChanges()
        changes.changes.add(action=ChangeAction.CHANGE_ACTION_CREATE).object.cluster.CopyFrom(cluster)
        changes.changes.add(action=ChangeAction.CHANGE_ACTION_CREATE).object.node.CopyFrom(node)
        bootstrap = first.folder / "bootstrap.pb"
        bootstrap.write_bytes(changes.SerializeToString())
        first.begin = ["--bootstrap", bootstrap]
        await first.start()
        self.nodes.append(first)
        return first

    async def join(self, through: ManagerNode | None = None, *, start: bool = True) -> ManagerNode:
        """One more manager, with a certificate by the manager token."""
        through = through or self.nodes[0]
        node = ManagerNode(self._folder, f"m{next(self._numbers)}")
        joined = await certificates.join(through.address, self.trust.manager_token, hostname=node.name)
        node.own(joined.identity)
        node.begin = ["--join", str(through.address)]
        self.nodes.append(node)
        if start:
            await node.start()
        return node

    async def voters(self, count: int) -> None:
        """Waits until so many managers vote."""

        async def reached() -> bool:
            info = await self.alive()[0].info()
            return sum(1 for member in info.members if not member.learner) == count and bool(info.leader_node_id)

        await until(reached, f"{count} managers vote")

    def alive(self) -> list[ManagerNode]:
        """Those whose process runs."""
        return [node for node in self.nodes if node.process is not None and node.process.returncode is None]

    async def leader(self, *, besides: str = "") -> ManagerNode:
        """The one that leads, once every living manager says so."""
        found = ""

        async def agreed() -> bool:
            nonlocal found
            said = {(await node.info()).leader_node_id for node in self.alive()}
            found = next(iter(said))
            return len(said) == 1 and found not in ("", besides)

        await until(agreed, "all agree on a leader")
        return next(node for node in self.nodes if node.node_id == found)

    async def stop(self) -> None:
        """Ends all."""
        for node in self.alive():
            assert node.process is not None
            if node.process.returncode is None:
                node.process.kill()
                await node.process.wait()


@asynccontextmanager
async def managers(folder: Path, count: int) -> AsyncIterator[ManagerCluster]:
    """A cluster of so many managers, all voting."""
    cluster = ManagerCluster(folder)
    try:
        await cluster.found()
        for _ in range(count - 1):
            await cluster.join()
        await cluster.voters(count)
        yield cluster
    finally:
        await cluster.stop()


@contextmanager
def told(kind: type[OrchError], *words: str) -> Iterator[None]:
    """Expects an error that says these words."""
    try:
        yield
    except kind as error:
        text = str(error)
        for word in words:
            assert word in text, text
    else:
        raise AssertionError(f"no {kind.__name__} was raised")
