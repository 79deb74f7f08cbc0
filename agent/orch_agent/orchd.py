"""``orchd``, the node daemon: identity, agent, manager process, and the API of the host's own command line.

SIGTERM ends the daemon and the manager; containers, their keeper, the supervisor and the network process live on and
are found again by the next daemon.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from orch_agent.agent import Agent, Places
from orch_agent.bootstrap import founding_objects
from orch_agent.daemon_api import DaemonService
from orch_agent.node_state import Membership, NodeStateFile, new_id
from orch_agent.processes import ChildProcess, manager_command, network_command
from orch_proto import daemon_pb2 as daemon
from orch_proto import daemon_pb2_grpc, defaults
from orch_rpc import logs, servers
from orch_rpc.errors import FailedPrecondition, Unavailable
from orch_runtime.daemon import ensure_keeper, keeper_runs
from orch_runtime.errors import RuntimeFailure
from orch_runtime.kernel.mounts import MS_NODEV, MS_NOSUID, filesystem_magic, mount, unmount

log = logs.get("orchd")
SOCKET_GROUP = "orch"
READY_WAIT_S = 20.0
KEEPER_CHECK_S = 1.0
GARBAGE_THRESHOLD = 20_000  # objects; messages come and go by the thousand, and hardly any is part of a cycle
TMPFS_MAGIC = 0x01021994  # include/uapi/linux/magic.h


@dataclass(frozen=True, slots=True)
class Options:
    """The command line's options."""

    state_dir: Path
    run_dir: Path
    cgroup_parent: str
    hostname: str
    metrics_address: str
    manager_metrics_address: str
    advertise_address: str
    log_level: str


class Orchd:
    """The daemon of one node."""

    def __init__(self, options: Options) -> None:
        self.hostname = options.hostname
        self._options = options
        self._state = NodeStateFile(options.state_dir)
        self._membership = self._state.load()
        self._places = Places(
            state_dir=options.state_dir,
            run_dir=options.run_dir,
            runtime_root=options.run_dir / "runtime",
            network_root=options.run_dir / "network",
            manager_socket=options.run_dir / "manager.sock",
        )
        self._agent: Agent | None = None
        self._manager: ChildProcess | None = None
        self._cluster_tasks: list[asyncio.Task[None]] = []
        self._group: asyncio.TaskGroup
        self._stopping = asyncio.Event()
        self.remove_everything = False
        self._membership_change = asyncio.Lock()

    @property
    def membership(self) -> Membership | None:
        """The node's place in a cluster."""
        return self._membership

    async def run(self) -> None:
        """Serves until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        server = servers.new_server()
        daemon_pb2_grpc.add_DaemonServicer_to_server(DaemonService(self), server)
        await servers.start_on_unix_socket(server, self._options.run_dir / "orchd.sock", group=SOCKET_GROUP)
        log.info("orchd.started", hostname=self.hostname, state_dir=self._options.state_dir)
        try:
            async with asyncio.TaskGroup() as self._group:
                if self._membership is not None:
                    await self._enter(self._membership, bootstrap=None)
                await self._stopping.wait()
                if self.remove_everything:
                    await self._take_down()
                await self._leave_running_parts()
        finally:
            await servers.stop(server, grace_s=1.0)
            log.info("orchd.stopped")

    # ---- the API's questions -----------------------------------------------------------------------

    def describe(self) -> daemon.NodeInfoResponse:
        """The daemon's state."""
        if self._membership is None:
            return daemon.NodeInfoResponse(state=daemon.MEMBERSHIP_STATE_INACTIVE)
        failure = self._manager.failure if self._manager is not None else ""
        connected = self._agent is not None and self._agent.session_connected
        state = daemon.MEMBERSHIP_STATE_ACTIVE if connected else daemon.MEMBERSHIP_STATE_PENDING
        return daemon.NodeInfoResponse(
            state=daemon.MEMBERSHIP_STATE_ERROR if failure else state,
            manager_socket=str(self._places.manager_socket),
            manager_running=self._manager is not None and self._manager.pid is not None,
            session_connected=connected,
            error=failure or (self._agent.last_error if self._agent is not None else ""),
        )

    async def init_cluster(self, request: daemon.InitClusterRequest) -> daemon.InitClusterResponse:
        """Makes a cluster of one manager, this node.

        Raises:
            FailedPrecondition: the node is in a cluster.
            Unavailable: the manager did not come up in time.
        """
        async with self._membership_change:
            if self._membership is not None:
                raise FailedPrecondition(
                    "cannot make a cluster",
                    f"this node is in cluster {self._membership.cluster_id} already",
                    "look at it with orch cluster info, or leave it first with orch cluster leave --force",
                )
            address = request.advertise_address or self._options.advertise_address or own_address()
            membership = Membership(new_id(), new_id(), "manager", address, request.data_path_address or address)
            bootstrap = self._options.state_dir / "bootstrap.pb"
            founding = founding_objects(membership, self.hostname, request)
            bootstrap.write_bytes(founding.SerializeToString())
            self._state.save(membership)
            self._membership = membership
            await self._enter(membership, bootstrap)
            await self._until_connected()
            bootstrap.unlink(missing_ok=True)
            return daemon.InitClusterResponse(node_id=membership.node_id, cluster_id=membership.cluster_id)

    async def leave_cluster(self, *, force: bool) -> list[str]:
        """Stops this node's tasks and forgets the cluster.

        Raises:
            FailedPrecondition: the node is in no cluster, or is its last manager and `force` was not given.
        """
        async with self._membership_change:
            if self._membership is None:
                raise FailedPrecondition(
                    "cannot leave", "this node is in no cluster", "make one with orch cluster init"
                )
            if self._membership.role == "manager" and not force:
                raise FailedPrecondition(
                    "cannot leave",
                    "this node is the last manager: all stacks, secrets and configs would be lost (volumes stay)",
                    "if that is wanted, repeat with --force",
                )
            notes = await self._take_down()
            self._state.forget()
            self._membership = None
            return notes

    def shut_down(self, *, remove_everything: bool) -> None:
        """Asks the daemon to end."""
        self.remove_everything = remove_everything
        self._stopping.set()

    # ---- entering and leaving ----------------------------------------------------------------------

    async def _enter(self, membership: Membership, bootstrap: Path | None) -> None:
        """Starts everything that a member runs."""
        options = self._options
        bootstrap_file = options.state_dir / "bootstrap.pb"
        if bootstrap is None and bootstrap_file.exists():
            bootstrap = bootstrap_file  # the daemon died while the cluster was being made
        for folder in (self._places.runtime_root, self._places.network_root):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(self._ensure_keeper)
        self._cluster_tasks.append(self._group.create_task(self._watch_keeper()))
        if membership.role == "manager":
            command = manager_command(
                state_dir=options.state_dir / "manager",
                run_dir=options.run_dir,
                node_id=membership.node_id,
                bootstrap=bootstrap,
                metrics_address=options.manager_metrics_address,
                log_level=options.log_level,
            )
            self._manager = ChildProcess("manager", command, fatal_exit_codes=(3,))
            self._cluster_tasks.append(self._group.create_task(self._manager.run()))
        self._agent = Agent(membership, self.hostname, self._places, options.metrics_address)
        self._cluster_tasks.append(self._group.create_task(self._agent.run()))

    def _ensure_keeper(self) -> None:
        ensure_keeper(
            root=str(self._places.runtime_root),
            cgroup_parent=self._options.cgroup_parent,
            wards={"network": network_command(root=self._places.network_root, node=self.hostname)},
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

    async def _until_connected(self) -> None:
        assert self._agent is not None
        deadline = asyncio.get_running_loop().time() + READY_WAIT_S
        while not self._agent.session_connected:
            failure = self._manager.failure if self._manager is not None else ""
            if failure or asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    "the cluster was made, but its manager did not come up",
                    failure or self._agent.last_error or f"nothing was heard of it in {READY_WAIT_S:g} s",
                    "look at orchd's log, and at orch cluster info in a moment",
                )
            await asyncio.sleep(0.01)

    async def _take_down(self) -> list[str]:
        """Ends tasks, network, runtime and manager, and removes what they kept, but volumes and images."""
        notes: list[str] = []
        if self._agent is not None:
            notes += await self._agent.stop_all_tasks()
            notes += await self._agent.remove_kernel_state(force=True)
        await self._leave_running_parts()
        for folder in ("manager", "logs", "snapshots", "uploads"):
            await asyncio.to_thread(shutil.rmtree, self._options.state_dir / folder, ignore_errors=True)
        for folder in ("tasks", "runtime", "network"):
            await asyncio.to_thread(shutil.rmtree, self._options.run_dir / folder, ignore_errors=True)
        (self._options.state_dir / "bootstrap.pb").unlink(missing_ok=True)
        return notes

    async def _leave_running_parts(self) -> None:
        """Ends the agent and the manager process; containers and their keeper stay as they are."""
        tasks, self._cluster_tasks = self._cluster_tasks, []
        for task in reversed(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._agent = None
        self._manager = None


def keep_in_memory(run_dir: Path) -> None:
    """Makes the run directory a tmpfs unless it is one: secrets stand below it, and it must not outlive a reboot."""
    if filesystem_magic(str(run_dir)) != TMPFS_MAGIC:
        mount("tmpfs", str(run_dir), "tmpfs", MS_NOSUID | MS_NODEV, "mode=0711")
        log.info("run_dir.mounted", path=run_dir, why="it was not on a tmpfs")


def own_address() -> str:
    """The address by which this host is known to others: that of its default route, else loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address (RFC 5737); a datagram socket sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def read_options(arguments: list[str]) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="orchd", description="The node daemon of orch.")
    parser.add_argument("--state-dir", type=Path, default=Path("/var/lib/orch"), help="what outlives a reboot")
    parser.add_argument("--run-dir", type=Path, default=Path("/run/orch"), help="sockets and records; a tmpfs")
    parser.add_argument("--cgroup-parent", default="/orch", help="cgroup below which containers are put")
    parser.add_argument("--hostname", default=socket.gethostname(), help="the node's name")
    parser.add_argument("--metrics-address", default=f"127.0.0.1:{defaults.NODE_METRICS_PORT}")
    parser.add_argument("--manager-metrics-address", default=f"127.0.0.1:{defaults.MANAGER_METRICS_PORT}")
    parser.add_argument("--advertise-address", default="", help="address by which other nodes reach this one")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return Options(**vars(parser.parse_args(arguments)))


def main() -> None:
    """The entry point."""
    options = read_options(sys.argv[1:])
    logs.configure(level=options.log_level)
    if os.geteuid() != 0:
        sys.exit("orchd: it must run as root: it makes namespaces, mounts and cgroups; start it with sudo")
    for folder in (options.state_dir, options.run_dir):
        folder.mkdir(mode=0o711 if folder == options.run_dir else 0o700, parents=True, exist_ok=True)
    keep_in_memory(options.run_dir)
    lock = os.open(options.state_dir / "orchd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"orchd: another orchd uses {options.state_dir}; stop it first, or name another --state-dir")
    # What is imported lives as long as the process: collections need not walk it again and again.
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    with contextlib.suppress(KeyboardInterrupt):
        orchd = Orchd(options)
        asyncio.run(orchd.run())
        if orchd.remove_everything and options.run_dir.is_mount():
            unmount(str(options.run_dir))


if __name__ == "__main__":
    main()
