"""What running without root decides before it touches the kernel: places, maps of ids, ports."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch_agent.rootless import id_maps, places, ports, slirp
from orch_agent.rootless.errors import RootlessError
from orch_agent.rootless.id_maps import Range
from orch_network.protocol import PublishedPort


def test_places_are_those_of_the_user() -> None:
    """State goes below the user's data folder, sockets below their runtime folder, as the XDG specification has it."""
    assert places.state_dir({"HOME": "/home/a"}) == Path("/home/a/.local/share/orch")
    assert places.state_dir({"HOME": "/home/a", "XDG_DATA_HOME": "/data"}) == Path("/data/orch")
    assert places.run_dir({"XDG_RUNTIME_DIR": "/run/user/7"}) == Path("/run/user/7/orch")


def test_missing_places_are_named() -> None:
    """Without a runtime folder or a home the error names the variable and the option that helps."""
    with pytest.raises(RootlessError, match=r"XDG_RUNTIME_DIR is not set.*--run-dir"):
        places.run_dir({"HOME": "/home/a"})
    with pytest.raises(RootlessError, match=r"HOME is not set.*--state-dir"):
        places.state_dir({"XDG_DATA_HOME": "relative"})


def test_ranges_are_found_by_name_and_by_number(tmp_path: Path) -> None:
    """The user's lines of subuid(5) count, by name or number; those of others and malformed ones do not."""
    file = tmp_path / "subuid"
    file.write_text("root:100:10\n0:300:5\nsomebody:1:2\nroot:x:3\nroot:7\n\nroot:500:0\n")
    assert id_maps.delegated(file, 0) == [Range(100, 10), Range(300, 5)]
    assert id_maps.delegated(tmp_path / "absent", 0) == []


def test_maps_put_the_user_first_and_ranges_after_each_other() -> None:
    """Inside, 0 is the user, and 1 and up are the delegated ids without a gap."""
    assert id_maps.map_arguments(1000, [Range(100000, 65536), Range(300000, 10)]) == (
        ["0", "1000", "1", "1", "100000", "65536", "65537", "300000", "10"]
    )


def port(published: int, host_ip: str = "") -> PublishedPort:
    return PublishedPort(
        protocol="tcp",
        published=published,
        network_id="n",
        service_id="s",
        target=80,
        host_ip=host_ip,
        endpoints=(),
    )


class Slirp:
    """Answers as slirp4netns does on its API socket, and keeps forwards; port 9 is refused."""

    def __init__(self, path: Path) -> None:
        self.forwards: dict[int, tuple[str, str, int]] = {}
        self._next = 1
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            with channel:
                channel.sendall(json.dumps(self._answer(json.loads(channel.recv(65536)))).encode())

    def _answer(self, request: dict[str, object]) -> dict[str, object]:
        arguments = request.get("arguments")
        if request["execute"] == "list_hostfwd":
            entries = [
                {"id": number, "proto": protocol, "host_addr": address, "host_port": published}
                for number, (protocol, address, published) in self.forwards.items()
            ]
            return {"entries": entries}
        assert isinstance(arguments, dict)
        if request["execute"] == "remove_hostfwd":
            del self.forwards[arguments["id"]]
            return {"return": {}}
        if arguments["host_port"] == 9:
            return {"error": {"desc": "bad request: add_hostfwd: slirp_add_hostfwd failed"}}
        self.forwards[self._next] = (arguments["proto"], arguments["host_addr"], arguments["host_port"])
        self._next += 1
        return {"return": {"id": self._next - 1}}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[Path, Slirp]]:
    path = tmp_path / "slirp.sock"
    served = Slirp(path)
    yield path, served
    served.close()


def test_forwards_become_the_published_ports(api: tuple[Path, Slirp]) -> None:
    """What is missing is added, what is too much removed, what is right left alone, and what is refused tried again."""
    path, served = api
    forwarder = ports.PortForwarder(path, list)
    forwarder.reconcile(ports.wanted_forwards([port(8080), port(8081, "127.0.0.1"), port(9)]))
    assert served.forwards == {1: ("tcp", "0.0.0.0", 8080), 2: ("tcp", "127.0.0.1", 8081)}
    forwarder.reconcile(ports.wanted_forwards([port(8080), port(8082)]))
    assert served.forwards == {1: ("tcp", "0.0.0.0", 8080), 3: ("tcp", "0.0.0.0", 8082)}
    with pytest.raises(ValueError, match="slirp_add_hostfwd failed"):
        slirp.ask(path, "add_hostfwd", proto="tcp", host_addr="127.0.0.1", host_port=9)


def test_a_refused_port_has_its_reason() -> None:
    """Below 1024 it is for want of root; above, somebody else listens."""
    assert "need root" in ports.why_refused(("tcp", "0.0.0.0", 80), "failed")
    assert "another program" in ports.why_refused(("tcp", "0.0.0.0", 8080), "failed")


def test_nobody_answering_is_an_error_of_the_system(tmp_path: Path) -> None:
    """A slirp4netns that is gone is an OSError, upon which the forwarder tries again."""
    with pytest.raises(OSError, match=os.strerror(2)):
        slirp.ask(tmp_path / "absent.sock", "list_hostfwd")
