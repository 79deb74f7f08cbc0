"""slirp4netns: the network of namespaces whose owner may not make links on the host."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from orch_agent.rootless.errors import RootlessError

#: The addresses that slirp4netns(1) configures.
GUEST_ADDRESS = "10.0.2.100"
NAME_SERVER = "10.0.2.3"
MTU = 65520
LOG_NAME = "slirp4netns.log"
_READY_WAIT_S = 10.0
_ANSWER_WAIT_S = 5.0
_MAX_ANSWER_BYTES = 1 << 20


def check() -> None:
    """Find out whether it can run here.

    Raises:
        RootlessError: it cannot.
    """
    if shutil.which("slirp4netns") is None:
        raise RootlessError(
            "cannot make a network: slirp4netns is not installed; install it (Debian and Ubuntu: apt install "
            "slirp4netns)"
        )
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise RootlessError(
            "cannot make a network: this user may not open /dev/net/tun; as root run: chmod 666 /dev/net/tun, and "
            "modprobe tun if it is not there"
        )


def start(pid: int, api: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Give the network namespace of a process a link to the outside.

    Returns the process, and a descriptor: when the last copy of it is closed, slirp4netns ends.

    Raises:
        RootlessError: it did not come up.
    """
    api.unlink(missing_ok=True)
    ready_reader, ready_writer = os.pipe2(os.O_CLOEXEC)
    exit_reader, exit_writer = os.pipe2(os.O_CLOEXEC)
    arguments = ["--configure", f"--mtu={MTU}", "--disable-host-loopback", "--api-socket", str(api)]
    arguments += ["--ready-fd", str(ready_writer), "--exit-fd", str(exit_reader), str(pid), "tap0"]
    log = api.with_name(LOG_NAME)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    process = subprocess.Popen(
        ["slirp4netns", *arguments],
        pass_fds=(ready_writer, exit_reader),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # a Ctrl-C is for orchd, which still needs the network to end well
    )
    os.close(ready_writer)
    os.close(exit_reader)
    os.close(output)
    readable, _, _ = select.select([ready_reader], [], [], _READY_WAIT_S)
    came_up = bool(readable) and os.read(ready_reader, 1) == b"1"
    os.close(ready_reader)
    if not came_up:
        process.kill()
        process.wait()
        os.close(exit_writer)
        raise RootlessError(f"cannot make a network: slirp4netns did not come up: {log.read_text()[-500:]}")
    return process, exit_writer


def ask(api: Path, command: str, **arguments: object) -> Any:
    """Send one command of slirp4netns's API (its README, "API socket") and return what it gives back.

    Raises:
        OSError: it does not answer.
        ValueError: it refuses; the text says why.
    """
    request: dict[str, object] = {"execute": command}
    if arguments:
        request["arguments"] = arguments
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_ANSWER_WAIT_S)
        channel.connect(str(api))
        channel.sendall(json.dumps(request).encode())
        channel.shutdown(socket.SHUT_WR)
        answer = b""
        while len(answer) < _MAX_ANSWER_BYTES and (data := channel.recv(65536)):
            answer += data
    document = json.loads(answer)
    if "error" in document:
        raise ValueError(str(document["error"].get("desc", document["error"])))
    return document.get("return", document)  # a list of forwards comes without the wrapping
