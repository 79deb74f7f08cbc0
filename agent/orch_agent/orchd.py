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
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from orch_agent import certificates
from orch_agent.agent import Places
from orch_agent.bootstrap import founding_objects
from orch_agent.daemon_api import DaemonService
from orch_agent.founding_trust import found_trust
from orch_agent.image_collection import WaterMarks
from orch_agent.manager_child import Beginning
from orch_agent.member import Member, NodeOptions
from orch_agent.node_addresses import AddressRequest, NodeAddresses, node_addresses
from orch_agent.node_state import Membership, NodeStateFile, new_id
from orch_agent.restoring import restore_state
from orch_agent.rootless import outside, places
from orch_agent.rootless.errors import RootlessError
from orch_agent.stepping_down import step_down
from orch_proto import daemon_pb2 as daemon
from orch_proto import daemon_pb2_grpc, defaults, privileges
from orch_proto import specs_pb2 as specs
from orch_rpc import logs, servers
from orch_rpc.addresses import parse_address
from orch_rpc.authorization import Authorization
from orch_rpc.errors import FailedPrecondition, InvalidArgument, Unavailable
from orch_rpc.identity import IdentityStore
from orch_runtime.kernel.mounts import MS_NODEV, MS_NOSUID, filesystem_magic, mount, unmount

log = logs.get("orchd")
SOCKET_GROUP = "orch"
GARBAGE_THRESHOLD = 20_000  # objects; messages come and go by the thousand, and hardly any is part of a cycle
TMPFS_MAGIC = 0x01021994  # include/uapi/linux/magic.h
LOCK_WAIT_S = 5.0
LOCK_POLL_S = 0.02

ALLOW_VARIABLE = "ORCHD_ALLOW"


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
    listen_address: str
    log_level: str
    slirp_socket: Path | None = None
    allow: tuple[str, ...] = ()
    image_gc: WaterMarks | None = None


class Orchd:
    """The daemon of one node: what it is in, or is not in yet."""

    def __init__(self, options: Options) -> None:
        self.hostname = options.hostname
        self._options = options
        self._state = NodeStateFile(options.state_dir)
        self._identities = IdentityStore(options.state_dir)
        self._places = Places(
            state_dir=options.state_dir,
            run_dir=options.run_dir,
            runtime_root=options.run_dir / "runtime",
            network_root=options.run_dir / "network",
            manager_socket=options.run_dir / "manager.sock",
            slirp_socket=options.slirp_socket,
            policies=tuple(options.allow),
            image_marks=options.image_gc,
        )
        self._bootstrap = options.state_dir / "bootstrap.pb"
        self._member: Member | None = None
        self._group: asyncio.TaskGroup
        self._stopping = asyncio.Event()
        self.remove_everything = False
        self._membership_change = asyncio.Lock()

    @property
    def state_dir(self) -> Path:
        """What outlives a reboot."""
        return self._options.state_dir

    @property
    def member(self) -> Member | None:
        """The node in its cluster; None while it is in none."""
        return self._member

    async def run(self) -> None:
        """Serves until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        server = servers.new_server(interceptors=[Authorization()])
        daemon_pb2_grpc.add_DaemonServicer_to_server(DaemonService(self), server)
        await servers.start_on_unix_socket(server, self._options.run_dir / "orchd.sock", group=SOCKET_GROUP)
        log.info("orchd.started", hostname=self.hostname, state_dir=self._options.state_dir)
        try:
            async with asyncio.TaskGroup() as self._group:
                membership = self._state.load()
                if membership is not None:
                    # A daemon that died while a cluster was being made goes on with that.
                    await self._enter(
                        membership, Beginning(bootstrap=self._bootstrap if self._bootstrap.exists() else None)
                    )
                await self._stopping.wait()
                if self._member is not None:
                    await (self._member.take_down() if self.remove_everything else self._member.stop())
        finally:
            await servers.stop(server, grace_s=1.0)
            log.info("orchd.stopped")

    # ---- making, joining and leaving a cluster -------------------------------------------------------

    async def init_cluster(self, request: daemon.InitClusterRequest) -> daemon.InitClusterResponse:
        """Makes a cluster of one manager, this node.

        Raises:
            FailedPrecondition: the node is in a cluster.
            InvalidArgument: an address cannot be used.
            Unavailable: the manager did not come up in time.
        """
        async with self._membership_change:
            self._refuse_member("cannot make a cluster")
            addresses = self._addresses(request)
            membership = addresses.membership(new_id(), new_id())
            founding = await asyncio.to_thread(found_trust, membership)
            changes = founding_objects(membership, self.hostname, request, founding)
            write_privately(self._bootstrap, changes.SerializeToString())  # the root's key is in it
            self._identities.save(founding.identity)
            self._state.save(membership)
            member = await self._enter(membership, Beginning(bootstrap=self._bootstrap))
            await member.until_connected("the cluster was made, but its manager did not come up")
            self._bootstrap.unlink(missing_ok=True)
            return daemon.InitClusterResponse(
                node_id=membership.node_id,
                cluster_id=membership.cluster_id,
                worker_join_command=self._join_command(founding.worker_token, membership),
            )

    async def join_cluster(self, request: daemon.JoinClusterRequest) -> daemon.JoinClusterResponse:
        """Joins the cluster that a token is for, in the role that it is for.

        A node whose certificate has expired joins its own cluster again: it keeps its id, its tasks and its volumes.

        Raises:
            FailedPrecondition: the node is in another cluster.
            InvalidArgument: an address or the token cannot be used.
            Unauthenticated, PermissionDenied: the cluster does not take the token.
            Unavailable: no manager answered.
        """
        async with self._membership_change:
            if self._options.slirp_socket is not None:
                raise FailedPrecondition(
                    "cannot join a cluster",
                    "this orchd runs without root: other nodes cannot reach its network, so it is a cluster by itself",
                    "run orchd as root to join, or make a cluster of this node alone with orch cluster init",
                )
            remote = parse_address(request.remote_address, "the address of the cluster's manager")
            previous = self._member
            if previous is not None and not previous.has_expired:
                self._refuse_member("cannot join a cluster")
            addresses = self._addresses(request)
            joined = await certificates.join(
                remote,
                request.token,
                hostname=self.hostname,
                previous=previous.identity if previous is not None else None,
                availability=request.availability,
            )
            identity = joined.identity
            if previous is not None:
                membership = replace(previous.membership, managers=joined.managers)
                await previous.stop()
            else:
                founded = addresses.membership(identity.name, identity.cluster_id)
                membership = replace(founded, managers=joined.managers)
            self._identities.save(identity)
            self._state.save(membership)
            member = await self._enter(membership, Beginning(join=str(remote)))
            await member.until_connected("the node has joined, but the cluster's leader does not hear it")
            role = specs.NODE_ROLE_MANAGER if member.is_manager else specs.NODE_ROLE_WORKER
            return daemon.JoinClusterResponse(node_id=identity.name, role=role)

    async def leave_cluster(self, *, force: bool) -> list[str]:
        """Stops this node's tasks and forgets the cluster.

        Raises:
            FailedPrecondition: the node is in no cluster, or is a manager that the others need.
        """
        async with self._membership_change:
            member = self._in_cluster("cannot leave")
            notes = []
            if member.is_manager:
                try:
                    notes += await step_down(self._places.manager_socket, member.membership, force=force)
                except Unavailable:
                    # Its manager does not answer: perhaps as the node was demoted this moment.
                    if not await member.ceases_to_be_manager():
                        raise
            notes += await member.take_down()
            self._member = None
            self._bootstrap.unlink(missing_ok=True)
            self._identities.forget()
            self._state.forget()
            return notes

    async def unlock_cluster(self, key: str) -> None:
        """Gives a locked manager its key.

        Raises:
            FailedPrecondition: the manager is not locked.
            InvalidArgument: the key does not open it.
        """
        member = self._in_cluster("cannot unlock")
        manager = member.manager
        if manager is None or not manager.locked:
            raise FailedPrecondition(
                "cannot unlock", "the manager of this node is not locked", "see its state: orch node info"
            )
        await manager.unlock(key)
        try:
            await member.until_manager_serves("cannot unlock")
        except Unavailable as error:
            if manager.locked:
                why = "the key does not open this manager's state"
                todo = "another manager shows the present key: orch cluster lock"
                raise InvalidArgument("cannot unlock", why, todo) from error
            raise

    async def recover_cluster(self) -> daemon.RecoverClusterResponse:
        """Has this node's manager go on alone, after most managers were lost for good.

        Raises:
            FailedPrecondition: this node is no manager.
        """
        async with self._membership_change:
            member = self._in_cluster("cannot recover the cluster")
            if member.manager is None:
                raise FailedPrecondition(
                    "cannot recover the cluster", "this node is no manager", "run it on a manager that is left"
                )
            own = member.membership
            member.managers_changed((own.advertise_address,))
            await member.manager.go_on_alone()
            await member.until_manager_serves("the manager does not go on alone yet")
            return daemon.RecoverClusterResponse(node_id=own.node_id, cluster_id=own.cluster_id)

    async def restore_cluster(self, request: daemon.RestoreClusterRequest, backup: Path) -> Membership:
        """Makes a cluster of one manager, this node, from a backup.

        Args:
            request: the addresses, as for a new cluster.
            backup: a whole backup; it is taken over.

        Raises:
            FailedPrecondition: the node is in a cluster.
            InvalidArgument: it is no backup.
        """
        async with self._membership_change:
            self._refuse_member("cannot restore a cluster")
            addresses = self._addresses(request)
            membership = await restore_state(backup, self._options.state_dir, addresses)
            self._state.save(membership)
            member = await self._enter(membership, Beginning())
            await member.until_connected("the backup was read, but the manager did not come up")
            return membership

    def shut_down(self, *, remove_everything: bool) -> None:
        """Asks the daemon to end."""
        self.remove_everything = remove_everything
        self._stopping.set()

    # ---- inside ------------------------------------------------------------------------------------

    def _join_command(self, token: str, membership: Membership) -> str:
        """What brings another node into the cluster; empty where nothing can."""
        if self._options.slirp_socket is not None:
            return ""
        return f"orch cluster join --token {token} {membership.advertise_address}"

    async def _enter(self, membership: Membership, beginning: Beginning) -> Member:
        options = self._options
        self._member = Member(
            membership,
            identities=self._identities,
            places=self._places,
            options=NodeOptions(
                hostname=options.hostname,
                cgroup_parent=options.cgroup_parent,
                metrics_address=options.metrics_address,
                manager_metrics_address=options.manager_metrics_address,
                log_level=options.log_level,
            ),
            state=self._state,
            group=self._group,
        )
        await self._member.start(beginning)
        return self._member

    def _in_cluster(self, what: str) -> Member:
        if self._member is None:
            raise FailedPrecondition(
                what,
                "this node is in no cluster",
                "make one with orch cluster init, or join one with orch cluster join",
            )
        return self._member

    def _refuse_member(self, what: str) -> None:
        if self._member is not None:
            raise FailedPrecondition(
                what,
                f"this node is in cluster {self._member.membership.cluster_id} already",
                "look at it with orch cluster info, or leave it first with orch cluster leave",
            )

    def _addresses(self, request: AddressRequest) -> NodeAddresses:
        return node_addresses(
            request, advertise_default=self._options.advertise_address, listen_default=self._options.listen_address
        )


def write_privately(path: Path, content: bytes) -> None:
    """Writes a file that nobody but root may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as handle:
        handle.write(content)


def keep_in_memory(run_dir: Path) -> None:
    """Makes the run directory a tmpfs unless it is one: secrets stand below it, and it must not outlive a reboot."""
    if filesystem_magic(str(run_dir)) != TMPFS_MAGIC:
        mount("tmpfs", str(run_dir), "tmpfs", MS_NOSUID | MS_NODEV, "mode=0711")
        log.info("run_dir.mounted", path=run_dir, why="it was not on a tmpfs")


def _policy(word: str) -> str:
    why = privileges.check_policy(word)
    if why:
        raise argparse.ArgumentTypeError(why)
    return word


def _water_marks(text: str) -> WaterMarks | None:
    try:
        return WaterMarks.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def allowed_by_environment(environment: Mapping[str, str]) -> list[str]:
    """The policies of ``ORCHD_ALLOW``; --allow adds to them.

    Raises:
        SystemExit: a word is none.
    """
    words = environment.get(ALLOW_VARIABLE, "").split()
    for word in words:
        if why := privileges.check_policy(word):
            sys.exit(f"orchd: {ALLOW_VARIABLE}: {why}")
    return words


def read_options(arguments: list[str]) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="orchd", description="The node daemon of orch.")
    parser.add_argument(
        "--state-dir", type=Path, default=None, help="what outlives a reboot (/var/lib/orch; ~/.local/share/orch)"
    )
    parser.add_argument(
        "--run-dir", type=Path, default=None, help="sockets and records; a tmpfs (/run/orch; $XDG_RUNTIME_DIR/orch)"
    )
    parser.add_argument("--cgroup-parent", default="/orch", help="cgroup below which containers are put")
    parser.add_argument("--hostname", default=socket.gethostname(), help="the node's name")
    parser.add_argument("--metrics-address", default=f"127.0.0.1:{defaults.NODE_METRICS_PORT}")
    parser.add_argument("--manager-metrics-address", default=f"127.0.0.1:{defaults.MANAGER_METRICS_PORT}")
    parser.add_argument(
        "--advertise-address", default="", metavar="HOST[:PORT]", help="where other nodes reach this one"
    )
    listen = f"0.0.0.0:{defaults.MANAGER_PORT}"
    parser.add_argument(
        "--listen-address", default=listen, metavar="HOST[:PORT]", help="where this node listens as a manager"
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=allowed_by_environment(os.environ),
        type=_policy,
        metavar="POLICY",
        help="what containers may have beyond their walls: privileged, host-network, seccomp, device:/dev/NAME, "
        f"bind:/PATH; may be repeated; else what {ALLOW_VARIABLE} has, with spaces between",
    )
    parser.add_argument(
        "--image-gc",
        type=_water_marks,
        default=WaterMarks(defaults.IMAGE_GC_HIGH_PERCENT, defaults.IMAGE_GC_LOW_PERCENT),
        metavar="HIGH,LOW",
        help="remove images that nothing wants when their disk is fuller than HIGH per cent, until it is at LOW; or "
        f"'off' (default {defaults.IMAGE_GC_HIGH_PERCENT},{defaults.IMAGE_GC_LOW_PERCENT})",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    # How the half outside of the namespaces tells the one inside that it is there.
    parser.add_argument("--slirp-socket", type=Path, default=None, help=argparse.SUPPRESS)
    values = vars(parser.parse_args(arguments))
    as_root = os.geteuid() == 0
    values["state_dir"] = values["state_dir"] or (Path("/var/lib/orch") if as_root else places.state_dir(os.environ))
    values["run_dir"] = values["run_dir"] or (Path("/run/orch") if as_root else places.run_dir(os.environ))
    return Options(**values)


def _locked(path: Path) -> bool:
    """Takes the lock of a state folder for the life of this process; False when another one keeps it.

    A process that was killed a moment ago has it until its last thread has left the kernel, which a disk may delay.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOCK_POLL_S)
        else:
            return True


def main() -> None:
    """The entry point."""
    try:
        options = read_options(sys.argv[1:])
    except RootlessError as error:
        sys.exit(f"orchd: {error}")
    logs.configure(level=options.log_level)
    if os.geteuid() != 0:
        # A process of its own kind: it has to be small and single-threaded, and to outlive nothing.
        command = outside.command(options.state_dir, options.run_dir, sys.argv[1:])
        os.execv(command[0], command)  # noqa: S606 -- ourselves
    for folder in (options.state_dir, options.run_dir):
        folder.mkdir(mode=0o711 if folder == options.run_dir else 0o700, parents=True, exist_ok=True)
    if options.slirp_socket is None:
        keep_in_memory(options.run_dir)  # without root it is seen to before this, folder by folder
    if not _locked(options.state_dir / "orchd.lock"):
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
