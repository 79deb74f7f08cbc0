"""What the network process promises about crashes, drift and leaks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from network.netlab import BACK, FRONT, addresses, ask, resolve, service, task, tool, until
from orch_network.client import NetworkClient
from orch_network.errors import Conflict, ConnectionLost, InvalidRequest, NetworkFailure, NotFound
from orch_network.protocol import Network, PublishedPort, Task, TaskAddress
from orch_network.router import task_link_name

if TYPE_CHECKING:
    from network.conftest import Lab

WEB = service("web", "10.0.1.2", ("web0", "10.0.1.10"), ("web1", "10.0.1.11"))
PORT = PublishedPort("tcp", 8080, "net1", WEB.id, 80, endpoints=("10.0.1.10", "10.0.1.11"))


def _stack(lab: Lab, net: NetworkClient) -> None:
    """Two tasks of a published service, and one that calls it."""
    net.network_set(FRONT)
    net.attach(task("client", "10.0.1.5"))
    for task_id, address in (("web0", "10.0.1.10"), ("web1", "10.0.1.11")):
        net.attach(task(task_id, address))
        lab.serve(lab.task_path(task_id), task_id, 80)
    net.service_patch("net1", WEB)
    net.port_patch(PORT)


def _check_stack(lab: Lab) -> None:
    path = lab.task_path("client")
    assert addresses(resolve(path, "web")) == ["10.0.1.2"]
    assert {ask(path, "10.0.1.2", 80)["name"] for _ in range(30)} == {"web0", "web1"}
    assert ask(path, "10.0.1.10", 80)["client"] == "10.0.1.5"
    assert ask(lab.client_path, lab.NODE_ADDRESS, 8080)["client"] == lab.CLIENT_ADDRESS
    assert ask(lab.node_path, "127.0.0.1", 8080)


def _links(path: str) -> list[str]:
    return [line.split(":")[1].strip().split("@")[0] for line in tool(path, "ip", "-o", "link").splitlines()]


def test_traffic_goes_on_without_the_process_and_a_restart_changes_nothing(lab: Lab, net: NetworkClient) -> None:
    """Kill -9 stops no traffic; the next start finds nothing to repair but the sockets that died with it."""
    _stack(lab, net)
    before = tool(lab.router_path("net1"), "nft", "-s", "list", "ruleset")
    lab.kill()
    assert ask(lab.client_path, lab.NODE_ADDRESS, 8080)["client"] == lab.CLIENT_ADDRESS
    lab.start()
    with lab.connect() as again:
        assert set(again.stats()["repairs"]) <= {"task-sockets"}
        _check_stack(lab)
        assert again.reconcile() == []
        assert again.attach(task("client", "10.0.1.5")).netns == lab.task_path("client")
    assert tool(lab.router_path("net1"), "nft", "-s", "list", "ruleset") == before


def test_kill_at_any_moment_of_attach_and_detach_leaves_a_node_that_converges(lab: Lab) -> None:
    """Ten kills among hundreds of attaches and detaches: what was acknowledged is there, what is not wanted is gone."""
    lab.start()
    wanted: set[int] = set()
    net = lab.connect()
    net.network_set(FRONT)
    number = 0
    for round_number in range(10):
        assert lab.netd is not None
        timer = threading.Timer(0.005 + 0.013 * round_number, lab.netd.kill)
        timer.start()
        try:
            while True:
                number = (number + 1) % 200
                if number in wanted:
                    net.detach(f"t{number}")
                    wanted.discard(number)
                else:
                    net.attach(task(f"t{number}", f"10.0.1.{number + 10}"))
                    wanted.add(number)
        except ConnectionLost:
            net.close()
        timer.join()
        lab.netd.wait()
        lab.start()
        net = lab.connect()
        # The interrupted request may or may not have happened: it is asked again, as the agent would.
        if number in wanted:
            net.detach(f"t{number}")
            wanted.discard(number)
        else:
            net.attach(task(f"t{number}", f"10.0.1.{number + 10}"))
            wanted.add(number)
        assert [repair for repair in net.reconcile() if repair["kind"] == "failed"] == []
    mounted = {path.name for path in (lab.root / "netns").iterdir()}
    assert mounted == {"net-net1"} | {f"task-t{number}" for number in wanted}
    routes = tool(lab.router_path("net1"), "ip", "-4", "route", "show")
    assert {line.split()[0] for line in routes.splitlines() if " dev t-" in line} == {
        f"10.0.1.{number + 10}" for number in wanted
    }
    names = {task_link_name(f"t{number}") for number in wanted}
    until(lambda: {name for name in _links(lab.router_path("net1")) if name.startswith("t-")} == names)
    net.close()


BREAKAGES = {
    "the node's table": (lambda lab: tool(lab.node_path, "nft", "delete", "table", "ip", "orch"), "node-table"),
    "the node's rules": (
        lambda lab: tool(lab.node_path, "nft", "flush", "chain", "ip", "orch", "prerouting"),
        "node-table",
    ),
    "a published port": (
        lambda lab: tool(lab.node_path, "nft", "flush", "map", "ip", "orch", "published"),
        "node-elements",
    ),
    "an uplink": (lambda lab: tool(lab.node_path, "ip", "link", "del", _uplink(lab)), "uplink"),
    "an uplink that is down": (lambda lab: tool(lab.node_path, "ip", "link", "set", _uplink(lab), "down"), "uplink"),
    "forwarding": (lambda lab: tool(lab.node_path, "sysctl", "-qw", "net.ipv4.ip_forward=0"), "node-sysctl"),
    "a router's table": (
        lambda lab: tool(lab.router_path("net1"), "nft", "delete", "table", "ip", "orch"),
        "router-table",
    ),
    "backends": (
        lambda lab: tool(lab.router_path("net1"), "nft", "flush", "map", "ip", "orch", "backends"),
        "router-elements",
    ),
    "routes": (lambda lab: tool(lab.router_path("net1"), "ip", "route", "flush", "10.0.1.10/32"), "router-route"),
    "a router's addresses": (
        lambda lab: tool(lab.router_path("net1"), "ip", "addr", "flush", "dev", "up0"),
        "router-address",
    ),
    "neighbours": (
        lambda lab: tool(lab.router_path("net1"), "ip", "neigh", "flush", "nud", "permanent"),
        "router-neighbour",
    ),
    "a task's link": (lambda lab: tool(lab.task_path("web0"), "ip", "link", "del", "eth0"), "task-link"),
    "a task's route": (lambda lab: tool(lab.task_path("web0"), "ip", "route", "del", "default"), "task-route"),
    "a task's resolver": (
        lambda lab: tool(lab.task_path("client"), "nft", "flush", "ruleset"),
        "task-resolver",
    ),
    "a task's mount": (lambda lab: subprocess.run(["umount", lab.task_path("web0")], check=True), "task-mount"),
    "a router's mount": (lambda lab: subprocess.run(["umount", lab.router_path("net1")], check=True), "router-mount"),
}


def _uplink(lab: Lab) -> str:
    return next(name for name in _links(lab.node_path) if name.startswith("orn-"))


@pytest.mark.parametrize("name", BREAKAGES)
def test_what_is_broken_by_hand_is_repaired_and_counted(lab: Lab, net: NetworkClient, name: str) -> None:
    """Whatever someone deletes from the kernel, the next pass restores it and counts it; the one after is idle."""
    _stack(lab, net)
    assert net.reconcile() == []
    break_it, kind = BREAKAGES[name]
    break_it(lab)
    assert kind in {repair["kind"] for repair in net.reconcile()}
    assert net.stats()["repairs"][kind] >= 1
    assert net.reconcile() == []
    _check_stack(lab)


def test_a_lost_router_is_built_anew_at_start(lab: Lab, net: NetworkClient) -> None:
    """If every namespace was lost while the process was down, the next start makes what is wanted again."""
    _stack(lab, net)
    lab.kill()
    for path in (lab.root / "netns").iterdir():
        subprocess.run(["umount", "-l", path], check=True)
    lab.start()
    with lab.connect() as again:
        assert again.stats()["repairs"]["router-namespace"] == 1
        assert again.reconcile() == []
        assert again.status()["kernel"]["tasks"] == 3
        assert addresses(resolve(lab.task_path("client"), "web")) == ["10.0.1.2"]


def test_a_hundred_tasks_come_and_go_and_leave_nothing(lab: Lab, net: NetworkClient) -> None:
    """After 100 attaches and detaches no link, route, mount or file of them is left, and nothing needs repair."""
    net.network_set(FRONT)
    base = _links(lab.router_path("net1"))
    for number in range(100):
        net.attach(task(f"t{number}", f"10.0.1.{number + 10}"))
    assert len(_links(lab.router_path("net1"))) == len(base) + 100
    for number in range(100):
        net.detach(f"t{number}")
    assert net.reconcile() == []
    until(lambda: _links(lab.router_path("net1")) == base)
    assert [path.name for path in (lab.root / "netns").iterdir()] == ["net-net1"]
    assert [path.name for path in (lab.root / "wanted").iterdir()] == ["network+net1.json"]


def test_an_address_moves_to_the_next_task_at_once(lab: Lab, net: NetworkClient) -> None:
    """A task that gets the address of one just detached answers there, whatever is still left of the old one."""
    net.network_set(FRONT)
    client = net.attach(task("client", "10.0.1.5")).netns
    for number in range(5):
        net.attach(task(f"web{number}", "10.0.1.10"))
        lab.serve(lab.task_path(f"web{number}"), f"web{number}", 80)
        assert ask(client, "10.0.1.10", 80)["name"] == f"web{number}"
        net.detach(f"web{number}")


def test_shutdown_removes_every_trace(lab: Lab, net: NetworkClient) -> None:
    """After shutdown with removal the node has the links, tables, mounts and files that it had before."""
    _stack(lab, net)
    net.network_set(BACK)
    net.shutdown(remove=True)
    assert lab.netd is not None
    assert lab.netd.wait(timeout=20) == 0
    assert _links(lab.node_path) == ["lo", "out0"]
    assert tool(lab.node_path, "nft", "list", "tables") == ""
    assert str(lab.root) not in Path("/proc/self/mountinfo").read_text()
    assert {path.name for path in lab.root.iterdir()} <= {"resolv.conf", "netd.log", "netd.lock"}


def test_the_operators_chain_is_never_touched(lab: Lab, net: NetworkClient) -> None:
    """Rules in chain "user" see the traffic of networks and stay through repairs and restarts."""
    _stack(lab, net)
    tool(
        lab.node_path,
        "nft",
        "add rule ip orch user ip saddr 192.0.2.2 meta l4proto tcp ct original proto-dst 8080 reject",
    )
    with pytest.raises(ConnectionRefusedError):
        ask(lab.client_path, lab.NODE_ADDRESS, 8080)
    tool(lab.node_path, "nft", "flush", "chain", "ip", "orch", "forward")
    net.reconcile()
    lab.kill()
    lab.start()
    with lab.connect():
        assert "proto-dst 8080" in tool(lab.node_path, "nft", "list", "chain", "ip", "orch", "user")
        with pytest.raises(ConnectionRefusedError):
            ask(lab.client_path, lab.NODE_ADDRESS, 8080)


def test_a_firewall_that_drops_forwarded_packets_is_reported(lab: Lab, net: NetworkClient) -> None:
    """A chain of others whose policy drops forwarded packets is named in the status with what to do."""
    assert net.status()["warnings"] == []
    tool(
        lab.node_path,
        "nft",
        "add table ip other; add chain ip other f { type filter hook forward priority 0; policy drop; }",
    )
    (warning,) = net.status()["warnings"]
    assert "chain f of table ip other drops forwarded packets" in warning


def test_one_process_per_node_and_per_folder(lab: Lab, net: NetworkClient) -> None:
    """A second process for the same node or the same folder refuses to start and says why."""
    assert lab.netd is not None
    command = list(map(str, lab.netd.args))  # type: ignore[arg-type]
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "another network process runs with --root" in again.stderr
    command[command.index("--root") + 1] = str(lab.root / "second")
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "in this network namespace" in again.stderr


def test_the_keeper_holds_sockets_over_a_restart(lab: Lab) -> None:
    """With a keeper, a query and a connection made while the process is down are answered by the next one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper = _Keeper(ours)
    lab.start(keeper=theirs)
    net = lab.connect()
    net.network_set(FRONT)
    net.service_patch("net1", WEB)
    path = net.attach(task("client", "10.0.1.5")).netns
    until(lambda: keeper.stored.keys() == {"listener", "dns-udp+client", "dns-tcp+client"})
    lab.kill()
    answers: list[list[str]] = []
    asking = threading.Thread(target=lambda: answers.append(addresses(resolve(path, "web"))))
    asking.start()
    waiting = NetworkClient(str(lab.root / "network.sock"), timeout_s=20)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper.connect(ours)
    lab.start(keeper=theirs)
    assert waiting.stats()["repairs"] == {}
    net.close()
    asking.join()
    assert answers == [["10.0.1.2"]]
    waiting.detach("client")
    until(lambda: keeper.stored.keys() == {"listener"})
    waiting.close()
    keeper.close()


class _Keeper:
    """The keeper's part of the fd store, as its protocol describes it."""

    def __init__(self, channel: socket.socket) -> None:
        self.stored: dict[str, int] = {}
        self._channel: socket.socket | None = None
        self.connect(channel)

    def connect(self, channel: socket.socket) -> None:
        for name, fd in self.stored.items():
            socket.send_fds(channel, [b'{"name":"%s"}' % name.encode()], [fd])
        channel.send(b'{"end":true}')
        if self._channel is not None:
            self._thread.join()
            self._channel.close()
        self._channel = channel
        self._thread = threading.Thread(target=self._run, args=(channel,), daemon=True)
        self._thread.start()

    def _run(self, channel: socket.socket) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(channel, 4096, 4)
            if not data:
                return
            message = json.loads(data)
            old = self.stored.pop(message["name"], None)
            if old is not None:
                os.close(old)
            if message["op"] == "put":
                self.stored[message["name"]] = fds[0]

    def close(self) -> None:
        assert self._channel is not None
        self._channel.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._channel.close()
        for fd in self.stored.values():
            os.close(fd)


def test_bad_requests_are_refused_and_change_nothing(lab: Lab, net: NetworkClient) -> None:
    """Each request that cannot be right gets an error of its kind that names the cause; nothing of it stays."""
    net.network_set(FRONT)
    net.attach(task("a", "10.0.1.5"))
    refused: list[tuple[type[NetworkFailure], str, dict[str, object]]] = [
        (InvalidRequest, "unknown operation", {"op": "nonsense"}),
        (InvalidRequest, "unknown key 'extra'", {"op": "status", "extra": 1}),
        (InvalidRequest, "is not a subnet", {"op": "network_set", "network": _network(subnet="10.0.1.0")}),
        (InvalidRequest, "not a host address", {"op": "network_set", "network": _network(gateway="10.9.9.9")}),
        (InvalidRequest, "is not an id", {"op": "detach", "task_id": "../../etc"}),
        (NotFound, "network net9", {"op": "attach", "task": _task("b", "net9", "10.0.1.6")}),
        (InvalidRequest, "is not a task's address", {"op": "attach", "task": _task("b", "net1", "10.7.0.6")}),
        (InvalidRequest, "is not a task's address", {"op": "attach", "task": _task("b", "net1", "10.0.1.1")}),
        (Conflict, "belongs to task a", {"op": "attach", "task": _task("b", "net1", "10.0.1.5")}),
        (Conflict, "attached with other addresses", {"op": "attach", "task": _task("a", "net1", "10.0.1.7")}),
        (Conflict, "has 1 tasks", {"op": "network_remove", "id": "net1"}),
        (Conflict, "exists with other settings", {"op": "network_set", "network": _network(subnet="10.0.0.0/16")}),
    ]
    before = sorted(path.name for path in lab.root.rglob("*"))
    for kind, part, arguments in refused:
        with pytest.raises(kind, match=part):
            net.call(str(arguments.pop("op")), **arguments)
    assert sorted(path.name for path in lab.root.rglob("*")) == before
    assert net.reconcile() == []


def _network(**changes: str) -> dict[str, object]:
    return {"id": "net1", "name": "front", "subnet": "10.0.1.0/24", "gateway": "10.0.1.1"} | changes


def _task(task_id: str, network_id: str, address: str) -> dict[str, object]:
    return {"task_id": task_id, "networks": [{"network_id": network_id, "address": address}]}


def test_a_namespace_can_be_received_as_a_descriptor(lab: Lab, net: NetworkClient) -> None:
    """The answer to an attach can carry the namespace itself, for those who do not see its mount."""
    net.network_set(FRONT)
    made, fd = net.attach_with_namespace(task("a", "10.0.1.5"))
    assert Path(f"/proc/self/fd/{fd}").stat().st_ino == Path(made.netns).stat().st_ino
    os.close(fd)
    assert net.attach(Task("b", (TaskAddress("net1", "10.0.1.6"),))).interfaces[0].mac == "02:42:0a:00:01:06"
    net.network_set(Network("net9", "gone", "10.9.0.0/24", "10.9.0.1"))
    net.network_remove("net9")
    assert not (lab.root / "netns" / "net-net9").exists()
