"""Commands about one running task, from the command line through the managers to its node."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.playground_driver import ORCH, Playground, wait_for

STACK = """
services:
  web:
    image: test:1
    command: sh -c 'trap "exit 5" TERM; while true; do echo tick; sleep 0.1; done'
    stop_grace_period: 1s
    deploy: {replicas: 2}
"""


@pytest.fixture
def web(clean: Playground) -> Iterator[Playground]:
    """Two tasks that say something again and again."""
    clean.deploy("box", STACK)
    yield clean
    clean.orch("stack", "rm", "box")


class Typist:
    """`orch` on a terminal of its own."""

    def __init__(self, playground: Playground, *words: str) -> None:
        self._seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(
                ORCH, [str(ORCH), *words], {**os.environ, "ORCH_HOST": f"unix://{playground.node.manager_socket}"}
            )

    def sees(self, wanted: bytes, limit_s: float = 20.0) -> None:
        deadline = time.monotonic() + limit_s
        while wanted not in self._seen:
            ready, _, _ = select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{wanted!r} did not come, but {self._seen!r}"
            self._seen += os.read(self.fd, 65536)

    def types(self, text: bytes) -> None:
        os.write(self.fd, text)

    def status(self) -> int:
        with contextlib.suppress(OSError):  # the end of a terminal
            while os.read(self.fd, 65536):
                pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_exec(web: Playground) -> None:
    """A command's streams, its exit code and its refusal come back as if it had run here."""
    result = web.orch("exec", "-u", "5:6", "-e", "A=1", "box_web.2", "sh", "-c", "id -u; echo $A >&2; exit 3", ok=False)
    assert (result.status, result.stdout, result.stderr) == (3, "5\n", "1\n")
    piped = subprocess.run(
        [ORCH, "exec", "-i", "box_web.1", "wc", "-c"],
        input=bytes(2_000_000),
        env={**os.environ, "ORCH_HOST": f"unix://{web.node.manager_socket}"},
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert piped.stdout.split() == [b"2000000"]
    missing = web.orch("exec", "box_web.1", "nope", ok=False)
    assert missing.status == 127
    assert "not found" in missing.stderr
    assert "no task" in web.orch("exec", "box_nope", "true", ok=False).stderr


def test_exec_on_a_terminal(web: Playground) -> None:
    """Keys, Ctrl-C and the exit code pass through a terminal; the detach keys leave the command running."""
    script = "trap 'echo caught; exit 6' INT; echo begun; read line; echo got $line; while true; do sleep 0.1; done"
    typist = Typist(web, "exec", "-it", "box_web.1", "sh", "-c", script)
    typist.sees(b"begun")
    typist.types(b"hello\n")
    typist.sees(b"got hello")
    typist.types(b"\x03")
    typist.sees(b"caught")
    assert typist.status() == 6
    typist = Typist(web, "exec", "-it", "box_web.1", "sh", "-c", "echo begun; sleep 61")
    typist.sees(b"begun")
    typist.types(b"\x10\x11")
    assert typist.status() == 0
    assert "sleep 61" in web.orch("top", "box_web.1").stdout


def test_a_command_ends_with_its_caller(web: Playground) -> None:
    """When the command line is killed, what it ran in the container is ended."""
    typist = Typist(web, "exec", "-t", "box_web.1", "sh", "-c", "echo begun; sleep 62")
    typist.sees(b"begun")
    os.kill(typist.pid, signal.SIGKILL)
    assert typist.status() == -signal.SIGKILL
    wait_for(lambda: "sleep 62" not in web.orch("top", "box_web.1").stdout, "the command is ended")


def test_copies(web: Playground, tmp_path: Path) -> None:
    """Files go into a task and come out again; a link in the container leads nowhere else."""
    (tmp_path / "file").write_bytes(os.urandom(3_000_000))
    web.orch("cp", str(tmp_path / "file"), "box_web.1:/tmp-file")
    web.orch("cp", "box_web.1:/tmp-file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    web.orch("exec", "box_web.1", "sh", "-c", f"ln -s {tmp_path} /out; ln -s /proc/1/root /magic")
    assert "no such" in web.orch("cp", str(tmp_path / "file"), "box_web.1:/out/evil", ok=False).stderr
    assert web.orch("cp", "box_web.1:/magic/etc/hosts", str(tmp_path / "x"), ok=False).status == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "file"]
    assert "2 tasks" in web.orch("cp", str(tmp_path / "file"), "box_web:/x", ok=False).stderr


def test_pause_and_usage(web: Playground) -> None:
    """A paused task is shown as such, runs nothing, and can be stopped; usage has a row for each task."""
    web.orch("pause", "box_web.1")
    assert "Running (paused)" in wait_for(
        lambda: next((text for text in [web.orch("ps").stdout] if "(paused)" in text), ""), "the pause is shown"
    )
    assert "paused" in web.orch("exec", "box_web.1", "true", ok=False).stderr
    web.orch("unpause", "box_web.1")
    web.orch("exec", "box_web.1", "true")
    web.orch("pause", "box_web.2")
    rows = web.orch("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}").stdout.split("\n")
    assert [row.split()[0] for row in rows if row] == ["box_web.1", "box_web.2"]


def test_a_process_that_runs_out_of_memory_is_told(clean: Playground) -> None:
    """When the kernel kills a process of a task that runs on, the list of tasks says so."""
    command = "sh -c 'while true; do tail -c 64m /dev/zero > /dev/null; sleep 0.2; done'"
    limits = "{resources: {limits: {memory: 16m}}}"
    clean.deploy("oom", f"services:\n  eater:\n    image: test:1\n    command: {command}\n    deploy: {limits}\n")
    wait_for(lambda: "out of memory: a process" in clean.orch("ps", "--no-trunc").stdout, "the list says so")
    clean.orch("stack", "rm", "oom")


def test_attach(web: Playground) -> None:
    """Attach shows what comes from now on; with --sig-proxy signals reach the task; its exit code is the answer."""
    process = subprocess.Popen(
        [ORCH, "attach", "--sig-proxy", "box_web.2"],
        env={**os.environ, "ORCH_HOST": f"unix://{web.node.manager_socket}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"tick\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 5
