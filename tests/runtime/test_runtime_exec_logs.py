"""Commands inside containers, and log files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orch_runtime.client import RuntimeClient
from orch_runtime.errors import InvalidConfig, WrongState
from orch_runtime.plan import LogOptions, Plan
from runtime.runtime_node import RuntimeNode, wait_for


@pytest.fixture
def sleeper(node: RuntimeNode, client: RuntimeClient) -> Plan:
    """A container that sleeps."""
    plan = node.plan(["sleep", "100"])
    client.run(plan)
    return plan


def test_exec_result(node: RuntimeNode, client: RuntimeClient, sleeper: Plan) -> None:
    """A command's output (both streams), exit code and signal come back; it sees the container's processes."""
    result = client.exec(sleeper["id"], ["sh", "-c", "ps; echo err >&2; exit 4"])
    assert (result.exit_code, result.timed_out, result.truncated) == (4, False, False)
    assert "sleep 100" in result.output
    assert "err" in result.output
    assert client.exec(sleeper["id"], ["sh", "-c", "kill -9 $$"]).exit_code == 137
    client.delete(sleeper["id"], force=True)


def test_exec_confinement(node: RuntimeNode, client: RuntimeClient, sleeper: Plan) -> None:
    """A command has the container's namespaces, group and confinement, and no descriptor of ours."""
    script = "for n in pid mnt uts ipc cgroup net; do readlink /proc/self/ns/$n; readlink /proc/1/ns/$n; done"
    names = client.exec(sleeper["id"], ["sh", "-c", script]).output.split()
    assert names[0::2] == names[1::2]
    status = client.exec(sleeper["id"], ["grep", "-E", "CapEff|NoNewPrivs|SigIgn", "/proc/self/status"]).output
    assert status == client.exec(sleeper["id"], ["grep", "-E", "CapEff|NoNewPrivs|SigIgn", "/proc/1/status"]).output
    groups = client.exec(sleeper["id"], ["cat", "/proc/self/cgroup"]).output
    assert re.search(r":memory:/$", groups, re.MULTILINE)
    assert client.exec(sleeper["id"], ["ls", "/proc/self/fd"]).output.split() == ["0", "1", "2", "3"]
    client.delete(sleeper["id"], force=True)


def test_exec_options(node: RuntimeNode, client: RuntimeClient, sleeper: Plan) -> None:
    """User, folder and environment of a command can be given; the container's environment is underneath."""
    result = client.exec(sleeper["id"], ["sh", "-c", "id -u; pwd; echo $A $HOME"], user="web", cwd="/tmp", env=["A=1"])
    assert result.output.split() == ["1000", "/tmp", "1", "/home/web"]
    assert client.exec(sleeper["id"], ["nope"]).exit_code == 127
    assert "not found on PATH" in client.exec(sleeper["id"], ["nope"]).output
    assert client.exec(sleeper["id"], ["/etc/passwd"]).exit_code == 126
    with pytest.raises(InvalidConfig):
        client.exec(sleeper["id"], [])
    with pytest.raises(InvalidConfig):
        client.exec(sleeper["id"], ["true"], cwd="relative")
    client.delete(sleeper["id"], force=True)


def test_exec_timeout_and_limit(node: RuntimeNode, client: RuntimeClient, sleeper: Plan) -> None:
    """A command that takes too long is killed with its children; output beyond the limit is cut and said to be."""
    result = client.exec(sleeper["id"], ["sh", "-c", "echo begun; sleep 50; true"], timeout_ms=200)
    assert (result.timed_out, result.exit_code, result.output) == (True, 137, "begun\n")
    wait_for(lambda: "sleep 50" not in client.exec(sleeper["id"], ["ps"]).output, "death of the child")
    result = client.exec(sleeper["id"], ["seq", "1", "100000"], max_output_bytes=1000)
    assert result.truncated
    assert len(result.output) == 1000
    assert result.exit_code == 0
    client.delete(sleeper["id"], force=True)


def test_many_execs_at_once(node: RuntimeNode, client: RuntimeClient, sleeper: Plan) -> None:
    """Commands run side by side, each with its own answer."""
    wanted = {client.send("exec", id=sleeper["id"], args=["sh", "-c", f"sleep 0.1; exit {n}"]): n for n in range(20)}
    assert {seq: client.wait(seq)["exit_code"] for seq in wanted} == wanted
    client.delete(sleeper["id"], force=True)


def test_exec_needs_a_running_container(node: RuntimeNode, client: RuntimeClient) -> None:
    """A command in a container that has exited is refused."""
    plan = node.plan(["true"])
    client.run(plan)
    node.wait_exit(client, plan["id"])
    with pytest.raises(WrongState):
        client.exec(plan["id"], ["true"])
    client.delete(plan["id"])


def test_log_format(node: RuntimeNode, client: RuntimeClient) -> None:
    """Each line is one JSON record of Docker's json-file format; an unfinished last line is there too."""
    plan = node.plan(["sh", "-c", "echo one; echo two >&2; printf 'd\\303\\251j\\303\\240 \"quoted\"'"])
    client.run(plan)
    node.wait_exit(client, plan["id"])
    records = [json.loads(line) for line in node.log_path(plan["id"]).read_text().splitlines()]
    assert {(record["log"], record["stream"]) for record in records} == {
        ("one\n", "stdout"),
        ("two\n", "stderr"),
        ('déjà "quoted"', "stdout"),
    }
    for record in records:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", record["time"])
    client.delete(plan["id"])


def test_long_lines_are_split(node: RuntimeNode, client: RuntimeClient) -> None:
    """A line longer than 16 KiB is split into records of 16 KiB; only the last one ends with a newline."""
    plan = node.plan(["sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo"])
    client.run(plan)
    node.wait_exit(client, plan["id"])
    records = [json.loads(line)["log"] for line in node.log_path(plan["id"]).read_text().splitlines()]
    assert [len(record) for record in records] == [16384, 16384, 40001 - 2 * 16384]
    assert [record.endswith("\n") for record in records] == [False, False, True]
    client.delete(plan["id"])


def test_rotation(node: RuntimeNode, client: RuntimeClient) -> None:
    """A log is rotated by size, a given number of files is kept, and no line is lost in between."""
    path = node.folder / "rotated.log"
    plan = node.plan(["seq", "1", "3000"], log=LogOptions(str(path), max_bytes=20_000, max_files=3))
    client.run(plan)
    node.wait_exit(client, plan["id"])
    files = sorted(path.parent.glob("rotated.log*"))
    assert [file.name for file in files] == ["rotated.log", "rotated.log.1", "rotated.log.2"]
    numbers = [int(json.loads(line)["log"]) for file in reversed(files) for line in file.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 3001))
    assert all(file.stat().st_size <= 20_000 for file in files)
    client.delete(plan["id"])


def test_unwritable_log_never_blocks(node: RuntimeNode, client: RuntimeClient) -> None:
    """Output that cannot be written is dropped and counted; the program goes on."""
    plan = node.plan(["seq", "1", "50000"], log=LogOptions("/dev/full-of-nothing/x.log"))
    client.run(plan)
    state = node.wait_exit(client, plan["id"])
    assert state.exit_code == 0
    assert state.logs_dropped >= 50000
    client.delete(plan["id"])


def test_log_of_a_symlink_is_refused(node: RuntimeNode, client: RuntimeClient) -> None:
    """A log path that is a symbolic link is not followed."""
    target = node.folder / "innocent"
    link = node.folder / "link.log"
    link.symlink_to(target)
    plan = node.plan(["echo", "x"], log=LogOptions(str(link)))
    client.run(plan)
    assert node.wait_exit(client, plan["id"]).logs_dropped == 1
    assert not Path(target).exists()
    client.delete(plan["id"])
