"""An ordinary user runs orchd, and with it a cluster of one node, without root."""

from __future__ import annotations

import http.client
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import ordinary_user
from cluster.ordinary_user import SUBORDINATE_FIRST, UID
from cluster.playground_driver import Result, wait_for

TOOLS = ("newuidmap", "slirp4netns")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
ORDINARY = [sys.executable, ordinary_user.__file__]
COMMAND_LIMIT_S = 40.0
PORT = 18473

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing (Debian: uidmap, slirp4netns)"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="this kernel has no /dev/net/tun"),
]

STACK = f"""
services:
  web:
    image: test:1
    init: true
    command: [sh, -c, "echo serving; httpd -p 80 -h /www; while [ ! -e /die ]; do sleep 0.05; done; exit 3"]
    ports: ["127.0.0.1:{PORT}:80", "81:80"]
    volumes: [kept:/kept]
    deploy:
      resources: {{limits: {{memory: 64M}}}}
      restart_policy: {{delay: 100ms}}
volumes: {{kept: {{}}}}
"""
DOCKERFILE = """FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /www/below && echo hello > /www/index.html && echo old > /www/below/old
RUN rm -r /www/below && mkdir /www/below && chown 7:8 /www/below
ENV PATH=/bin
"""


class User:
    """The ordinary user: a folder with their home, their command line, and their orchd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._orchd: subprocess.Popen[bytes] | None = None

    def run(self, *command: str) -> Result:
        """Runs a program as the user."""
        done = subprocess.run(
            [*ORDINARY, str(self.folder), *command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def orch(self, *arguments: str) -> str:
        """Runs the command line, which must succeed; returns what it prints."""
        result = self.run("orch", *arguments)
        assert result.status == 0, f"orch {' '.join(arguments)}: {result.stdout}{result.stderr}\n{self.log()}"
        return result.stdout

    def log(self) -> str:
        """What orchd has said."""
        path = self.folder / "orchd.log"
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        """Starts orchd and waits until it listens."""
        with (self.folder / "orchd.log").open("ab") as log:
            self._orchd = subprocess.Popen(
                [*ORDINARY, str(self.folder), "orchd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        socket = self.folder / "run" / "orch" / "orchd.sock"
        wait_for(socket.exists, f"orchd's socket; it said:\n{self.log()}")

    def end(self, number: signal.Signals) -> None:
        """Signals orchd, and waits for the end of every process of the user."""
        if self._orchd is not None:
            orchd, self._orchd = self._orchd, None
            orchd.send_signal(number)
            try:
                orchd.wait(20)
            except subprocess.TimeoutExpired:
                orchd.kill()
                orchd.wait(20)
                raise
        wait_for(lambda: not processes(), "the user's processes to end")


def processes() -> list[str]:
    """The living processes of the user and of the ids that they were given."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        uid = int(fields["Uid"].split()[0])
        if (uid == UID or 0 <= uid - SUBORDINATE_FIRST < 65536) and not fields["State"].strip().startswith("Z"):
            found.append(f"{entry.name} {fields['Name'].strip()}")
    return found


@pytest.fixture(scope="module")
def user(busybox: str) -> Iterator[User]:
    """The user with an orchd that has made a cluster, and an image; afterwards nothing of it is left."""
    assert processes() == []
    folder = Path(tempfile.mkdtemp(prefix="orch-rootless-"))
    try:
        ordinary_user.make_folder(folder)
        made = User(folder)
        context = folder / "context"
        context.mkdir()
        shutil.copy(busybox, context / "busybox")
        (context / "busybox").chmod(0o755)
        (context / "Dockerfile").write_text(DOCKERFILE)
        (context / "stack.yml").write_text(STACK)
        made.start()
        try:
            made.orch("cluster", "init")
            made.orch("image", "build", "--tag", "test:1", str(context))
            yield made
        finally:
            made.end(signal.SIGTERM)
        mounted = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
        assert mounted == []
        assert sorted(path.name for path in (folder / "run" / "orch").glob("*.sock")) == []
    finally:
        shutil.rmtree(folder)


def page() -> str:
    """What the published port answers on the host; empty when nobody does."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=2) as answer:
            return str(answer.read().decode())
    except (OSError, http.client.HTTPException):
        return ""


def test_an_ordinary_user_runs_a_stack(user: User) -> None:
    """Without root: images are built, a stack runs, answers on the host, is looked into, restarted and removed."""
    user.orch("deploy", "--name", "web", str(user.folder / "context" / "stack.yml"))
    assert wait_for(page, "the published port to answer") == "hello\n"
    assert "7 8" in user.orch("exec", "web_web.1", "stat", "-c", "%u %g", "/www/below")
    assert user.orch("exec", "web_web.1", "ls", "/www/below") == ""
    assert "memory limit not set" in user.orch("ps", "--no-trunc")
    assert "ports below 1024 need root" in user.log()
    user.orch("exec", "web_web.1", "sh", "-c", "echo here > /kept/file; touch /die")
    wait_for(lambda: "non-zero exit (3)" in user.orch("ps", "-a", "--no-trunc"), "the dead container to be replaced")
    assert wait_for(page, "the new container to answer") == "hello\n"
    assert user.orch("exec", "web_web.1", "cat", "/kept/file") == "here\n"
    assert user.orch("logs", "--raw", "web_web").count("serving") >= 1


@pytest.mark.long
def test_the_death_of_orchd_is_the_end_of_all_it_ran_and_the_next_one_goes_on(user: User) -> None:
    """SIGKILL of orchd's outer half leaves no process behind; the next one runs the same stacks with their data."""
    user.orch("deploy", "--name", "web", str(user.folder / "context" / "stack.yml"))
    user.orch("exec", "web_web.1", "sh", "-c", "echo there > /kept/file")
    user.end(signal.SIGKILL)
    assert page() == ""
    user.start()
    assert wait_for(page, "the stack to be back", 30.0) == "hello\n"
    assert user.orch("exec", "web_web.1", "cat", "/kept/file") == "there\n"
    user.orch("stack", "rm", "web")
    deadline = time.monotonic() + 10
    while page():
        assert time.monotonic() < deadline, "the port of a removed stack still answers"


def test_what_cannot_be_done_without_root_is_refused_with_its_reason(user: User) -> None:
    """Joining a cluster and a second orchd are refused in a sentence each."""
    joined = user.run("orch", "cluster", "join", "--token", "none", "192.0.2.1")
    assert joined.status == 1
    assert "this orchd runs without root" in joined.stderr
    second = user.run("orchd")
    assert second.status == 1
    assert "another orchd uses" in second.stderr
