"""A node of its own for each test: a network namespace as "the node", another as a client outside of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from network.netlab import EchoServer, until, world_name
from orch_network.client import NetworkClient
from orch_network.errors import ConnectionLost

_numbers = itertools.count()


def _can_run() -> str:
    if os.geteuid() != 0:
        return "needs root (network namespaces)"
    for tool in ("ip", "nsenter", "nft"):
        if shutil.which(tool) is None:
            return f"{tool} is missing (Debian: iproute2, util-linux, nftables)"
    return ""


class Lab:
    """The node's namespace with its network process, and a client at 192.0.2.2 beside it."""

    NODE_ADDRESS, CLIENT_ADDRESS = "192.0.2.1", "192.0.2.2"

    def __init__(self) -> None:
        mark = f"{os.getpid()}-{next(_numbers)}"
        self.root = Path(tempfile.mkdtemp(prefix=f"orch-net-test-{mark}-", dir="/run"))
        self.node, self.client = world_name(f"{mark}-node"), world_name(f"{mark}-client")
        self.resolv_conf = self.root / "resolv.conf"
        self.resolv_conf.write_text("")
        self.netd: subprocess.Popen[bytes] | None = None
        self._servers: list[EchoServer] = []
        for name in (self.node, self.client):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self.node, "link", "add", "out0", "type", "veth", "peer", "name", "out0", "netns", self.client)
        for name, address in ((self.node, self.NODE_ADDRESS), (self.client, self.CLIENT_ADDRESS)):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "out0")
            _ip("-n", name, "link", "set", "out0", "up")
        _ip("-n", self.node, "route", "add", "default", "via", self.CLIENT_ADDRESS)

    @property
    def node_path(self) -> str:
        return f"/run/netns/{self.node}"

    @property
    def client_path(self) -> str:
        return f"/run/netns/{self.client}"

    def task_path(self, task_id: str) -> str:
        return f"{self.root}/netns/task-{task_id}"

    def router_path(self, network_id: str) -> str:
        return f"{self.root}/netns/net-{network_id}"

    # ---- the process -----------------------------------------------------------------------------------------------
    def start(self, keeper: socket.socket | None = None) -> None:
        """Start the network process, ``keeper`` (closed here) as its channel; what it says goes to ROOT/netd.log."""
        argv = ["nsenter", f"--net={self.node_path}", "--", sys.executable, "-I", "-m", "orch_network.netd"]
        argv += ["--root", str(self.root), "--node", "test", "--resolv-conf", str(self.resolv_conf)]
        with (self.root / "netd.log").open("ab") as log:
            self.netd = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | ({"ORCH_KEEPER_FD": str(keeper.fileno())} if keeper is not None else {}),
                pass_fds=[keeper.fileno()] if keeper is not None else [],
            )
        if keeper is not None:
            keeper.close()

    def kill(self) -> None:
        """End the process without warning."""
        assert self.netd is not None
        self.netd.kill()
        self.netd.wait()

    def connect(self) -> NetworkClient:
        """A client, as soon as the process answers."""

        def attempt() -> NetworkClient | None:
            assert self.netd is not None
            assert self.netd.poll() is None, (self.root / "netd.log").read_text()
            with contextlib.suppress(ConnectionLost):
                client = NetworkClient(str(self.root / "network.sock"))
                client.stats()
                return client
            return None

        return until(attempt)

    # ---- who speaks ------------------------------------------------------------------------------------------------
    def serve(self, path: str, name: str, port: int, *, kind: str = "tcp") -> EchoServer:
        """A server in a namespace that answers with its name and the client's address."""
        server = EchoServer(path, name, port, kind)
        self._servers.append(server)
        return server

    def close(self) -> None:
        for server in self._servers:
            server.close()
        if self.netd is not None and self.netd.poll() is None:
            self.netd.send_signal(signal.SIGKILL)
            self.netd.wait()
        for path in (self.root / "netns").glob("*"):
            subprocess.run(["umount", "-l", path], check=False, stderr=subprocess.DEVNULL)
        for name in (self.node, self.client):
            _ip("netns", "del", name)
        shutil.rmtree(self.root)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A node without a network process yet; afterwards nothing of it is left."""
    reason = _can_run()
    if reason:
        pytest.skip(reason)
    made = Lab()
    try:
        yield made
    finally:
        made.close()
    assert str(made.root) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def net(lab: Lab) -> Iterator[NetworkClient]:
    """The client of a running network process."""
    lab.start()
    client = lab.connect()
    yield client
    client.close()
