"""Containers go on while their log cannot be written: a full disk drops lines, a supervisor that sleeps delays them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch_runtime.client import RuntimeClient
from orch_runtime.plan import LogOptions
from runtime.runtime_node import RuntimeNode, wait_for


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "small", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_no_container(node: RuntimeNode, client: RuntimeClient, small_disk: Path) -> None:
    """A container that writes to a log on a full disk ends as it would anyway; the lines that are lost are counted."""
    path = small_disk / "log"
    plan = node.plan(["seq", "1", "60000"], log=LogOptions(str(path), max_bytes=10 << 20, max_files=2))
    client.run(plan)
    assert node.wait_exit(client, plan["id"]).exit_code == 0
    assert client.state(plan["id"]).logs_dropped > 0
    assert '"1\\n"' in path.read_text().splitlines()[0]
    client.delete(plan["id"])


def test_room_again_means_lines_again(node: RuntimeNode, client: RuntimeClient, small_disk: Path) -> None:
    """When a full disk has room again, the log goes on with what is written from then on."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(256 * 1024))
    path = small_disk / "log"
    script = "echo early; while ! test -e /go; do sleep 0.02; done; echo late"
    plan = node.plan(["sh", "-c", script], log=LogOptions(str(path), max_bytes=1 << 20, max_files=2))
    client.run(plan)
    wait_for(lambda: client.state(plan["id"]).logs_dropped > 0, "the early line is dropped")
    filler.unlink()
    client.exec(plan["id"], ["touch", "/go"])
    node.wait_exit(client, plan["id"])
    assert [json.loads(line)["log"] for line in path.read_text().splitlines() if line] == ["late\n"]
    client.delete(plan["id"])


def test_a_supervisor_that_sleeps_delays_and_loses_nothing(node: RuntimeNode, client: RuntimeClient) -> None:
    """A program that writes more than its pipe holds waits while nobody reads, and every line is there in the end."""
    plan = node.plan(["sh", "-c", "while ! test -e /go; do sleep 0.02; done; seq 1 30000"])
    client.run(plan)
    client.exec(plan["id"], ["touch", "/go"])
    supervisor = int(client.version()["pid"])
    pid = client.state(plan["id"]).pid
    os.kill(supervisor, signal.SIGSTOP)
    try:
        wait_for(lambda: "pipe" in Path(f"/proc/{_writer(pid)}/wchan").read_text(), "the writer waits for room")
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert node.wait_exit(client, plan["id"]).exit_code == 0
    lines = [json.loads(line)["log"] for line in node.log_path(plan["id"]).read_text().splitlines()]
    assert lines == [f"{number}\n" for number in range(1, 30001)]
    client.delete(plan["id"])


def _writer(pid: int) -> int:
    """The newest child of a process, or itself."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[-1]) if children else pid
