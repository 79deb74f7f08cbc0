"""Commands inside containers on streams of their own: pipes, or a terminal."""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator

import pytest

from orch_runtime.client import RuntimeClient
from orch_runtime.errors import InvalidConfig, NotFound
from orch_runtime.plan import Plan
from runtime.runtime_node import RuntimeNode, wait_for


@pytest.fixture
def sleeper(node: RuntimeNode, client: RuntimeClient) -> Iterator[Plan]:
    """A container that sleeps."""
    plan = node.plan(["sleep", "100"])
    client.run(plan)
    yield plan
    client.delete(plan["id"], force=True)


def read_until(fd: int, wanted: bytes, limit_s: float = 10.0) -> bytes:
    """Read until `wanted` has come; fails with what came instead."""
    deadline = time.monotonic() + limit_s
    got = b""
    while wanted not in got:
        ready, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"{wanted!r} did not come, but {got!r}"
        got += os.read(fd, 65536)
    return got


class Terminal:
    """A command on a terminal, and our end of it."""

    def __init__(self, client: RuntimeClient, container_id: str, args: list[str], **fields: object) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            self.seq = client.send(
                "exec", descriptors=[theirs.fileno()], id=container_id, args=args, terminal=True, **fields
            )
            theirs.close()
            ours.settimeout(10)
            _, rights, _, _ = ours.recvmsg(64, 64)
        self.fd = array.array("i", rights[0][2])[0]

    def close(self) -> None:
        os.close(self.fd)


def test_streams_of_its_own(client: RuntimeClient, sleeper: Plan) -> None:
    """A command reads what is sent, sees its end, and keeps output and errors apart; its exit code is the answer."""
    stdin_reader, stdin = os.pipe()
    stdout, stdout_writer = os.pipe()
    stderr, stderr_writer = os.pipe()
    theirs = [stdin_reader, stdout_writer, stderr_writer]
    seq = client.send("exec", descriptors=theirs, id=sleeper["id"], args=["sh", "-c", "cat; echo bad >&2; exit 3"])
    for fd in theirs:
        os.close(fd)
    os.write(stdin, b"hello\n")
    assert read_until(stdout, b"hello\n") == b"hello\n"
    os.close(stdin)
    answer = client.wait(seq)
    assert (answer["exit_code"], answer["output"]) == (3, "")
    assert os.read(stderr, 100) == b"bad\n"
    assert os.read(stdout, 100) == b""
    os.close(stdout)
    os.close(stderr)


def test_terminal(client: RuntimeClient, sleeper: Plan) -> None:
    """A command on a terminal of the container's own sees its size, changes of it, and Ctrl-C."""
    terminal = Terminal(client, sleeper["id"], ["sh"], rows=33, columns=99, env=["PS1=ready: "])
    read_until(terminal.fd, b"ready: ")
    os.write(terminal.fd, b"readlink /proc/self/fd/0; echo $((1+1))\n")
    assert b"/dev/pts/" in read_until(terminal.fd, b"2\r\n")
    size = struct.unpack("4H", fcntl.ioctl(terminal.fd, termios.TIOCGWINSZ, b"\0" * 8))
    assert size[:2] == (33, 99)
    os.write(terminal.fd, b"sleep 50\n")
    read_until(terminal.fd, b"sleep 50\r\n")
    wait_for(lambda: "sleep 50" in client.exec(sleeper["id"], ["ps"]).output, "the sleep")
    os.write(terminal.fd, b"\x03")
    read_until(terminal.fd, b"ready: ")
    os.write(terminal.fd, b"exit 7\n")
    assert client.wait(terminal.seq)["exit_code"] == 7
    terminal.close()


def test_terminal_belongs_to_the_user(client: RuntimeClient, sleeper: Plan) -> None:
    """A user who is not root owns the terminal that its command has."""
    terminal = Terminal(client, sleeper["id"], ["sh", "-c", "stat -c %U /proc/self/fd/0 -L; id -un"], user="web")
    assert read_until(terminal.fd, b"web\r\nweb\r\n")
    assert client.wait(terminal.seq)["exit_code"] == 0
    terminal.close()


def test_signal_reaches_the_command(client: RuntimeClient, sleeper: Plan) -> None:
    """A signal goes to a command by the number of its request, and to what it has started."""
    terminal = Terminal(client, sleeper["id"], ["sleep", "60"])
    client.call("exec-signal", exec=terminal.seq, signal=15)
    assert client.wait(terminal.seq)["exit_code"] == 128 + 15
    with pytest.raises(NotFound):
        client.call("exec-signal", exec=terminal.seq, signal=15)
    terminal.close()


def test_command_ends_with_its_connection(node: RuntimeNode, client: RuntimeClient, sleeper: Plan) -> None:
    """A command whose caller goes away is hung up, and killed when it does not listen."""
    other = node.client()
    terminal = Terminal(other, sleeper["id"], ["sh", "-c", "trap '' HUP; echo there; sleep 77; true"])
    read_until(terminal.fd, b"there")
    other.close()
    wait_for(lambda: "sleep 77" not in client.exec(sleeper["id"], ["ps"]).output, "end of the command")
    terminal.close()


def test_start_and_failure_are_told(client: RuntimeClient, sleeper: Plan) -> None:
    """A program that cannot be executed answers with the shell's code and the reason, also on a terminal."""
    terminal = Terminal(client, sleeper["id"], ["nope"])
    answer = client.wait(terminal.seq)
    assert answer["exit_code"] == 127
    assert "not found" in answer["output"]
    terminal.close()


def test_wrong_descriptors(client: RuntimeClient, sleeper: Plan) -> None:
    """Another number of descriptors than three, or one for a terminal, is refused."""
    with pytest.raises(InvalidConfig):
        client.wait(client.send("exec", descriptors=[0], id=sleeper["id"], args=["true"]))
    with pytest.raises(InvalidConfig):
        client.wait(client.send("exec", id=sleeper["id"], args=["true"], terminal=True))


def test_processes(client: RuntimeClient, sleeper: Plan) -> None:
    """The processes of a container are told by the pids that the node sees."""
    pids = client.call("processes", id=sleeper["id"])["pids"]
    assert pids == [client.state(sleeper["id"]).pid]
