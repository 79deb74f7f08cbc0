"""Tools of the network tests: enter namespaces, small servers, questions, waiting."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from orch_network.protocol import Endpoint, Network, Service, Task, TaskAddress

T = TypeVar("T")
POLL_S = 0.02
_LIMIT_S = 20.0
_libc = ctypes.PyDLL(None, use_errno=True)


def world_name(mark: str) -> str:
    """The name of a namespace of this test run."""
    return f"orch-net-test-{mark}"


def until(attempt: Callable[[], T | None], limit_s: float = _LIMIT_S) -> T:
    """The first true value of ``attempt``; fails at the deadline."""
    deadline = time.monotonic() + limit_s
    while True:
        value = attempt()
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(POLL_S)


@contextlib.contextmanager
def inside(path: str) -> Iterator[None]:
    """Run the body in the namespace at ``path``; sockets made there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    target = os.open(path, os.O_RDONLY)
    try:
        assert _libc.setns(target, 0x40000000) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert _libc.setns(home, 0x40000000) == 0
        os.close(target)
        os.close(home)


class EchoServer:
    """Answers each connection or datagram with its name and the client's address, as JSON."""

    def __init__(self, path: str, name: str, port: int, kind: str = "tcp") -> None:
        self._name = name
        self._tcp = kind == "tcp"
        with inside(path):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("0.0.0.0", port))
        if self._tcp:
            self._socket.listen(64)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._stop_read], [], [])
            if self._stop_read in ready:
                return
            if self._tcp:
                peer, (address, _port) = self._socket.accept()
                with peer, contextlib.suppress(OSError):
                    peer.sendall(self._answer(address))
            else:
                _data, client = self._socket.recvfrom(2048)
                self._socket.sendto(self._answer(client[0]), client)

    def _answer(self, address: str) -> bytes:
        return json.dumps({"name": self._name, "client": address}).encode()

    def close(self) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join()
        self._socket.close()
        os.close(self._stop_read)
        os.close(self._stop_write)


def ask(path: str, address: str, port: int, timeout_s: float = 3.0) -> dict[str, str]:
    """Connect by TCP from a namespace; the server's answer. Raises OSError as the socket does."""
    with inside(path):
        client = socket.socket()
    with client:
        client.settimeout(timeout_s)
        client.connect((address, port))
        data = b""
        while chunk := client.recv(2048):
            data += chunk
    answer: dict[str, str] = json.loads(data)
    return answer


def udp_socket(path: str, timeout_s: float = 3.0) -> socket.socket:
    """A UDP socket of a namespace."""
    with inside(path):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(timeout_s)
    return client


def resolve(path: str, name: str, kind: int = 1, *, tcp: bool = False) -> Any:
    """Ask 127.0.0.11 from a namespace; the answer as dnslib reads it."""
    import dnslib  # noqa: PLC0415 -- slow to import; most tests do not ask

    question = dnslib.DNSRecord(q=dnslib.DNSQuestion(name, kind))
    with inside(path):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    with client:
        client.settimeout(5)
        client.connect(("127.0.0.11", 53))
        packed = question.pack()
        if tcp:
            client.sendall(len(packed).to_bytes(2, "big") + packed)
            data = client.recv(65_537)
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                data += client.recv(65_537)
            data = data[2:]
        else:
            client.send(packed)
            data = client.recv(65_535)
    answer = dnslib.DNSRecord.parse(data)
    assert answer.header.id == question.header.id
    return answer


def addresses(answer: Any) -> list[str]:
    """The addresses of a DNS answer, sorted."""
    return sorted(str(record.rdata) for record in answer.rr)


def tool(path: str, *argv: str) -> str:
    """What a program says inside a namespace."""
    return subprocess.run(["nsenter", f"--net={path}", "--", *argv], check=True, capture_output=True, text=True).stdout


FRONT = Network("net1", "front", "10.0.1.0/24", "10.0.1.1", mtu=1450)
BACK = Network("net2", "back", "10.0.2.0/24", "10.0.2.1", mtu=1450)


def task(task_id: str, address: str, network: Network = FRONT) -> Task:
    """A task in one network."""
    return Task(task_id, (TaskAddress(network.id, address),), network.id)


def service(name: str, vip: str, *members: tuple[str, str], aliases: tuple[str, ...] = ()) -> Service:
    """A service with endpoints given as (task id, address), slots counted from 1."""
    endpoints = tuple(
        Endpoint(task_id, slot, address, (f"host-{task_id}",)) for slot, (task_id, address) in enumerate(members, 1)
    )
    return Service(f"id-{name}", name, aliases, vip, endpoints)
