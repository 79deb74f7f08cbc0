"""The program's process: exit codes, users, environment, signals, init."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from orch_runtime.client import RuntimeClient
from orch_runtime.errors import AlreadyExists, NotFound, StartFailed, WrongState
from runtime.runtime_node import RuntimeNode, first_exit, wait_for


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["no-such-program"], 127, "not found on PATH"),
        (["/no/such"], 127, "no such file"),
        (["/etc/passwd"], 126, "Permission denied"),
        (["/home"], 126, "Permission denied"),
    ],
)
def test_program_that_cannot_run(
    node: RuntimeNode, client: RuntimeClient, args: list[str], code: int, reason: str
) -> None:
    """A program that cannot be executed fails `run` with the shell's code and the reason, and leaves nothing."""
    with pytest.raises(StartFailed, match=reason) as caught:
        client.run(node.plan(args))
    assert caught.value.exit_code == code
    assert client.list() == []


def test_exit_codes(node: RuntimeNode, client: RuntimeClient) -> None:
    """The program's exit code is reported as it is, in the event and in the list."""
    client.subscribe()
    for code in (0, 1, 42, 255):
        plan = node.plan(["sh", "-c", f"exit {code}"])
        client.run(plan)
        event = first_exit(client, plan["id"])
        assert (event.code, event.signal, event.oom_killed) == (code, 0, False)
        state = client.state(plan["id"])
        assert (state.status, state.exit_code, state.exit_known) == ("exited", code, True)
        assert state.created_at_unix_ms <= state.started_at_unix_ms <= state.finished_at_unix_ms
        client.delete(plan["id"])
        with pytest.raises(NotFound):
            client.state(plan["id"])


def test_killed_is_137(node: RuntimeNode, client: RuntimeClient) -> None:
    """A container killed by SIGKILL reports 137 and the signal."""
    plan = node.plan(["sleep", "100"])
    client.run(plan)
    client.kill(plan["id"], signal.SIGKILL)
    state = node.wait_exit(client, plan["id"])
    assert (state.exit_code, state.exit_signal) == (137, 9)
    client.delete(plan["id"])


def test_terminated_by_handler_and_by_init(node: RuntimeNode, client: RuntimeClient) -> None:
    """SIGTERM reaches a program's handler as pid 1; behind `init` it ends a program without one, with 143."""
    handled = node.plan(["sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"])
    client.run(handled)
    wait_for(lambda: "ready" in node.output(handled["id"]), "the trap")
    client.kill(handled["id"], signal.SIGTERM)
    assert node.wait_exit(client, handled["id"]).exit_code == 5
    plain = node.plan(["sleep", "100"], init=True)
    client.run(plain)
    client.kill(plain["id"], signal.SIGTERM)
    assert node.wait_exit(client, plain["id"]).exit_code == 143
    for plan in (handled, plain):
        client.delete(plan["id"])


def test_init_reaps_and_passes_the_code(node: RuntimeNode, client: RuntimeClient) -> None:
    """With `init` the program is not pid 1, orphans are reaped, and the container ends with the program's code."""
    script = "echo pid $$; (sleep 0.05 &) ; sleep 0.3; ps | grep -c '[Zz]ombie\\|\\[sleep\\]'; exit 9"
    state, output = node.run_to_end(client, node.plan(["sh", "-c", script], init=True))
    assert state.exit_code == 9
    assert output.splitlines()[0] != "pid 1"
    assert output.splitlines()[1] == "0"


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("web", "uid=1000(web) gid=1001(web) groups=2000(extra)"),
        ("web:other", "uid=1000(web) gid=3000(other)"),
        ("1000", "uid=1000(web) gid=1001(web) groups=2000(extra)"),
        ("4321", "uid=4321 gid=0(root)"),
        ("4321:5", "uid=4321 gid=5"),
    ],
)
def test_users(node: RuntimeNode, client: RuntimeClient, user: str, identity: str) -> None:
    """A user is resolved in the container's own /etc/passwd and /etc/group, with supplementary groups and HOME."""
    state, output = node.run_to_end(
        client, node.plan(["sh", "-c", "id; echo $HOME; grep CapEff /proc/self/status"], user=user)
    )
    assert state.exit_code == 0
    lines = output.splitlines()
    assert lines[0] == identity
    assert lines[1] == ("/home/web" if "web" in identity else "/")
    assert int(lines[2].split()[1], 16) == 0


def test_unknown_user(node: RuntimeNode, client: RuntimeClient) -> None:
    """A user name that the container does not know is an error that says so."""
    with pytest.raises(StartFailed, match="'nobody-here' is not in the container's /etc/passwd"):
        client.run(node.plan(["true"], user="nobody-here"))


def test_standard_streams_of_a_user(node: RuntimeNode, client: RuntimeClient) -> None:
    """A program that is not root can open its own /dev/stdout and /dev/stderr."""
    plan = node.plan(["sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr"], user="web")
    state, _ = node.run_to_end(client, plan)
    assert state.exit_code == 0
    assert node.output(plan["id"], "stdout") == "out\n"
    assert node.output(plan["id"], "stderr") == "err\n"


def test_environment_folder_umask_and_limits(node: RuntimeNode, client: RuntimeClient) -> None:
    """Environment, working folder (made if missing), umask and limits are the plan's; nothing of ours leaks in."""

    def change(config: dict[str, Any]) -> None:
        process = config["process"]
        process["env"].append("A=b=c")
        process["cwd"] = "/not/there/yet"
        process["user"]["umask"] = 0o077
        process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024}]

    script = "env | grep -v -E '^(PWD|SHLVL|PATH|OLDPWD)='; pwd; umask; ulimit -n; ulimit -Hn; ls /proc/self/fd"
    _, output = node.run_to_end(client, node.plan(["sh", "-c", script], change=change))
    assert sorted(output.split()[:2]) == ["A=b=c", "HOME=/root"]
    assert output.split()[2:6] == ["/not/there/yet", "0077", "512", "1024"]
    # 0, 1, 2 and the folder that ls itself reads.
    assert output.split()[6:] == ["0", "1", "2", "3"]


def test_signals_are_default(node: RuntimeNode, client: RuntimeClient) -> None:
    """No signal is ignored or blocked when the program starts."""
    _, output = node.run_to_end(client, node.plan(["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"]))
    assert [int(line.split()[1], 16) for line in output.splitlines()] == [0, 0]


def test_oversized_rlimit_is_clamped_with_a_warning(node: RuntimeNode, client: RuntimeClient) -> None:
    """A limit above what this node may give is lowered, and the container says so."""
    if int(Path("/proc/self/status").read_text().split("CapEff:\t")[1].split()[0], 16) >> 24 & 1:
        pytest.skip("this machine has CAP_SYS_RESOURCE: nothing is clamped")
    limit = {"type": "RLIMIT_NOFILE", "soft": 1 << 30, "hard": 1 << 30}
    plan = node.plan(["true"], change=lambda config: config["process"].update(rlimits=[limit]))
    assert any("lowered" in warning for warning in client.run(plan).warnings)
    node.wait_exit(client, plan["id"])
    client.delete(plan["id"])


def test_create_then_start(node: RuntimeNode, client: RuntimeClient) -> None:
    """A created container has its process but has not executed; start executes it."""
    plan = node.plan(["echo", "hello"])
    created = client.create(plan)
    assert created.status == "created"
    assert created.pid > 0
    assert node.output(plan["id"]) == ""
    client.start(plan["id"])
    node.wait_exit(client, plan["id"])
    assert node.output(plan["id"]) == "hello\n"
    with pytest.raises(WrongState):
        client.start(plan["id"])
    client.delete(plan["id"])


def test_create_then_delete(node: RuntimeNode, client: RuntimeClient) -> None:
    """A created container can be deleted without ever running."""
    plan = node.plan(["echo", "never"])
    client.create(plan)
    client.delete(plan["id"])
    assert client.list() == []
    assert node.output(plan["id"]) == ""


def test_requests_are_idempotent(node: RuntimeNode, client: RuntimeClient) -> None:
    """The same run twice is one container; another plan under the id is refused."""
    plan = node.plan(["sleep", "100"], container_id="twice")
    first = client.run(plan)
    assert client.run(plan).pid == first.pid
    with pytest.raises(AlreadyExists):
        client.run(node.plan(["sleep", "101"], container_id="twice"))
    with pytest.raises(WrongState):
        client.delete("twice")
    client.delete("twice", force=True)
    with pytest.raises(NotFound):
        client.delete("twice")


def test_given_descriptors(node: RuntimeNode, client: RuntimeClient) -> None:
    """Descriptors sent with the request become the program's standard streams."""
    reader, writer = os.pipe()
    with open("/dev/null", "rb") as null:  # noqa: PTH123
        plan = node.plan(["sh", "-c", "echo out; echo err >&2"])
        client.run(plan, [null.fileno(), writer, writer])
    os.close(writer)
    node.wait_exit(client, plan["id"])
    with os.fdopen(reader) as file:
        assert file.read() == "out\nerr\n"
    client.delete(plan["id"])


def test_kill_everyone(node: RuntimeNode, client: RuntimeClient) -> None:
    """Kill with all signals every process of the container, grandchildren included."""
    plan = node.plan(["sh", "-c", "sleep 100 & sleep 100 & trap : TERM; echo ready; wait; wait; exit 3"])
    client.run(plan)
    wait_for(lambda: "ready" in node.output(plan["id"]), "start")
    client.kill(plan["id"], signal.SIGTERM, everyone=True)
    assert node.wait_exit(client, plan["id"]).exit_code == 3
    client.delete(plan["id"])
