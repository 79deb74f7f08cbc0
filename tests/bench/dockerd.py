"""Docker Swarm as a peer: a dockerd of our own beside the host's, in namespaces and folders of its own.

Needs Debian's docker.io (dockerd, containerd, runc). The daemon gets a private network namespace (Swarm makes bridges
and rules), a private mount namespace, and folders that are removed afterwards; it is given nothing to pull.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

STACK = """\
version: "3.8"
services:
  sleeper:
    image: bench:1
    command: ["sh", "-c", 'trap "exit 0" TERM; sleep infinity & wait']
    networks: [host_bridge]
    deploy:
      replicas: {replicas}
      restart_policy: {{delay: {delay}}}
networks:
  host_bridge: {{external: true, name: bridge}}
"""
START_LIMIT_S = 60.0
STEP_LIMIT_S = 120.0


class Docker:
    """A running dockerd that is a Swarm of one node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"

    def run(self, *words: str, stdin: bytes | None = None, check: bool = True) -> str:
        result = subprocess.run(
            [docker_client(), "--host", f"unix://{self.socket}", *words], input=stdin, capture_output=True, check=False
        )
        if check and result.returncode != 0:
            raise RuntimeError(f"docker {' '.join(words)}: {result.stderr.decode()}")
        return result.stdout.decode().strip()

    def running(self, service: str) -> int:
        states = self.run(
            "service", "ps", "--format", "{{.CurrentState}}", "--filter", "desired-state=running", service
        )
        return sum(line.startswith("Running") for line in states.splitlines())

    def deploy(self, stack: str, replicas: int, delay: str = "0s") -> float:
        """Seconds from just before `docker stack deploy` until all replicas are Running."""
        file = self.folder / "stack.yml"
        file.write_text(STACK.format(replicas=replicas, delay=delay))
        began = time.monotonic()
        self.run("stack", "deploy", "--resolve-image", "never", "-c", str(file), stack)
        _wait(lambda: self.running(f"{stack}_sleeper") >= replicas)
        return time.monotonic() - began

    def remove(self, stack: str) -> float:
        """Seconds from just before `docker stack rm` until no container is left."""
        began = time.monotonic()
        self.run("stack", "rm", stack)
        _wait(lambda: not self.run("ps", "-q", "--filter", f"label=com.docker.stack.namespace={stack}"))
        return time.monotonic() - began


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STEP_LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("docker did not get there in time")
        time.sleep(0.02)


def docker_client() -> str:
    """Debian's client, which fits the daemon; another one on PATH may be of any version."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else shutil.which("docker") or "docker"


def missing() -> str | None:
    """Why there can be no peer; None if there can."""
    absent = [tool for tool in ("dockerd", "containerd", "runc") if shutil.which(tool) is None]
    return f"{', '.join(absent)} missing: apt-get install docker.io (its service need not run)" if absent else None


@contextmanager
def swarm() -> Iterator[Docker]:
    """A dockerd with an image `bench:1` of busybox alone, in Swarm mode; all of it is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="orch-bench-docker-", dir="/var/tmp"))
    peer = Docker(folder)
    log = (folder / "log").open("w")
    # The first process of a pid namespace takes everything with it: containerd, shims and containers.
    daemon = subprocess.Popen(
        [
            *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", 'ip link set lo up; exec dockerd "$@"', "dockerd"),
            *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
            *("--pidfile", str(folder / "pid"), "--host", f"unix://{peer.socket}", "--cgroup-parent", folder.name),
        ],
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while not peer.run("version", "--format", "{{.Server.Version}}", check=False):
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        peer.run("import", "--change", "ENV PATH=/bin", "-", "bench:1", stdin=_root_file_system(folder))
        peer.run("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
        yield peer
    finally:
        # With the first process of its pid namespace everything in it dies.
        daemon.kill()
        daemon.wait()
        time.sleep(1)
        log.close()
        _remove(folder)


def _root_file_system(folder: Path) -> bytes:
    tree = folder / "tree"
    (tree / "bin").mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin" / "busybox")
    for name in ("sh", "sleep"):
        (tree / "bin" / name).symlink_to("busybox")
    return subprocess.run(["tar", "-C", str(tree), "-c", "."], capture_output=True, check=True).stdout


def _remove(folder: Path) -> None:
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        for root, _, _ in os.walk(hierarchy / folder.name, topdown=False):
            try:
                Path(root).rmdir()
            except OSError as error:
                print(f"left behind: {root}: {error}")
    shutil.rmtree(folder, ignore_errors=True)
