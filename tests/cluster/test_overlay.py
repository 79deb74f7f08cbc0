"""Networks over three nodes: names, virtual addresses, published ports, and their repair."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import leaks
from cluster.conftest import build_test_image
from cluster.playground_driver import Playground, own_subnet, wait_for
from orch_network.client import NetworkClient
from orch_network.errors import ConnectionLost
from orch_proto import objects_pb2, types_pb2

WEB = r"""
services:
  web:
    image: test:1
    command:
      - sh
      - -c
      - |
        mkdir -p /www/cgi-bin
        hostname > /www/name
        printf '#!/bin/sh\nprintf "\\n%%s" $$REMOTE_ADDR\n' > /www/cgi-bin/who
        chmod 755 /www/cgi-bin/who
        exec httpd -f -p 80 -h /www
    ports: [{target: 80, published: PORT}]
    stop_signal: KILL
    deploy:
      replicas: 2
      placement: {max_replicas_per_node: 1}
  all:
    image: test:1
    command: [sleep, "1000000"]
    stop_signal: KILL
    deploy:
      replicas: 3
      placement: {max_replicas_per_node: 1}
"""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, busybox: str) -> Iterator[Playground]:
    """A manager and two workers with two stacks of the same services, which the tests of this module share."""
    made = Playground(f"overlay-{os.getpid()}", own_subnet(2), tmp_path_factory.mktemp("overlay"), workers=2)
    made.down()
    before = leaks.host(made.layout)
    made.up()
    try:
        build_test_image(made, Path(busybox))
        for stack, port in (("one", "8081"), ("two", "8082")):
            made.deploy(stack, WEB.replace("PORT", port))
        yield made
    finally:
        made.down()
    left = leaks.settled_difference(before, lambda: leaks.host(made.layout))
    assert not left, f"the playground left behind: {left}"


def by_node(three: Playground, service: str) -> dict[int, objects_pb2.Task]:
    """The running tasks of a service by the number of their node."""
    numbers = {node.hostname: node.number for node in three.nodes}
    nodes = {one.node.id: one.node for one in three.objects(types_pb2.OBJECT_KIND_NODE)}
    return {numbers[nodes[task.node_id].description.hostname]: task for task in three.running(service)}


def inside(three: Playground, number: int, task: objects_pb2.Task, *command: str) -> str:
    """What a command says that runs in the network and the files of a task."""
    folder = three.place(number).run_dir
    (path,) = folder.glob(f"**/netns/task-{task.id}")
    process = subprocess.run(
        ["nsenter", f"--net={path}", "--", *command], capture_output=True, text=True, timeout=20, check=False
    )
    return process.stdout + process.stderr


def resolved(three: Playground, number: int, task: objects_pb2.Task, name: str) -> set[str]:
    """The addresses of a name, as a task is answered."""
    import dnslib  # noqa: PLC0415 -- slow to import

    (path,) = three.place(number).run_dir.glob(f"**/netns/task-{task.id}")
    question = dnslib.DNSRecord.question(name).pack()
    script = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5);"
        f"s.connect(('127.0.0.11', 53)); s.send({question!r}); sys.stdout.write(s.recv(4096).hex())"
    )
    answer = subprocess.run(
        ["nsenter", f"--net={path}", "--", "python3", "-c", script], capture_output=True, text=True, check=True
    )
    return {str(record.rdata) for record in dnslib.DNSRecord.parse(bytes.fromhex(answer.stdout)).rr}


def address(task: objects_pb2.Task) -> str:
    return task.networks[0].addresses[0].partition("/")[0]


def fetch(three: Playground, number: int, task: objects_pb2.Task, host: str, path: str = "/name") -> str:
    """The answer of a web server to a task, empty if there is none."""
    return (
        inside(three, number, task, "curl", "-sS", "-m", "3", "--noproxy", "*", f"http://{host}{path}")
        .strip()
        .replace("::ffff:", "")
        .strip("[]")
    )


def ask_node(three: Playground, number: int, port: int, path: str = "/name") -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{three.place(number).address}:{port}{path}", timeout=3) as answer:
            text: str = answer.read().decode()
            return text.strip().replace("::ffff:", "").strip("[]")
    except (urllib.error.URLError, OSError):
        return ""


def router(three: Playground, number: int, task: objects_pb2.Task) -> str:
    """Where the router of a task's network is mounted on a node."""
    (path,) = three.place(number).run_dir.glob(f"**/netns/net-{task.networks[0].network_id}")
    return str(path)


def routed(three: Playground, number: int, task: objects_pb2.Task) -> set[tuple[str, str]]:
    """The remote routes that a node's router has for the network of a task, as (task's address, node's address)."""
    path = router(three, number, task)
    output = subprocess.run(
        ["nsenter", f"--net={path}", "--", "ip", "-4", "route", "show", "dev", "vx0"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {(words[0], words[2]) for words in map(str.split, output.splitlines()) if words[1] == "via"}


def wanted_routes(three: Playground, number: int, stack: str) -> set[tuple[str, str]]:
    return {
        (address(task), str(three.place(there).address))
        for service in ("web", "all")
        for there, task in by_node(three, f"{stack}_{service}").items()
        if there != number
    }


def test_tasks_of_a_network_reach_each_other_on_any_node(three: Playground) -> None:
    """From every node every task of the network answers, by its address; names have the tasks of all nodes."""
    everywhere, web = by_node(three, "one_all"), by_node(three, "one_web")
    assert len(everywhere) == 3
    assert len(web) == 2
    names = {number: fetch(three, number, task, address(task)) for number, task in web.items()}
    assert len(set(names.values())) == 2
    for number, task in everywhere.items():
        assert resolved(three, number, task, "tasks.all") == set(map(address, everywhere.values()))
        assert resolved(three, number, task, "tasks.web") == set(map(address, web.values()))
        for there, other in web.items():
            assert fetch(three, number, task, address(other)) == names[there]


def test_a_virtual_address_spreads_over_the_tasks_of_all_nodes(three: Playground) -> None:
    """A service's name is one address, which leads from every node to each of its tasks, and hides no client's."""
    for number, task in by_node(three, "one_all").items():
        (vip,) = resolved(three, number, task, "web")
        assert len({fetch(three, number, task, vip) for _ in range(16)}) == 2
        assert fetch(three, number, task, vip, "/cgi-bin/who") == address(task)


def test_stacks_do_not_see_each_other(three: Playground) -> None:
    """The same service name in two stacks means two services, and no packet of one gets to the other."""
    number, task = next(iter(by_node(three, "one_all").items()))
    others = by_node(three, "two_web").values()
    assert resolved(three, number, task, "tasks.web").isdisjoint(map(address, others))
    # What leaves the network goes no further than the node.
    three.run_on(number, "ip", "route", "add", "unreachable", "10.0.0.0/8")
    for other in others:
        assert "curl:" in fetch(three, number, task, address(other))
    three.run_on(number, "ip", "route", "delete", "unreachable", "10.0.0.0/8")


def test_every_node_answers_on_a_published_port(three: Playground) -> None:
    """Nodes without a task answer as well; a local task sees the client, another the node that took the call."""
    web = by_node(three, "one_web")
    client = str(three.layout.gateway)
    for node in three.nodes:
        seen = wait_for(lambda node=node: ask_node(three, node.number, 8081, "/cgi-bin/who"), "an answer")  # type: ignore[misc]
        assert seen == (client if node.number in web else str(node.address))


def test_a_task_reaches_a_published_port_of_another_node(three: Playground) -> None:
    """A node's address means the node to a task of a meshed network, not the node's router."""
    for number, task in by_node(three, "one_all").items():
        for node in three.nodes:
            assert fetch(three, number, task, f"{node.address}:8082"), (number, node)


def test_what_is_removed_by_hand_is_repaired(three: Playground) -> None:
    """Routes, neighbours, forwarding entries and the device itself come back with one pass, counted by kind."""
    number, task = next(iter(by_node(three, "one_all").items()))
    path = router(three, number, task)
    wanted = wanted_routes(three, number, "one")
    (gone, node), *_ = sorted(wanted)
    mac = "02:42:" + ":".join(f"{int(part):02x}" for part in node.split("."))
    (control,) = three.place(number).run_dir.glob("**/network.sock")
    for words, kinds in (
        (["ip", "route", "delete", gone], {"router-route"}),
        (["ip", "route", "add", "10.99.0.1/32", "via", node, "dev", "vx0", "onlink", "proto", "111"], {"stale-route"}),
        (["ip", "neigh", "delete", node, "dev", "vx0"], {"router-neighbour"}),
        (["bridge", "fdb", "delete", mac, "dev", "vx0", "dst", node], {"overlay-forwarding"}),
        (["bridge", "fdb", "add", "02:42:01:02:03:04", "dev", "vx0", "dst", "192.0.2.9"], {"stale-forwarding"}),
        (["ip", "rule", "delete", "priority", "101"], {"router-rule"}),
        (["ip", "link", "set", "vx0", "down"], {"router-link"}),
        (["ip", "link", "delete", "vx0"], {"overlay-link"}),
    ):
        subprocess.run(["nsenter", f"--net={path}", "--", *words], check=True)
        client = NetworkClient(str(control))
        try:
            found = {repair["kind"] for repair in client.reconcile()}
            assert kinds <= found, (words, found)
            assert not client.reconcile()
        finally:
            client.close()
        assert routed(three, number, task) == wanted
    for other in by_node(three, "one_web").values():
        assert "curl:" not in fetch(three, number, task, address(other))


def test_entries_go_with_the_tasks_that_they_lead_to(three: Playground) -> None:
    """After scaling, each node has a route to every running task of another node, and to nothing else."""
    try:
        for count in (1, 3):
            three.orch("service", "scale", f"one_web={count}")
            three.wait_running("one_web", count)
            for number, task in by_node(three, "one_all").items():
                wait_for(
                    lambda number=number, task=task: (
                        not routed(three, number, task) ^ wanted_routes(three, number, "one")
                    ),  # type: ignore[misc]
                    f"the routes of node {number}",
                )
    finally:
        three.orch("service", "scale", "one_web=2")
        three.wait_running("one_web", 2)


def test_a_killed_network_process_takes_the_overlay_over(three: Playground) -> None:
    """After kill -9 of a node's network process ways are as they were, traffic goes on, nothing needs repair."""
    number, task = next(iter(by_node(three, "one_all").items()))
    before = routed(three, number, task)
    others = [other for there, other in by_node(three, "one_web").items() if there != number]
    victim = three.kill("network", number)
    assert all("curl:" not in fetch(three, number, task, address(other)) for other in others)
    wait_for(lambda: three.process("network", number) != victim, "another network process")
    (control,) = three.place(number).run_dir.glob("**/network.sock")

    def repairs() -> list[str] | None:
        try:
            client = NetworkClient(str(control))
        except ConnectionLost:
            return None
        try:
            return ["answered", *(repair["kind"] for repair in client.reconcile())]
        except ConnectionLost:
            return None
        finally:
            client.close()

    assert wait_for(repairs, "the network process' answer") == ["answered"]
    assert routed(three, number, task) == before
