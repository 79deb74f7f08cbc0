"""The playground itself: nodes can be parted, slowed, stopped, switched off and on, and removed without a trace."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import leaks
from cluster.playground_driver import ORCH, Playground, on_node, own_subnet, task_processes, wait_for
from orch_cli.playground import record
from orch_cli.playground.delay_line import tap_name
from orch_cli.playground.processes import in_network_namespace
from orch_proto import types_pb2

PORT = 9000


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    """Three nodes whose daemons run, in no cluster."""
    made = Playground(f"hosts-{os.getpid()}", own_subnet(2), tmp_path_factory.mktemp("hosts"), managers=3)
    made.down()
    before = leaks.host(made.layout)
    made.up("--no-cluster")
    try:
        yield made
    finally:
        made.down()
    left = leaks.settled_difference(before, lambda: leaks.host(made.layout))
    assert not left, f"the playground left behind: {left}"


@pytest.fixture
def whole(hosts: Playground) -> Iterator[Playground]:
    """The three nodes, healed and running after each test."""
    yield hosts
    hosts.heal()
    hosts.start()


def connection(playground: Playground, client: int, server: int) -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection between nodes."""
    address = (str(playground.place(server).address), PORT)
    with on_node(playground.place(server), lambda: socket.create_server(address)) as listener:
        listener.settimeout(5)
        near = on_node(playground.place(client), lambda: socket.create_connection(address, 5))
        far = listener.accept()[0]
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.settimeout(0.3)
    return near, far


def datagrams(playground: Playground, node: int) -> socket.socket:
    """A datagram socket of a node."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((str(playground.place(node).address), PORT))
        made.settimeout(0.3)
        return made

    return on_node(playground.place(node), make)


def arrives(source: socket.socket, target: socket.socket) -> bool:
    """Whether a datagram gets from one socket to the other; sent thrice, as an address may have to be found first."""
    text = os.urandom(8)
    for _ in range(3):
        source.sendto(text, target.getsockname())
        with contextlib.suppress(TimeoutError):
            while target.recv(100) != text:
                pass
            return True
    return False


def test_every_node_has_a_name_an_address_and_a_daemon(whole: Playground) -> None:
    """`exec` runs a command on the node: under its host name, with its address, and `orch` there asks its daemon."""
    for node in whole.nodes:
        assert whole.run_on(node.number, "hostname").stdout.strip() == node.hostname
        assert f"inet {node.address}/" in whole.run_on(node.number, "ip", "address", "show", "eth0").stdout
        answer = whole.run_on(node.number, "orch", "node", "info").stdout
        assert node.hostname in answer
    rows = whole.playground("status").stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["node-1", "node-2", "node-3"]
    assert all("inactive" in row and row.endswith("ok") for row in rows)


def test_a_partition_swallows_what_connections_carry_and_healing_delivers_it(whole: Playground) -> None:
    """Between parted nodes established connections fall silent in both directions, unreset; healed, they go on."""
    near, far = connection(whole, client=2, server=1)
    third = connection(whole, client=3, server=1)
    with near, far, third[0], third[1]:
        whole.partition("1,3|2")
        near.sendall(b"there")
        far.sendall(b"back")
        for end in (near, far):
            with pytest.raises(TimeoutError):
                end.recv(100)
        third[0].sendall(b"x")
        assert third[1].recv(1) == b"x", "nodes on the same side hear each other"
        whole.heal()
        for end, text in ((far, b"there"), (near, b"back")):
            end.settimeout(10)
            assert end.recv(100) == text


def test_a_one_way_partition_lets_the_other_way_through(whole: Playground) -> None:
    """With `A>B` nothing of A reaches B, while what B sends reaches A; `status` tells it of both."""
    with datagrams(whole, 1) as one, datagrams(whole, 2) as two:
        assert arrives(one, two)
        assert arrives(two, one)
        whole.partition("node-2>node-1")
        assert not arrives(two, one)
        assert arrives(one, two)
        status = whole.playground("status").stdout.splitlines()
        assert status[1].endswith("does not hear node-2")
        assert status[2].endswith("not heard by node-1")
        assert status[3].endswith("ok")


def test_the_host_reaches_a_node_that_is_cut_from_all(whole: Playground) -> None:
    """A node cut from all other nodes still answers the host: its socket and its published ports can be looked at."""
    whole.partition("2")
    with datagrams(whole, 1) as one, datagrams(whole, 2) as two, datagrams(whole, 3) as three:
        assert not arrives(two, one)
        assert not arrives(three, two)
        assert arrives(one, three)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            host.bind((str(whole.layout.gateway), 0))
            host.settimeout(0.3)
            assert arrives(host, two)
            assert arrives(two, host)


def test_the_last_partition_counts(whole: Playground) -> None:
    """A partition takes the place of the one before; it outlasts the power loss of a node that it cuts."""
    whole.partition("1|2")
    whole.partition("2|3")
    whole.power_off(3)
    whole.start(3)
    with datagrams(whole, 1) as one, datagrams(whole, 2) as two, datagrams(whole, 3) as three:
        assert arrives(one, two)
        assert not arrives(two, three)
        assert arrives(one, three)


def round_trip_ms(near: socket.socket, far: socket.socket) -> float:
    """The least of three round trips."""
    near.settimeout(10)
    far.settimeout(10)
    found = []
    for _ in range(3):
        began = time.monotonic()
        near.sendall(b"x")
        far.sendall(far.recv(1))
        near.recv(1)
        found.append((time.monotonic() - began) * 1000)
    return min(found)


def test_a_slow_node_is_late_both_ways_and_loses_nothing(whole: Playground) -> None:
    """With `delay NODE 40` a round trip takes at least 80 ms; a megabyte arrives whole; other nodes are not delayed."""
    whole.playground("delay", "node-2", "40ms", "--jitter", "5")
    near, far = connection(whole, client=2, server=1)
    with near, far:
        assert round_trip_ms(near, far) >= 80
        content = random.Random(1).randbytes(1_000_000)
        near.settimeout(30)
        received = b""
        with ThreadPoolExecutor(max_workers=1) as thread:
            sending = thread.submit(near.sendall, content)
            while len(received) < len(content):
                received += far.recv(1 << 20)
            sending.result()
        assert received == content
    assert "40 to 45 ms late" in whole.playground("status").stdout
    near, far = connection(whole, client=3, server=1)
    with near, far:
        assert round_trip_ms(near, far) < 80
    whole.heal()
    near, far = connection(whole, client=2, server=1)
    with near, far:
        assert round_trip_ms(near, far) < 80


def test_a_slow_node_can_be_parted_and_switched_off(whole: Playground) -> None:
    """A delay and a partition hold together, and a delay holds after the node's power loss."""
    whole.playground("delay", "2", "10")
    whole.partition("1|2")
    with datagrams(whole, 1) as one, datagrams(whole, 2) as two:
        assert not arrives(one, two)
        assert not arrives(two, one)
    whole.power_off(2)
    whole.start(2)
    with datagrams(whole, 3) as three, datagrams(whole, 2) as two:
        assert arrives(three, two)
    assert tap_name("node-2") in leaks.links_of(whole.layout.switch_path)


def test_a_dead_delay_line_is_told(whole: Playground) -> None:
    """When the process that carries a slow node's frames is killed, `status` says that the node is cut off, and why."""
    whole.playground("delay", "3", "10")
    for identity in in_network_namespace(whole.layout.switch_path):
        identity.kill()
    wait_for(lambda: "delay line died" in whole.playground("status").stdout.splitlines()[3], "the sentence")
    whole.heal()
    with datagrams(whole, 1) as one, datagrams(whole, 3) as three:
        assert arrives(one, three)


def test_power_loss_takes_all_but_the_disk(whole: Playground) -> None:
    """A killed node has no process, network or memory left; started again it has its disk, name and address."""
    place = whole.place(2)
    (place.state_dir / "on-disk").write_text("kept")
    (place.run_dir / "in-memory").write_text("lost")
    lingering = subprocess.Popen(
        [ORCH, "playground", "exec", "--name", whole.name, "node-2", "--", "sleep", "1000"], stdin=subprocess.DEVNULL
    )
    wait_for(lambda: len(whole.processes(2)) >= 2, "the command on the node")
    whole.power_off(2)
    assert lingering.wait(10) == -signal.SIGKILL
    assert not whole.processes(2)
    assert not place.namespace_path.exists()
    assert not place.run_dir.exists()
    assert whole.playground("status").stdout.splitlines()[2].split()[2] == "off"
    assert "it is off" in whole.run_on(2, "true", ok=False).stderr
    assert "nothing of it runs" in whole.playground("kill", "2", ok=False).stderr
    whole.start(2)
    assert (place.state_dir / "on-disk").read_text() == "kept"
    with datagrams(whole, 1) as one, datagrams(whole, 2) as two:
        assert arrives(one, two)


def test_a_stopped_node_is_shown_and_goes_on_where_it_was(whole: Playground) -> None:
    """SIGSTOP freezes a node's processes, `status` says so at once, and SIGCONT lets the same processes go on."""
    daemon = whole.process("orchd", 3)
    whole.freeze(3)
    assert daemon.is_stopped()
    assert "stopped" in whole.playground("status").stdout.splitlines()[3]
    whole.thaw(3)
    assert not daemon.is_stopped()
    assert whole.process("orchd", 3) == daemon
    wait_for(lambda: "inactive" in whole.playground("status").stdout.splitlines()[3], "the daemon's answer")


def test_a_killed_daemon_is_started_again_alone(whole: Playground) -> None:
    """`kill --part orchd` ends the daemon and nothing else; `start` starts it, and is idle where all runs."""
    before = whole.process("orchd", 1)
    whole.playground("kill", "node-1", "--part", "orchd")
    assert not before.is_alive()
    assert whole.place(1).namespace_path.exists()
    assert "not running" in whole.playground("status").stdout.splitlines()[1]
    assert "node-1 is started" in whole.playground("start", "1").stdout
    after = whole.process("orchd", 1)
    assert "runs already" in whole.playground("start", "1").stdout
    assert "All nodes run already" in whole.playground("start").stdout
    assert whole.process("orchd", 1) == after


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("partition", "1|1"), "twice"),
        (("partition", "1>2>3"), "more than one arrow"),
        (("partition", "1,,2|3"), "name is missing"),
        (("partition", "1,2,3"), "no two nodes"),
        (("partition", "1|7"), "cannot find node 7"),
        (("kill", "1", "--signal", "LOUD"), "no such signal"),
        (("kill", "1", "--part", "manager"), "nothing of it runs"),
        (("delay", "2", "soon"), "no time"),
        (("exec", "1"), "no command"),
        (("env",), "none answers"),
    ],
)
def test_words_that_mean_nothing_change_nothing(whole: Playground, words: tuple[str, ...], part: str) -> None:
    """A wrong node, signal, time or partition is refused with one message, and no fault is made."""
    result = whole.playground(*words, ok=False)
    assert result.status == 1
    assert part in result.stderr
    assert all(row.endswith("ok") for row in whole.playground("status").stdout.splitlines()[1:])


def test_an_up_that_was_killed_halfway_is_removed_whole(tmp_path: Path) -> None:
    """Wherever kill -9 hits `orch playground up`, `down` leaves nothing of it: no link, namespace, process or file."""
    made = Playground(f"half-{os.getpid()}", own_subnet(1), tmp_path, managers=2)
    made.down()
    before = leaks.host(made.layout)
    for delay_s in (0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0):
        process = subprocess.Popen(
            [ORCH, "playground", "up", "--name", made.name, "--subnet", made.subnet, "--managers", "2"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay_s)
        process.kill()
        process.wait()
        made.down()
        left = leaks.settled_difference(before, lambda: leaks.host(made.layout))
        assert not left, (delay_s, left)
        assert not made.layout.state_root.exists()
        assert not made.layout.run_root.exists()


def test_a_lost_record_is_no_hindrance_to_down(tmp_path: Path) -> None:
    """Without its record a playground is still found by its names, and removed whole."""
    made = Playground(f"half-{os.getpid()}", own_subnet(1), tmp_path, managers=2)
    before = leaks.host(made.layout)
    made.up("--no-cluster")
    made.layout.record.unlink()
    assert record.load_or_guess(made.name).layout.node_count == 2
    made.down()
    assert not leaks.settled_difference(before, lambda: leaks.host(made.layout))
    assert not made.layout.state_root.exists()


STACK = """\
services:
  web:
    image: test:1
    command: ["sh", "-c", 'trap "exit 0" TERM; while :; do sleep 3600 & wait $!; done']
    deploy:
      replicas: 5
      placement: {max_replicas_per_node: 1}
"""


def test_up_makes_one_cluster_of_managers_and_workers(calm: Playground) -> None:
    """After `up --managers 3 --workers 2` all five nodes are ready, three of them managers, of which one leads."""
    rows = [row.split() for row in calm.playground("status").stdout.splitlines()[1:]]
    assert [row[5] for row in rows] == ["leader", "running", "running", "-", "-"]
    assert {row[4] for row in rows} == {"active"}
    assert {row[6] for row in rows} == {"ready"}
    assert f"unix://{calm.node.manager_socket}" in calm.playground("env").stdout


def test_every_node_can_run_what_one_node_built(calm: Playground) -> None:
    """An image that was built once runs on all nodes of a playground."""
    calm.deploy("wide", STACK)
    tasks = calm.wait_running("wide_web", 5)
    assert len({task.node_id for task in tasks}) == 5


def test_env_names_a_manager_that_has_a_majority(calm: Playground) -> None:
    """With the first manager cut off or without power `env` names another one, whose answers `orch` gets."""
    host = f"unix://{calm.node.manager_socket}"
    calm.partition("node-1")
    wait_for(lambda: host not in calm.playground("env", ok=False).stdout, "another manager")
    calm.heal()
    calm.power_off(1)
    named = wait_for(lambda: calm.playground("env", ok=False).stdout, "a manager")
    assert host not in named
    answer = calm.orch("node", "ls", env={"ORCH_HOST": named.strip().removeprefix("export ORCH_HOST=")})
    assert "node-5" in answer.stdout


def test_a_node_that_lost_power_comes_back_as_itself(calm: Playground) -> None:
    """A worker started after a loss of power is the same node, ready again, and its tasks are replaced."""
    calm.deploy("back", STACK)
    before = {task.id: task.node_id for task in calm.wait_running("back_web", 5)}
    calm.power_off(5)
    calm.start(5)
    calm.calm()

    def replaced() -> bool:
        now = {task.id: task.node_id for task in calm.running("back_web")}
        return len(now) == 5 and len(now.keys() & before.keys()) == 4 and set(now.values()) == set(before.values())

    wait_for(replaced, "the fifth task on the fifth node again", 30)


def test_frozen_containers_go_on_after_a_thaw(calm: Playground) -> None:
    """Stopping a whole node stops its containers; after SIGCONT the very same processes run."""
    calm.deploy("ice", STACK)
    tasks = calm.wait_running("ice_web", 5)
    nodes = {one.node.id: one.node.description.hostname for one in calm.objects(types_pb2.OBJECT_KIND_NODE)}
    (task,) = [task for task in tasks if nodes[task.node_id] == "node-4"]
    process = task_processes([task])[task.id]
    assert process is not None
    calm.freeze(4)
    assert process.is_stopped()
    calm.thaw(4)
    assert not process.is_stopped()
    assert process.is_alive()
