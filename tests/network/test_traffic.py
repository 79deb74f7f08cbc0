"""Traffic of tasks on one node: within a network, balanced, published, outward."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from network.netlab import BACK, FRONT, ask, inside, service, task, tool, udp_socket, until
from orch_network.client import NetworkClient
from orch_network.protocol import Network, PublishedPort, Task, TaskAddress

if TYPE_CHECKING:
    from network.conftest import Lab


def test_tasks_of_a_network_reach_each_other_with_their_own_addresses(lab: Lab, net: NetworkClient) -> None:
    """A task reaches another by its address, and is seen under its own."""
    net.network_set(FRONT)
    first = net.attach(task("a", "10.0.1.5"))
    net.attach(task("b", "10.0.1.6"))
    lab.serve(lab.task_path("b"), "b", 80)
    assert ask(first.netns, "10.0.1.6", 80) == {"name": "b", "client": "10.0.1.5"}
    assert "mtu 1450" in tool(first.netns, "ip", "link", "show", "eth0")


def test_networks_do_not_see_each_other(lab: Lab, net: NetworkClient) -> None:
    """A task cannot reach a task of a network that it is not in, not even with subnets that overlap."""
    net.network_set(FRONT)
    net.network_set(BACK)
    net.network_set(Network("net3", "twin", FRONT.subnet, FRONT.gateway))
    a = net.attach(task("a", "10.0.1.5")).netns
    net.attach(task("b", "10.0.2.5", BACK))
    net.attach(Task("c", (TaskAddress("net3", "10.0.1.9"),), "net3"))
    for task_id in "bc":
        lab.serve(lab.task_path(task_id), task_id, 80)
    for address in ("10.0.2.5", "10.0.1.9"):
        with pytest.raises(OSError):  # noqa: PT011 -- unreachable, refused or lost: anything but an answer
            ask(a, address, 80, timeout_s=0.5)


def test_routers_are_closed_to_tasks_of_other_networks(lab: Lab, net: NetworkClient) -> None:
    """The link-local addresses between node and routers lead from no network into another."""
    net.network_set(FRONT)
    net.network_set(BACK)
    a = net.attach(task("a", "10.0.1.5")).netns
    net.attach(task("b", "10.0.2.5", BACK))
    lab.serve(lab.task_path("b"), "b", 80)
    net.ports_set([PublishedPort("tcp", 8080, "net2", "id-b", 80, endpoints=("10.0.2.5",))])
    with pytest.raises(OSError):  # noqa: PT011
        ask(a, "169.254.64.6", 8080, timeout_s=0.5)
    assert ask(a, lab.NODE_ADDRESS, 8080)["name"] == "b"


def test_a_dead_address_is_unreachable_at_once(lab: Lab, net: NetworkClient) -> None:
    """An address without a task answers "no route to host" instead of silence."""
    net.network_set(FRONT)
    a = net.attach(task("a", "10.0.1.5")).netns
    with pytest.raises(OSError) as caught:  # noqa: PT011
        ask(a, "10.0.1.99", 80)
    assert caught.value.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)


def test_a_task_cannot_borrow_an_address(lab: Lab, net: NetworkClient) -> None:
    """Packets under another source than the task's own are dropped by its router."""
    net.network_set(FRONT)
    a = net.attach(task("a", "10.0.1.5")).netns
    net.attach(task("b", "10.0.1.6"))
    lab.serve(lab.task_path("b"), "b", 90, kind="udp")
    tool(a, "ip", "addr", "add", "10.0.1.77/32", "dev", "eth0")
    with udp_socket(a, timeout_s=0.4) as honest, udp_socket(a, timeout_s=0.4) as thief:
        honest.sendto(b"?", ("10.0.1.6", 90))
        assert honest.recv(2048)
        thief.bind(("10.0.1.77", 0))
        thief.sendto(b"?", ("10.0.1.6", 90))
        with pytest.raises(OSError):  # noqa: PT011
            thief.recv(2048)


def test_a_vip_spreads_over_its_backends_and_keeps_the_client(lab: Lab, net: NetworkClient) -> None:
    """Connections to a VIP reach every backend in about equal parts, each seeing the client's address."""
    net.network_set(FRONT)
    client = net.attach(task("client", "10.0.1.5")).netns
    members = [(f"web{number}", f"10.0.1.{10 + number}") for number in range(3)]
    for task_id, address in members:
        net.attach(task(task_id, address))
        lab.serve(lab.task_path(task_id), task_id, 80)
    net.service_patch("net1", service("web", "10.0.1.2", *members))
    answers = [ask(client, "10.0.1.2", 80) for _ in range(120)]
    seen = Counter(answer["name"] for answer in answers)
    assert {answer["client"] for answer in answers} == {"10.0.1.5"}
    assert seen.keys() == {"web0", "web1", "web2"}
    assert min(seen.values()) > 15


def test_a_backend_reaches_itself_through_its_vip(lab: Lab, net: NetworkClient) -> None:
    """The only backend of a service may call the service's own name and gets its own answer."""
    net.network_set(FRONT)
    path = net.attach(task("web", "10.0.1.10")).netns
    lab.serve(path, "web", 80)
    net.service_patch("net1", service("web", "10.0.1.2", ("web", "10.0.1.10")))
    assert ask(path, "10.0.1.2", 80) == {"name": "web", "client": "10.0.1.1"}


def test_a_removed_backend_gets_no_new_connection(lab: Lab, net: NetworkClient) -> None:
    """After a patch without it, a backend is not chosen again; without any, the VIP is unreachable at once."""
    net.network_set(FRONT)
    client = net.attach(task("client", "10.0.1.5")).netns
    members = [("web0", "10.0.1.10"), ("web1", "10.0.1.11")]
    for task_id, address in members:
        net.attach(task(task_id, address))
        lab.serve(lab.task_path(task_id), task_id, 80)
    net.service_patch("net1", service("web", "10.0.1.2", *members))
    net.service_patch("net1", service("web", "10.0.1.2", members[1]))
    assert {ask(client, "10.0.1.2", 80)["name"] for _ in range(40)} == {"web1"}
    net.service_patch("net1", service("web", "10.0.1.2"))
    with pytest.raises(OSError) as caught:  # noqa: PT011
        ask(client, "10.0.1.2", 80)
    assert caught.value.errno == errno.EHOSTUNREACH


def test_udp_flows_leave_a_removed_backend(lab: Lab, net: NetworkClient) -> None:
    """A UDP client that goes on sending from one port is balanced anew when its backend is removed."""
    net.network_set(FRONT)
    client = net.attach(task("client", "10.0.1.5")).netns
    members = [("web0", "10.0.1.10"), ("web1", "10.0.1.11")]
    for task_id, address in members:
        net.attach(task(task_id, address))
        lab.serve(lab.task_path(task_id), task_id, 53, kind="udp")
    net.service_patch("net1", service("web", "10.0.1.2", members[0]))
    with udp_socket(client) as flow:
        flow.connect(("10.0.1.2", 53))
        flow.send(b"?")
        assert b"web0" in flow.recv(2048)
        net.service_patch("net1", service("web", "10.0.1.2", members[1]))
        assert until(lambda: net.stats()["flows_forgotten"]) == 1
        flow.send(b"?")
        assert b"web1" in flow.recv(2048)


def test_a_published_port_keeps_the_clients_address(lab: Lab, net: NetworkClient) -> None:
    """A port of the node reaches the service's tasks from another host, which they see under its own address."""
    net.network_set(FRONT)
    net.attach(task("web", "10.0.1.10"))
    lab.serve(lab.task_path("web"), "web", 80)
    lab.serve(lab.task_path("web"), "web", 53, kind="udp")
    net.ports_set(
        [
            PublishedPort("tcp", 8080, "net1", "id-web", 80, endpoints=("10.0.1.10",)),
            PublishedPort("udp", 5353, "net1", "id-web", 53, endpoints=("10.0.1.10",)),
        ]
    )
    assert ask(lab.client_path, lab.NODE_ADDRESS, 8080) == {"name": "web", "client": lab.CLIENT_ADDRESS}
    with udp_socket(lab.client_path) as flow:
        flow.connect((lab.NODE_ADDRESS, 5353))
        flow.send(b"?")
        assert lab.CLIENT_ADDRESS.encode() in flow.recv(2048)


def test_a_published_port_answers_on_the_nodes_own_addresses(lab: Lab, net: NetworkClient) -> None:
    """From the node itself a published port answers at 127.0.0.1 and at its outer address."""
    net.network_set(FRONT)
    net.attach(task("web", "10.0.1.10"))
    lab.serve(lab.task_path("web"), "web", 80)
    net.port_patch(PublishedPort("tcp", 8080, "net1", "id-web", 80, endpoints=("10.0.1.10",)))
    assert ask(lab.node_path, "127.0.0.1", 8080)["name"] == "web"
    assert ask(lab.node_path, lab.NODE_ADDRESS, 8080) == {"name": "web", "client": lab.NODE_ADDRESS}


def test_a_task_reaches_a_published_port_of_its_own_node(lab: Lab, net: NetworkClient) -> None:
    """A task that calls its node's published port gets an answer, even its own."""
    net.network_set(FRONT)
    path = net.attach(task("web", "10.0.1.10")).netns
    lab.serve(path, "web", 80)
    net.port_patch(PublishedPort("tcp", 8080, "net1", "id-web", 80, endpoints=("10.0.1.10",)))
    assert ask(path, lab.NODE_ADDRESS, 8080)["name"] == "web"


def test_a_port_bound_to_an_address_answers_there_alone(lab: Lab, net: NetworkClient) -> None:
    """A port published at 127.0.0.1 is closed to other hosts."""
    net.network_set(FRONT)
    net.attach(task("web", "10.0.1.10"))
    lab.serve(lab.task_path("web"), "web", 80)
    net.port_patch(PublishedPort("tcp", 8080, "net1", "id-web", 80, "127.0.0.1", ("10.0.1.10",)))
    assert ask(lab.node_path, "127.0.0.1", 8080)["name"] == "web"
    with pytest.raises(ConnectionRefusedError):
        ask(lab.client_path, lab.NODE_ADDRESS, 8080)


def test_a_published_port_without_endpoints_refuses(lab: Lab, net: NetworkClient) -> None:
    """While a service has no running task its port refuses at once, and answers again as soon as it has one."""
    net.network_set(FRONT)
    net.attach(task("web", "10.0.1.10"))
    lab.serve(lab.task_path("web"), "web", 80)
    port = PublishedPort("tcp", 8080, "net1", "id-web", 80)
    net.ports_set([port])
    for path in (lab.client_path, lab.node_path):
        with pytest.raises(ConnectionRefusedError):
            ask(path, lab.NODE_ADDRESS, 8080)
    net.port_patch(PublishedPort("tcp", 8080, "net1", "id-web", 80, endpoints=("10.0.1.10",)))
    assert ask(lab.client_path, lab.NODE_ADDRESS, 8080)["name"] == "web"
    net.port_remove("tcp", 8080)
    with pytest.raises(ConnectionRefusedError):
        ask(lab.client_path, lab.NODE_ADDRESS, 8080)


def test_a_client_whose_address_lies_in_the_subnet_is_answered(lab: Lab, net: NetworkClient) -> None:
    """A subnet that overlaps with the outside world does not cut published ports off."""
    net.network_set(Network("net1", "front", "192.0.2.0/24", "192.0.2.254"))
    net.attach(Task("web", (TaskAddress("net1", "192.0.2.10"),), "net1"))
    lab.serve(lab.task_path("web"), "web", 80)
    net.port_patch(PublishedPort("tcp", 8080, "net1", "id-web", 80, endpoints=("192.0.2.10",)))
    assert ask(lab.client_path, lab.NODE_ADDRESS, 8080)["name"] == "web"


def test_tasks_reach_the_world_under_the_nodes_address(lab: Lab, net: NetworkClient) -> None:
    """Outgoing connections carry the node's address; overlapping networks go out side by side."""
    net.network_set(FRONT)
    net.network_set(Network("net3", "twin", FRONT.subnet, FRONT.gateway))
    paths = [net.attach(task("a", "10.0.1.5")).netns]
    paths.append(net.attach(Task("b", (TaskAddress("net3", "10.0.1.5"),), "net3")).netns)
    lab.serve(lab.client_path, "world", 80)
    for path in paths:
        assert ask(path, lab.CLIENT_ADDRESS, 80) == {"name": "world", "client": lab.NODE_ADDRESS}


def test_an_internal_network_has_no_way_out(lab: Lab, net: NetworkClient) -> None:
    """Tasks of an internal network reach neither the world nor the node, at once; its published ports work."""
    net.network_set(Network("net1", "front", "10.0.1.0/24", "10.0.1.1", internal=True))
    path = net.attach(task("a", "10.0.1.5")).netns
    lab.serve(path, "a", 80)
    lab.serve(lab.client_path, "world", 80)
    lab.serve(lab.node_path, "node", 81)
    for address, port in ((lab.CLIENT_ADDRESS, 80), (lab.NODE_ADDRESS, 81)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            ask(path, address, port)
        assert caught.value.errno == errno.EHOSTUNREACH
    net.port_patch(PublishedPort("tcp", 8080, "net1", "id-a", 80, endpoints=("10.0.1.5",)))
    assert ask(lab.client_path, lab.NODE_ADDRESS, 8080)["client"] == lab.CLIENT_ADDRESS


def test_tasks_cannot_reach_the_nodes_loopback(lab: Lab, net: NetworkClient) -> None:
    """What the node serves on 127.0.0.1 alone stays closed to its tasks, whatever route they make themselves."""
    net.network_set(FRONT)
    path = net.attach(task("a", "10.0.1.5")).netns
    with inside(lab.node_path):
        local = socket.socket()
        local.bind(("127.0.0.1", 9999))
        local.listen()
    with local:
        local.settimeout(0.5)
        tool(path, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
        tool(path, "ip", "route", "add", "127.0.0.1/32", "via", "169.254.1.1", "dev", "eth0", "onlink", "table", "55")
        tool(path, "ip", "rule", "add", "pref", "0", "to", "127.0.0.1", "lookup", "55")
        tool(path, "ip", "rule", "add", "pref", "1", "lookup", "local")
        with pytest.raises(OSError):  # noqa: PT011
            ask(path, "127.0.0.1", 9999, timeout_s=0.4)
        with pytest.raises(TimeoutError):
            local.accept()


def test_a_task_in_two_networks_answers_in_each(lab: Lab, net: NetworkClient) -> None:
    """A task has an interface per network, and answers by the one that was called, published ports included."""
    net.network_set(FRONT)
    net.network_set(BACK)
    made = net.attach(Task("both", (TaskAddress("net1", "10.0.1.5"), TaskAddress("net2", "10.0.2.5")), "net1"))
    assert [interface.name for interface in made.interfaces] == ["eth0", "eth1"]
    a, b = net.attach(task("a", "10.0.1.6")).netns, net.attach(task("b", "10.0.2.6", BACK)).netns
    lab.serve(made.netns, "both", 80)
    lab.serve(b, "b", 80)
    assert ask(a, "10.0.1.5", 80)["client"] == "10.0.1.6"
    assert ask(b, "10.0.2.5", 80)["client"] == "10.0.2.6"
    assert ask(made.netns, "10.0.2.6", 80)["client"] == "10.0.2.5"
    net.ports_set(
        [
            PublishedPort("tcp", 8081, "net1", "id", 80, endpoints=("10.0.1.5",)),
            PublishedPort("tcp", 8082, "net2", "id", 80, endpoints=("10.0.2.5",)),
        ]
    )
    for port in (8081, 8082):
        assert ask(lab.client_path, lab.NODE_ADDRESS, port) == {"name": "both", "client": lab.CLIENT_ADDRESS}


def test_a_task_without_networks_has_a_loopback_and_nothing_else(lab: Lab, net: NetworkClient) -> None:
    """A task that names no network gets a namespace of its own that leads nowhere."""
    made = net.attach(Task("alone"))
    assert made.interfaces == ()
    lab.serve(made.netns, "alone", 80)
    assert ask(made.netns, "127.0.0.1", 80)["name"] == "alone"
    with pytest.raises(OSError) as caught:  # noqa: PT011
        ask(made.netns, lab.CLIENT_ADDRESS, 80)
    assert caught.value.errno == errno.ENETUNREACH
