"""Names as tasks see them, through the resolver at 127.0.0.11."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from network.netlab import BACK, FRONT, addresses, inside, resolve, service, task, until
from orch_network.client import NetworkClient
from orch_network.protocol import Network, Task, TaskAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from network.conftest import Lab

A, PTR, MX, AAAA = 1, 12, 15, 28
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3
WEB = service("web", "10.0.1.2", ("w1", "10.0.1.11"), ("w2", "10.0.1.12"), aliases=("www",))


@pytest.fixture
def path(net: NetworkClient) -> str:
    """A task that looks names up, in network "front" with service "web"."""
    net.network_set(FRONT)
    net.services_set("net1", [WEB])
    return net.attach(task("asker", "10.0.1.5")).netns


def test_a_service_has_the_names_that_swarm_gives_it(path: str) -> None:
    """The service's name and aliases are its VIP, tasks.NAME all its tasks, SLOT.NAME one of them."""
    assert addresses(resolve(path, "web")) == ["10.0.1.2"]
    assert addresses(resolve(path, "www")) == ["10.0.1.2"]
    assert addresses(resolve(path, "web.front")) == ["10.0.1.2"]
    assert addresses(resolve(path, "tasks.web")) == ["10.0.1.11", "10.0.1.12"]
    assert addresses(resolve(path, "tasks.www")) == ["10.0.1.11", "10.0.1.12"]
    assert addresses(resolve(path, "2.web")) == ["10.0.1.12"]
    assert addresses(resolve(path, "host-w1")) == ["10.0.1.11"]


def test_names_are_found_in_any_spelling_and_by_tcp(path: str) -> None:
    """Upper and lower case are the same, the answer repeats the question's spelling, TCP answers like UDP."""
    answer = resolve(path, "WeB", tcp=True)
    assert addresses(answer) == ["10.0.1.2"]
    assert str(answer.q.qname) == "WeB."
    assert answer.rr[0].ttl == 5


def test_a_known_name_without_such_records_is_empty_not_missing(path: str) -> None:
    """AAAA and MX of a service's name answer NOERROR without records, at once."""
    for kind in (AAAA, MX):
        answer = resolve(path, "web", kind)
        assert answer.header.rcode == NOERROR
        assert answer.rr == []


def test_addresses_have_names(path: str) -> None:
    """A reverse lookup of a task's or service's address gives a name that leads back."""
    assert str(resolve(path, "12.1.0.10.in-addr.arpa", PTR).rr[0].rdata) == "2.web.front."
    assert str(resolve(path, "2.1.0.10.in-addr.arpa", PTR).rr[0].rdata) == "web.front."
    assert addresses(resolve(path, "2.web.front")) == ["10.0.1.12"]


def test_a_service_without_vip_answers_with_all_tasks(net: NetworkClient, path: str) -> None:
    """In dnsrr mode the service's name stands for all its tasks."""
    net.service_patch("net1", service("web", "", ("w1", "10.0.1.11"), ("w2", "10.0.1.12")))
    assert addresses(resolve(path, "web")) == ["10.0.1.11", "10.0.1.12"]


def test_a_task_sees_the_names_of_its_networks_only(net: NetworkClient, path: str) -> None:
    """A name of another network does not exist for a task; one that is in both sees both."""
    net.network_set(BACK)
    net.service_patch("net2", service("db", "10.0.2.2", ("d1", "10.0.2.11")))
    both = net.attach(Task("both", (TaskAddress("net1", "10.0.1.6"), TaskAddress("net2", "10.0.2.6")))).netns
    assert resolve(path, "db").header.rcode == NXDOMAIN
    assert addresses(resolve(both, "db")) == ["10.0.2.2"]
    assert addresses(resolve(both, "web")) == ["10.0.1.2"]


def test_a_removed_service_has_no_name(net: NetworkClient, path: str) -> None:
    """Names go with their service."""
    net.service_remove("net1", WEB.id)
    assert resolve(path, "web").header.rcode == NXDOMAIN
    assert resolve(path, "tasks.web").header.rcode != NOERROR


def test_a_large_answer_is_cut_by_udp_and_whole_by_tcp(net: NetworkClient, path: str) -> None:
    """What does not fit into 512 bytes is marked truncated by UDP and complete by TCP."""
    members = [(f"w{number}", f"10.0.1.{number}") for number in range(10, 110)]
    net.service_patch("net1", service("web", "10.0.1.2", *members))
    cut, whole = resolve(path, "tasks.web"), resolve(path, "tasks.web", tcp=True)
    assert cut.header.tc == 1
    assert 0 < len(cut.rr) < 100
    assert len(whole.rr) == 100


def test_without_upstream_single_words_do_not_exist_and_domains_fail(path: str) -> None:
    """With no resolver on the node, an unknown word is NXDOMAIN and an unknown domain SERVFAIL."""
    assert resolve(path, "nothing").header.rcode == NXDOMAIN
    assert resolve(path, "example.com").header.rcode == SERVFAIL


def test_garbage_is_dropped_and_counted(net: NetworkClient, path: str) -> None:
    """Packets that are no queries get no answer, are counted, and do no harm."""
    with inside(path):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        for garbage in (b"", b"\0" * 5, b"\xff" * 600):
            client.sendto(garbage, ("127.0.0.11", 53))
    assert until(lambda: net.stats()["dns_queries"].get("malformed") == 3)
    assert addresses(resolve(path, "web")) == ["10.0.1.2"]


class UpstreamServer:
    """A name server of the outside world: answers with 198.51.100.7, or not at all, or with a failure."""

    def __init__(self, namespace: str, address: str) -> None:
        with inside(namespace):
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.udp.bind((address, 53))
        self.mode = "answer"
        self.seen: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        import dnslib  # noqa: PLC0415 -- slow to import

        while True:
            data, client = self.udp.recvfrom(2048)
            if data == b"stop":
                return
            query = dnslib.DNSRecord.parse(data)
            self.seen.append(str(query.q.qname))
            reply = query.reply()
            if self.mode == "answer":
                reply.add_answer(dnslib.RR(query.q.qname, rdata=dnslib.A("198.51.100.7"), ttl=60))
            elif self.mode == "fail":
                reply.header.rcode = SERVFAIL
            if self.mode != "silent":
                self.udp.sendto(reply.pack(), client)

    def close(self) -> None:
        self.udp.sendto(b"stop", self.udp.getsockname())
        self._thread.join()
        self.udp.close()


@pytest.fixture
def upstream(lab: Lab) -> Iterator[UpstreamServer]:
    """A name server in the outside world, which the node uses second after a port that refuses."""
    lab.resolv_conf.write_text(f"nameserver 127.0.0.1\nnameserver {lab.CLIENT_ADDRESS}\n")
    server = UpstreamServer(lab.client_path, lab.CLIENT_ADDRESS)
    yield server
    server.close()


def test_unknown_names_are_asked_of_the_nodes_resolvers(upstream: UpstreamServer, path: str) -> None:
    """A name that is not ours goes to the node's resolvers, past one that is dead; ours never leave the node."""
    assert addresses(resolve(path, "example.com")) == ["198.51.100.7"]
    resolve(path, "web")
    assert upstream.seen == ["example.com."]


def test_a_failing_resolver_is_reported_as_such(upstream: UpstreamServer, path: str) -> None:
    """SERVFAIL of the last resolver reaches the task."""
    upstream.mode = "fail"
    assert resolve(path, "example.com").header.rcode == SERVFAIL


def test_local_names_never_wait_for_upstream(upstream: UpstreamServer, net: NetworkClient, path: str) -> None:
    """While queries hang at a silent resolver, names of services are answered; the hanging ones end in SERVFAIL."""
    upstream.mode = "silent"
    with inside(path):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.settimeout(10)
        question = bytes.fromhex("abcd01000001000000000000") + b"\7example\3com\0\0\1\0\1"
        client.sendto(question, ("127.0.0.11", 53))
        until(lambda: upstream.seen)
        assert addresses(resolve(path, "web")) == ["10.0.1.2"]
        answer = client.recv(2048)
    assert answer[:2] == bytes.fromhex("abcd")
    assert answer[3] & 15 == SERVFAIL
    assert net.stats()["dns_queries"]["timeout"] == 1


def test_tasks_of_internal_networks_ask_nobody_outside(upstream: UpstreamServer, net: NetworkClient) -> None:
    """The resolver is no way out of an internal network."""
    net.network_set(Network("net1", "front", "10.0.1.0/24", "10.0.1.1", internal=True))
    inner = net.attach(task("inner", "10.0.1.5")).netns
    assert resolve(inner, "example.com").header.rcode == NXDOMAIN
    assert upstream.seen == []
