"""The agent: everything on this node that is there because it is in a cluster, put together.

Nothing here decides anything; it makes the parts, joins them, and owns their tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from orch_agent.calls import NodeCalls
from orch_agent.description import describe_node
from orch_agent.errors import LinkLost, LinkRefused
from orch_agent.image_collection import ImageCollection, WaterMarks
from orch_agent.image_peers import ImagePeers
from orch_agent.image_pulls import ImagePulls
from orch_agent.image_workers import ImageWorkers
from orch_agent.images.snapshots import Snapshots
from orch_agent.images.store import ImageStore
from orch_agent.managers import ManagerLine
from orch_agent.metrics import NodeCollector, serve_metrics
from orch_agent.network_sync import Here, NetworkSync
from orch_agent.node_state import Membership
from orch_agent.packets import JsonObject, PacketLink
from orch_agent.relay import RelayServer
from orch_agent.rootless.ports import PortForwarder
from orch_agent.runtime import Runtime
from orch_agent.session import Session
from orch_agent.stats import StatsReader
from orch_agent.task.controller import Surroundings
from orch_agent.task.preparation import Preparation
from orch_agent.task.record import Records
from orch_agent.task.templates import NodeFacts
from orch_agent.volumes import VolumeStore
from orch_agent.worker.assignments import Holdings
from orch_agent.worker.reporter import StatusReporter
from orch_agent.worker.worker import Worker
from orch_proto import dispatcher_pb2 as dispatcher
from orch_proto import node_pb2 as calls
from orch_proto import objects_pb2 as objects
from orch_proto.version import VERSION
from orch_rpc import logs

log = logs.get("agent")
LEAVE_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are on this node."""

    state_dir: Path
    run_dir: Path
    runtime_root: Path
    network_root: Path
    manager_socket: Path
    #: Where slirp4netns takes orders for an orchd that runs without root; None for one with root.
    slirp_socket: Path | None = None
    #: What the node allows containers beyond their walls: words of `orch_proto.privileges`.
    policies: tuple[str, ...] = ()
    #: When images that nothing wants are removed; None: when told alone.
    image_marks: WaterMarks | None = None


class NodeEvents(Protocol):
    """What the leader says of the node rather than of its tasks; and who the node is."""

    @property
    def certificate_ends_unix_ms(self) -> int:
        """When the node's certificate ends."""

    def node_changed(self, node: objects.Node) -> None:
        """The node's own object, as it is now."""

    def managers_changed(self, addresses: tuple[str, ...]) -> None:
        """The cluster's managers, when they are others than before."""


class Agent:
    """The node's agent, from joining to leaving.

    Args:
        membership: the node's place in the cluster.
        hostname: its name.
        places: its folders and sockets.
        metrics_address: where /metrics is served, ``host:port``; empty: nowhere.
        dial: makes the channel to the manager at an address.
        node: told what the leader says of the node itself.
    """

    def __init__(
        self,
        membership: Membership,
        hostname: str,
        places: Places,
        metrics_address: str,
        *,
        dial: Callable[[str], grpc.aio.Channel],
        node: NodeEvents,
    ) -> None:
        self._membership = membership
        self._events = node
        self._places = places
        self._metrics_address = metrics_address
        description = describe_node(hostname, membership.data_path_address)
        self._node = NodeFacts(membership.node_id, hostname, "linux", description.platform.architecture)
        self._hostname = hostname
        self._images = ImageStore(places.state_dir / "images")
        self._snapshots = Snapshots(places.state_dir / "snapshots")
        self._volumes = VolumeStore(places.state_dir / "volumes")
        self._records = Records(places.run_dir / "tasks")
        self._reporter = StatusReporter()
        self._runtime_link = PacketLink(
            "runtime",
            places.runtime_root / "runtime.sock",
            on_event=self._runtime_event,
            on_connected=self._runtime_connected,
        )
        self._network_link = PacketLink(
            "network",
            places.network_root / "network.sock",
            on_connected=self._network_connected,
        )
        self._runtime = Runtime(self._runtime_link)
        # Without root the node is behind a translator of addresses, which carries no overlay.
        is_rootless = places.slirp_socket is not None
        data_path = "" if is_rootless else membership.data_path_address
        here = Here(membership.node_id) if is_rootless else Here.on_this_host(membership.node_id, data_path)
        self._network = NetworkSync(self._network_link, here, self._attached_tasks, forwarded=is_rootless)
        self._stats = StatsReader(self._runtime)
        workers = ImageWorkers()
        peers = ImagePeers(
            membership.node_id, self._images, workers, places.state_dir / "uploads", lambda: self._session.channel
        )
        self._preparation = Preparation(
            node=self._node,
            held=self._held,
            images=self._images,
            snapshots=self._snapshots,
            volumes=self._volumes,
            network=self._network_link,
            records=self._records,
            log_folder=places.state_dir / "logs",
            host_gateway=membership.host,
            pull=ImagePulls(workers, self._images.root).pull,
            fetch=peers.fetch,
            policies=places.policies,
        )
        self._managers = ManagerLine(membership.managers)
        self._session = Session(
            node_id=membership.node_id,
            managers=self._managers,
            dial=dial,
            describe=lambda: describe_node(hostname, data_path, places.policies),
            reporter=self._reporter,
            handler=self,
            version=VERSION,
        )
        self._relay = RelayServer(
            node=self._node,
            images=self._images,
            preparation=self._preparation,
            controllers=lambda: self.worker.controllers,
            scratch=places.state_dir / "uploads",
            runtime_socket=places.runtime_root / "runtime.sock",
            workers=workers,
            peers=peers,
        )
        self._collection = ImageCollection(
            membership.node_id,
            self._images,
            self._images_in_use,
            lambda: self._session.channel,
            marks=places.image_marks,
        )
        self._calls = NodeCalls(
            collection=self._collection,
            node=self._node,
            images=self._images,
            volumes=self._volumes,
            stats=self._stats,
            images_in_use=self._images_in_use,
            volumes_in_use=self._volumes_in_use,
            snapshots=self._snapshots,
            tasks=self._tasks_alive,
        )
        self.worker: Worker

    @property
    def session_connected(self) -> bool:
        """Whether the leader hears this node."""
        return self._session.facts.connected

    @property
    def last_error(self) -> str:
        """Why there is no session, if there is none."""
        return "" if self.session_connected else self._session.facts.last_error

    async def run(self) -> None:
        """Serves until cancelled; containers go on without it."""
        stop_metrics: Callable[[], None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                self.worker = Worker(
                    around=Surroundings(
                        node_id=self._membership.node_id,
                        runtime=self._runtime,
                        preparation=self._preparation,
                        records=self._records,
                        report=self._reporter.report,
                    ),
                    preparation=self._preparation,
                    records=self._records,
                    reporter=self._reporter,
                    network=self._network,
                    group=group,
                )
                if self._metrics_address:
                    stop_metrics = serve_metrics(self._collector(), self._metrics_address)
                group.create_task(self._runtime_link.run())
                group.create_task(self._network_link.run())
                group.create_task(self._network.run())
                if self._places.slirp_socket is not None:
                    group.create_task(PortForwarder(self._places.slirp_socket, self._network.published).run())
                group.create_task(self._session.run())
                group.create_task(self._collection.run())
                group.create_task(self.worker.sweep())
                group.create_task(self.worker.stand_in())
        finally:
            if stop_metrics is not None:
                await asyncio.to_thread(stop_metrics)

    def turn_to_managers_now(self) -> None:
        """A manager has come up: the session need not wait for its next attempt."""
        self._session.try_now()

    async def stop_all_tasks(self) -> list[str]:
        """Ends every task of the node, for a node that leaves; returns notes on what did not end in time."""
        controllers = list(self.worker.controllers.values())
        for controller in controllers:
            controller.give_up()
        deadline = asyncio.get_running_loop().time() + LEAVE_WAIT_S
        while any(not controller.is_put_away for controller in controllers):
            if asyncio.get_running_loop().time() > deadline:
                return [
                    f"task {one.task.id} did not end in {LEAVE_WAIT_S:g} s" for one in controllers if not one.is_over
                ]
            await asyncio.sleep(0.02)
        return []

    async def say_farewell(self) -> None:
        """See `Session.say_farewell`."""
        await self._session.say_farewell()

    async def remove_kernel_state(self, *, force: bool) -> list[str]:
        """Ends the network process with all it made, then the supervisor and the keeper; returns notes on failures."""
        notes = []
        for link, fields in ((self._network_link, {"remove": True}), (self._runtime_link, {"force": force})):
            try:
                await link.call("shutdown", fields, timeout_s=15.0)
            except (LinkLost, LinkRefused) as error:
                notes.append(f"{link.name}: {error}")
        return notes

    # ---- session handler ---------------------------------------------------------------------------

    def assignments(self, received: dispatcher.AssignmentSet) -> None:
        """Takes an assignment set."""
        self.worker.assignments(received)

    def session_opened(self, opened: dispatcher.SessionOpened) -> None:
        """A session has begun."""
        self.managers_changed(opened.managers)
        self._events.node_changed(opened.node)

    def session_lost(self) -> None:
        """The session has ended."""
        self.worker.session_lost()

    def managers_changed(self, addresses: Iterable[str]) -> None:
        """A manager named all managers."""
        if self._managers.learned(addresses):
            self._events.managers_changed(self._managers.addresses)

    def node_changed(self, node: objects.Node) -> None:
        """The leader changed this node's object; what matters of it comes as assignments."""
        log.debug("node.changed", availability=node.spec.availability)
        self._events.node_changed(node)

    async def call(self, call: calls.NodeCall) -> calls.NodeCallResult:
        """Answers a small question."""
        return await self._calls.answer(call)

    async def relay(self, relay_id: str, channel: grpc.aio.Channel) -> None:
        """Serves a long call."""
        await self._relay.serve(relay_id, channel)

    # ---- inside ------------------------------------------------------------------------------------

    def _runtime_event(self, event: JsonObject) -> None:
        self.worker.runtime_event(event)

    async def _runtime_connected(self) -> None:
        await self.worker.runtime_connected()

    async def _network_connected(self) -> None:
        await self._network.connected()

    def _attached_tasks(self) -> list[str]:
        return [task_id for task_id, controller in self.worker.controllers.items() if not controller.is_over]

    def _held(self) -> Holdings:
        return self.worker.held

    def _collector(self) -> NodeCollector:
        return NodeCollector(
            loop=asyncio.get_running_loop(),
            controllers=lambda: self.worker.controllers,
            stats=self._stats,
            facts=lambda: self._session.facts,
            certificate_ends_unix_ms=lambda: self._events.certificate_ends_unix_ms,
            network=self._network_link,
            image_bytes_freed=lambda: self._collection.freed_bytes,
        )

    def _images_in_use(self) -> set[str]:
        return {
            controller.image_id
            for controller in list(self.worker.controllers.values())
            if controller.image_id and not controller.is_put_away
        }

    def _tasks_alive(self) -> set[str]:
        return {task_id for task_id, controller in list(self.worker.controllers.items()) if not controller.is_put_away}

    def _volumes_in_use(self) -> set[str]:
        return {
            mount.source
            for controller in list(self.worker.controllers.values())
            if not controller.is_put_away
            for mount in controller.task.spec.container.mounts
        }
