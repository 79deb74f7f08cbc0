"""Everything that a node runs while it is in a cluster: keeper, agent, its certificate's renewal, perhaps a manager.

The certificate says what the node is. When a renewed one says something else, the manager process is started or ended;
the agent, and what it runs, goes on.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

from orch_agent.agent import Agent, Places
from orch_agent.certificates import CertificateKeeper
from orch_agent.manager_child import Beginning, ManagerChild, ManagerSettings
from orch_agent.node_state import Membership, NodeStateFile
from orch_agent.processes import network_command
from orch_proto import objects_pb2 as objects
from orch_proto import specs_pb2 as specs
from orch_rpc import logs
from orch_rpc.certificates import CertificateRole
from orch_rpc.errors import Unavailable
from orch_rpc.identity import Identity, IdentityStore
from orch_rpc.tls import ManagerChannels
from orch_runtime.daemon import ensure_keeper, keeper_runs
from orch_runtime.errors import RuntimeFailure

log = logs.get("member")
KEEPER_CHECK_S = 1.0
READY_WAIT_S = 20.0
READY_POLL_S = 0.01
#: The new certificate of a manager that was demoted comes within this time, when the cluster is well.
DEMOTION_WAIT_S = 10.0
_ROLES = {
    specs.NODE_ROLE_MANAGER: CertificateRole.MANAGER,
    specs.NODE_ROLE_WORKER: CertificateRole.WORKER,
}


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What the daemon was started with, as far as members need it."""

    hostname: str
    cgroup_parent: str
    metrics_address: str
    manager_metrics_address: str
    log_level: str


class Member:
    """A node in a cluster.

    Args:
        membership: its place there.
        identities: its certificate on disk.
        places: its folders and sockets.
        options: of the daemon.
        state: where the membership is kept.
        group: owns what is started.
    """

    def __init__(
        self,
        membership: Membership,
        *,
        identities: IdentityStore,
        places: Places,
        options: NodeOptions,
        state: NodeStateFile,
        group: asyncio.TaskGroup,
    ) -> None:
        self.membership = membership
        self._places = places
        self._options = options
        self._state = state
        self._group = group
        self._certificates = CertificateKeeper(identities, lambda: self.membership.managers)
        self._channels = ManagerChannels(self._certificates.source)
        self.manager: ManagerChild | None = None
        self.agent = Agent(
            membership, options.hostname, places, options.metrics_address, dial=self._channels.only, node=self
        )
        self._lives: list[asyncio.Task[None]] = []
        self._role_change = asyncio.Lock()

    @property
    def identity(self) -> Identity:
        """The node's certificate in force."""
        return self._certificates.source.current()

    @property
    def is_manager(self) -> bool:
        """Whether the certificate says so."""
        return self.identity.role is CertificateRole.MANAGER

    @property
    def has_expired(self) -> bool:
        """Whether the certificate is past its end: nobody speaks to this node any more."""
        return self.certificate_ends_unix_ms <= time.time_ns() // 1_000_000

    @property
    def certificate_ends_unix_ms(self) -> int:
        """When the certificate ends."""
        return self.identity.facts.not_after_unix_ms

    @property
    def manager_socket(self) -> Path:
        """Where the host's command line reaches the manager."""
        return self._places.manager_socket

    # ---- life --------------------------------------------------------------------------------------

    async def start(self, beginning: Beginning) -> None:
        """Starts everything; returns before any of it is connected.

        Raises:
            RuntimeFailure: the keeper could not be started.
        """
        for folder in (self._places.runtime_root, self._places.network_root):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.is_manager:
            # First, as it takes longest; the agent tries until it is there.
            self._start_manager(beginning)
        await asyncio.to_thread(self._ensure_keeper)
        self._lives = [
            self._group.create_task(self._watch_keeper(), name="keeper-watch"),
            self._group.create_task(self.agent.run(), name="agent"),
            self._group.create_task(self._certificates.run(self._renewed), name="certificate"),
        ]

    async def until_connected(self, what: str) -> None:
        """Waits for the session with the leader.

        Args:
            what: was done, in the words of an error: "the cluster was made, but ...".

        Raises:
            Unavailable: it did not come about in time.
        """
        deadline = asyncio.get_running_loop().time() + READY_WAIT_S
        seen = False
        while not self.agent.session_connected:
            failure = self.manager.why_not_running if self.manager is not None else ""
            if failure or asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    what,
                    failure or self.agent.last_error or f"nothing was heard of a manager in {READY_WAIT_S:g} s",
                    "look at orchd's log, and at orch node info in a moment",
                )
            if not seen and self.is_manager and self.manager_socket.exists():
                seen = True
                self.agent.turn_to_managers_now()
            await asyncio.sleep(READY_POLL_S)
        if self.manager is not None:
            self.manager.has_begun()

    async def until_manager_serves(self, what: str) -> None:
        """Waits until the manager process listens.

        Raises:
            Unavailable: it does not in time, or refused to run.
        """
        deadline = asyncio.get_running_loop().time() + READY_WAIT_S
        while not (self.manager is not None and self.manager.running and self.manager_socket.exists()):
            failure = self.manager.why_not_running if self.manager is not None else "this node is no manager any more"
            if failure or asyncio.get_running_loop().time() > deadline:
                why = failure or f"it did not come up in {READY_WAIT_S:g} s"
                raise Unavailable(what, why, "look at orchd's log, and at orch node info")
            await asyncio.sleep(READY_POLL_S)
        self.manager.has_begun()
        self.agent.turn_to_managers_now()

    async def ceases_to_be_manager(self) -> bool:
        """Whether this node is no manager any more, or not in a moment: its new certificate may be on its way."""
        deadline = asyncio.get_running_loop().time() + DEMOTION_WAIT_S
        while True:
            if not self.is_manager or asyncio.get_running_loop().time() > deadline:
                return not self.is_manager
            await asyncio.sleep(READY_POLL_S)

    async def stop(self) -> None:
        """Ends agent and manager; containers and their keeper stay as they are."""
        lives, self._lives = self._lives, []
        for life in reversed(lives):
            life.cancel()
        if lives:
            await asyncio.wait(lives)
        if self.manager is not None:
            await self.manager.stop()
            self.manager = None
        await self._channels.close()

    async def take_down(self) -> list[str]:
        """Ends tasks, network, runtime and manager, and removes what they kept, but volumes and images."""
        notes = await self.agent.stop_all_tasks()
        await self.agent.say_farewell()
        notes += await self.agent.remove_kernel_state(force=True)
        await self.stop()
        for folder in ("manager", "logs", "snapshots", "uploads"):
            await asyncio.to_thread(shutil.rmtree, self._places.state_dir / folder, ignore_errors=True)
        for folder in ("tasks", "runtime", "network"):
            await asyncio.to_thread(shutil.rmtree, self._places.run_dir / folder, ignore_errors=True)
        return notes

    # ---- what the leader says ----------------------------------------------------------------------

    def node_changed(self, node: objects.Node) -> None:
        """The leader changed this node's object: a wanted role that the certificate does not have asks for another."""
        wanted = _ROLES.get(node.role or node.spec.desired_role)
        if wanted is not None and wanted is not self.identity.role:
            log.info("role.changes", wanted=wanted, now=self.identity.role)
            self._certificates.renew_now()
        elif node.certificate.state == objects.ISSUANCE_STATE_ROTATE:
            self._certificates.renew_now()

    def managers_changed(self, addresses: tuple[str, ...]) -> None:
        """The managers to turn to after a restart."""
        self.membership = replace(self.membership, managers=addresses)
        self._state.save(self.membership)

    async def _renewed(self, identity: Identity) -> None:
        """A new certificate: the manager process follows its role."""
        async with self._role_change:
            if identity.role is CertificateRole.MANAGER and self.manager is None:
                log.info("promoted", node=self.membership.node_id)
                self._start_manager(Beginning(join=self._another_manager()))
            elif identity.role is CertificateRole.WORKER and self.manager is not None:
                log.info("demoted", node=self.membership.node_id)
                await self.manager.stop()
                self.manager = None
                await asyncio.to_thread(shutil.rmtree, self._places.state_dir / "manager", ignore_errors=True)

    # ---- processes ---------------------------------------------------------------------------------

    def _start_manager(self, beginning: Beginning) -> None:
        settings = ManagerSettings(
            state_dir=self._places.state_dir,
            run_dir=self._places.run_dir,
            node_id=self.membership.node_id,
            listen_address=self.membership.listen_address,
            advertise_address=self.membership.advertise_address,
            metrics_address=self._options.manager_metrics_address,
            log_level=self._options.log_level,
        )
        others = [address for address in self.membership.managers if address != self.membership.advertise_address]
        if beginning == Beginning() and others:
            # A manager that died before it had joined joins now; one that has state ignores this.
            beginning = Beginning(join=others[0])
        self.manager = ManagerChild(settings, beginning, self._group)

    def _another_manager(self) -> str:
        own = self.membership.advertise_address
        return next((address for address in self.membership.managers if address != own), "")

    def _ensure_keeper(self) -> None:
        ensure_keeper(
            root=str(self._places.runtime_root),
            cgroup_parent=self._options.cgroup_parent,
            wards={"network": network_command(root=self._places.network_root, node=self._options.hostname)},
        )

    async def _watch_keeper(self) -> None:
        """Starts the keeper again if it dies, which nothing but a defect or an operator can bring about."""
        while True:
            await asyncio.sleep(KEEPER_CHECK_S)
            if keeper_runs(str(self._places.runtime_root)):
                continue
            log.error("keeper.died", why="nobody knows", then="containers run on; it is started again")
            try:
                await asyncio.to_thread(self._ensure_keeper)
            except (RuntimeFailure, OSError, subprocess.SubprocessError) as error:
                log.warning("keeper.not_started", why=str(error))
