"""Docker's engine drives orch-runtime."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch_runtime.cgroups.interface import remove_tree
from runtime.runtime_node import wait_for


@pytest.fixture
def docker() -> Iterator[list[str]]:
    """The docker command against a dockerd of our own, in a mount namespace of its own, with orch-runtime added."""
    runtime = shutil.which("orch-runtime")
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("dockerd", "docker", "containerd", "unshare")):
        pytest.skip("dockerd, docker and containerd are not installed, or this is not root")
    if runtime is None:
        pytest.skip("orch-runtime is not on PATH")
    folder = Path(tempfile.mkdtemp(prefix="orch-dockerd-"))
    top = f"orch-test-{uuid.uuid4().hex[:8]}"
    words = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--host",
             f"unix://{folder}/docker.sock", "--pidfile", f"{folder}/pid", "--bridge", "none", "--iptables=false",
             "--ip6tables=false", "--storage-driver", "vfs", "--cgroup-parent", f"/{top}",
             "--add-runtime", f"orch={runtime}"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", *words], stdout=log, stderr=log, start_new_session=True
        )
    command = ["docker", "--host", f"unix://{folder}/docker.sock"]

    def answers() -> bool:
        return subprocess.run([*command, "version"], capture_output=True, timeout=20, check=False).returncode == 0

    try:
        wait_for(answers, "dockerd to answer", 25.0)
        yield command
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        finally:
            if daemon.poll() is None:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
        for path in Path("/sys/fs/cgroup").glob(f"*/{top}"):
            remove_tree(str(path))
        shutil.rmtree(folder, ignore_errors=True)


def test_dockerd_runs_a_container(docker: list[str], busybox_rootfs: Path) -> None:
    """Docker runs, executes in, pauses and removes a container by orch-runtime, under its own seccomp profile."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*docker, *words], capture_output=True, text=True, timeout=50, check=False)

    archive = subprocess.run(["tar", "-C", str(busybox_rootfs), "-c", "."], capture_output=True, check=True).stdout
    subprocess.run([*docker, "import", "-", "bb:1"], input=archive, capture_output=True, timeout=50, check=True)
    script = "grep Seccomp: /proc/self/status; exit 7"
    done = run("run", "--rm", "--runtime", "orch", "--network", "none", "bb:1", "sh", "-c", script)
    assert (done.returncode, done.stdout.split()) == (7, ["Seccomp:", "2"]), done.stderr
    started = run("run", "-d", "--runtime", "orch", "--network", "none", "--name", "c1", "bb:1", "sleep", "50")
    assert started.returncode == 0, started.stderr
    inside = run("exec", "c1", "sh", "-c", "echo inside; exit 3")
    assert (inside.returncode, inside.stdout) == (3, "inside\n")
    assert run("pause", "c1").returncode == 0
    assert run("unpause", "c1").returncode == 0
    assert "sleep 50" in run("top", "c1").stdout
    assert run("rm", "--force", "c1").returncode == 0
