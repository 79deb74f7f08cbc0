"""The manager process: the parts joined, and their life from start to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc.aio

from orch_manager.ca.removed import DemotedManagers, RemovedNodes
from orch_manager.ca.scope import StackScope
from orch_manager.ca.service import CAService
from orch_manager.clock import Clock, IdSource, SystemClock
from orch_manager.control.cluster import ClusterApi
from orch_manager.control.nodes import NodeRules
from orch_manager.control.objects import Objects
from orch_manager.control.service import ControlService
from orch_manager.control.stacks.service import Stacks
from orch_manager.control.streams import Streams
from orch_manager.control.unlocking import UnlockKeys, present_key
from orch_manager.dispatcher.calls import NodeCalls
from orch_manager.dispatcher.hub import Hub
from orch_manager.dispatcher.service import DispatcherService
from orch_manager.forwarding.forwarder import Forwarder
from orch_manager.forwarding.interceptor import ForwardingInterceptor
from orch_manager.forwarding.leader import Leader
from orch_manager.forwarding.vouching import Voucher
from orch_manager.founding import write_founding_objects
from orch_manager.health import Health
from orch_manager.leading import Leading
from orch_manager.members.changes import Changes
from orch_manager.members.handler import MembershipHandler
from orch_manager.members.joining import Joining
from orch_manager.members.keeper import MemberKeeper
from orch_manager.members.roles import Roles
from orch_manager.members.view import leads
from orch_manager.metrics import ManagerMetrics, RaftObserver, StateCollector
from orch_manager.metrics_http import MetricsServer
from orch_manager.relay.broker import RelayBroker
from orch_manager.relay.delivery import ImageDelivery
from orch_manager.relay.service import RelayService
from orch_manager.serving import SOCKET_NAME, Listening, Servers
from orch_manager.store.store import Store
from orch_proto import defaults
from orch_proto.ca_pb2_grpc import add_CAServicer_to_server
from orch_proto.control_pb2 import ClusterInfoRequest, ClusterInfoResponse
from orch_proto.control_pb2_grpc import ControlStub, add_ControlServicer_to_server
from orch_proto.dispatcher_pb2_grpc import add_DispatcherServicer_to_server, add_RelayServicer_to_server
from orch_proto.objects_pb2 import Cluster, StoreChanges
from orch_proto.raft_pb2_grpc import add_RaftServicer_to_server
from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import Engine, Observer, StateMachine
from orch_raft.errors import RaftError
from orch_raft.transport.client import GrpcTransport
from orch_raft.transport.service import RaftService
from orch_rpc import logs
from orch_rpc.addresses import Address, parse_address
from orch_rpc.authorization import Authorization, Policy, current_call
from orch_rpc.errors import rpc_errors
from orch_rpc.identity import IdentitySource
from orch_rpc.tls import ManagerChannels

_log = logs.get("manager")
_SEAL_CHECK_S: Final = 30.0
#: Makes the engine that a store writes through.
EngineMaker = Callable[[StateMachine, Observer], Engine]


@dataclass(frozen=True, slots=True)
class Options:
    """What a manager is started with.

    Attributes:
        run_dir: where its socket stands.
        node_id: the node it runs on.
        version: of this software.
        metrics_address: where /metrics is served; empty: nowhere.
        founding: first objects of a new cluster, None for one that exists.
        listen_address: for managers, agents and people; None: the unix socket alone.
        advertise_address: where those reach it.
        identity: its certificate; needed to listen, and to speak to other managers.
        join: managers to ask for admission.
        unlock_key: what the state was opened with.
        transport: of consensus; None: there are no other managers.
    """

    run_dir: Path
    node_id: str
    version: str
    metrics_address: str = ""
    founding: StoreChanges | None = None
    listen_address: Address | None = None
    advertise_address: Address | None = None
    identity: IdentitySource | None = None
    join: tuple[Address, ...] = ()
    unlock_key: bytes | None = None
    transport: GrpcTransport | None = None


class Manager:
    """One manager.

    Args:
        options: see there.
        make_engine: the consensus engine.
        clock: what time it is.
        ids: chance.
    """

    def __init__(
        self, options: Options, make_engine: EngineMaker, *, clock: Clock | None = None, ids: IdSource | None = None
    ) -> None:
        self._options = options
        self._clock = clock or SystemClock()
        self._ids = ids or IdSource()
        self.metrics = ManagerMetrics()
        observer = RaftObserver(self.metrics)
        self.store = Store(lambda machine: make_engine(machine, observer), clock_unix_ms=self._clock.unix_ms)
        self.hub = Hub(self.store, clock=self._clock, ids=self._ids, heartbeat_period_ms=defaults.HEARTBEAT_PERIOD_MS)
        self.leader = Leader(self.store.engine.status, clock=self._clock)
        self._health = Health(self.leader)
        self._changes = Changes(self.store.engine)
        self._roles = Roles(self.store.engine)
        keeper = MemberKeeper(self.store, self._changes, self._roles)
        self.leading = Leading(
            self.store, self.hub, self.metrics, clock=self._clock, ids=self._ids, duties={"managers": keeper.run}
        )
        self._channels = ManagerChannels(options.identity) if options.identity is not None else None
        calls = NodeCalls(self.hub)
        broker = RelayBroker(self.hub)
        delivery = ImageDelivery(self.store, broker, calls)
        self._relays = RelayService(self.store, broker, delivery)
        self._scope = StackScope(self.store)
        self.control = ControlService(
            self.store,
            stacks=Stacks(self.store, calls, clock=self._clock, ids=self._ids),
            objects=Objects(self.store, calls, NodeRules(self._roles, self._changes), clock=self._clock, ids=self._ids),
            streams=Streams(self.store, broker, delivery, self._scope, options.node_id),
            calls=calls,
            cluster=ClusterApi(
                self.store,
                self.leader,
                UnlockKeys(self.store),
                clock=self._clock,
                node_id=options.node_id,
                version=options.version,
                ask_leader=self._ask_leader if self._channels is not None else None,
            ),
        )
        self._authority = CAService(self.store, clock=self._clock, ids=self._ids)
        self._dispatcher = DispatcherService(self.hub, self.leader, version=options.version)
        self._metrics_server = MetricsServer(self.metrics.registry, options.metrics_address)

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set.

        Raises:
            StorageError, FatalError: the state cannot be used or kept; the process must end.
            OrchError: an address or the socket cannot be used.
        """
        await self.store.start()
        try:
            self.metrics.registry.register(
                StateCollector(
                    self.store,
                    clock=self._clock,
                    version=self._options.version,
                    node_id=self._options.node_id,
                    dropped=self.hub.dropped_statuses,
                )
            )
            if self._options.founding is not None:
                await write_founding_objects(self.store, self._options.founding)
            await self._serve(stop)
        finally:
            await self.store.stop()

    # ---- serving -------------------------------------------------------------------------------------

    def _servers(self) -> Servers:
        identity = self._options.identity
        policy = Policy(
            cluster_id=identity.current().cluster_id if identity is not None else "",
            is_removed=RemovedNodes(self.store),
            is_demoted=DemotedManagers(self.store),
            check_scope=self._scope,
        )
        interceptors: list[object] = [Authorization(policy)]
        if self._channels is not None:
            forwarder = Forwarder(self.leader, self._channels, on_call=self.metrics.call_forwarded)
            voucher = Voucher(self.store.engine.status, self.store.read_barrier)
            interceptors.insert(0, ForwardingInterceptor(self.leader, forwarder, voucher))
        return Servers(
            Listening(self._options.run_dir / SOCKET_NAME, self._options.listen_address, identity),
            all_servicers=self._add_all,
            joining_servicers=lambda server: add_CAServicer_to_server(self._authority, server),
            interceptors=interceptors,
            observer=self.metrics.rpc_served,
        )

    def _add_all(self, server: grpc.aio.Server) -> None:
        add_ControlServicer_to_server(self.control, server)
        add_DispatcherServicer_to_server(self._dispatcher, server)
        add_RelayServicer_to_server(self._relays, server)
        add_CAServicer_to_server(self._authority, server)
        self._health.add_to(server)
        engine, transport, channels = self.store.engine, self._options.transport, self._channels
        if transport is not None and channels is not None and isinstance(engine, ReplicatedEngine):
            handler = MembershipHandler(
                self.store,
                self.leader,
                self._changes,
                self._roles,
                channels=channels,
                own_address=str(self._options.advertise_address or ""),
            )
            service = RaftService(engine, transport, caller_node_id=_sending_node_id, calls=handler)
            add_RaftServicer_to_server(service, server)

    async def _serve(self, stop: asyncio.Event) -> None:
        listening = self._servers()
        lives = [
            asyncio.create_task(self._follow_leadership(), name="leadership"),
            asyncio.create_task(self.store.engine.wait_stopped(), name="engine"),
            asyncio.create_task(stop.wait(), name="stop"),
            asyncio.create_task(self.leading.broken(), name="loops-broke"),
        ]
        others = [
            asyncio.create_task(self._keep_sealed(), name="autolock"),
            asyncio.create_task(self._health.follow(), name="health"),
        ]
        try:
            await self._settle()
            await listening.start()
            await self._metrics_server.start()
            if self._channels is not None and self._options.advertise_address is not None:
                others.append(asyncio.create_task(self._join(self._options.advertise_address), name="join"))
            lives += [asyncio.create_task(self._ended(others), name="others")]
            done, _ = await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED)
            for life in done:
                life.result()
        finally:
            await self._health.stop()
            await self._hand_over()
            lives += others
            await self._metrics_server.stop()
            for session in list(self.hub.sessions.values()):
                session.end("this manager stops", reconnect=True)
            await listening.stop()
            for life in lives:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)
            await self.leading.stop()
            if self._channels is not None:
                await self._channels.close()

    @staticmethod
    async def _ended(others: list[asyncio.Task[None]]) -> None:
        """Waits until one of these fails; those that end well have done their work."""
        await asyncio.gather(*others)
        await asyncio.Event().wait()

    async def _settle(self) -> None:
        """A manager that leads alone leads at once; the others serve before they know who does."""
        status = self.store.engine.status()
        if leads(status):
            await self.leading.settle()

    async def _join(self, address: Address) -> None:
        assert self._channels is not None
        await Joining(
            self.store.engine,
            self._channels,
            node_id=self._options.node_id,
            address=address,
            first=self._options.join,
        ).run()

    async def _hand_over(self) -> None:
        """A leader that stops does not make the others wait for an election."""
        try:
            await self._changes.hand_over()
        except RaftError as error:
            _log.warning("stops as leader", reason=error)

    async def _keep_sealed(self) -> None:
        """Seals this manager's data keys with the cluster's unlock key, as soon as that is another one."""
        engine = self.store.engine
        if not isinstance(engine, ReplicatedEngine):
            return
        sealed_with = self._options.unlock_key
        with closing(self.store.signal(Cluster)) as signal:
            while True:
                clusters = self.store.all(Cluster)
                wanted = present_key(clusters) or None
                if clusters and wanted != sealed_with:
                    rotated = bool(wanted and sealed_with)
                    await engine.set_unlock_key(wanted)
                    sealed_with = wanted
                    _log.info("data keys sealed" if wanted else "data keys unsealed", node=self._options.node_id)
                    if rotated:
                        # Whoever had the old unlock key and a copy of the disk has the old data key.
                        await engine.change_data_key()
                        _log.info("data key changed", node=self._options.node_id)
                await signal.wait(_SEAL_CHECK_S)

    async def _ask_leader(self, address: str) -> ClusterInfoResponse:
        """How the cluster is, asked of the leader, for whoever asked here and was admitted."""
        assert self._channels is not None
        stub = ControlStub(self._channels.get(parse_address(address)))
        with rpc_errors("ask the leader"):
            return await stub.ClusterInfo(
                ClusterInfoRequest(),
                timeout=defaults.NODE_CALL_TIMEOUT_MS / 1000,
                metadata=current_call().caller.to_metadata(),
            )

    # ---- leadership ----------------------------------------------------------------------------------

    async def _follow_leadership(self) -> None:
        """Begins and ends the leader's work as leadership comes and goes; ends with the engine."""
        async for change in self.store.engine.leadership():
            self.metrics.leader_changes.inc()
            self.leader.changed(acts_here=False)
            await self.leading.stop()
            if change.is_leader:
                _log.info("leads", term=change.term)
                self.leading.start()
                self.leader.changed(acts_here=True)


def _sending_node_id(_context: object) -> str:
    """The node at the other end: consensus messages are never forwarded, whatever their metadata say."""
    caller = current_call().caller
    return caller.forwarded_by or caller.id
