"""Commands against a real server on a socket."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orch_cli.deploy import wait
from orch_proto.types_pb2 import TaskState, UpdateState
from unit.cli.fake_control import FakeControl, Ran, orch, serving, spec_of

STACK = "name: shop\nservices:\n  web: {image: 'web:1', deploy: {replicas: 2}}\n  db: {image: 'db:1'}\n"
RUNNING = TaskState.TASK_STATE_RUNNING


async def all_run(fake: FakeControl) -> AsyncIterator[None]:
    for service in fake.services():
        for slot in range(1, service.spec.mode.replicated.replicas + 1):
            fake.set_task(service, slot, TaskState.TASK_STATE_PREPARING, message="preparing")
            yield
            fake.set_task(service, slot, RUNNING)


async def nothing_fits(fake: FakeControl) -> AsyncIterator[None]:
    for service in fake.services():
        for slot in range(1, service.spec.mode.replicated.replicas + 1):
            fake.set_task(
                service, slot, TaskState.TASK_STATE_PENDING, message="no suitable node (insufficient memory on 1 node)"
            )
    yield


async def one_crashes(fake: FakeControl) -> AsyncIterator[None]:
    for service in fake.services():
        fake.set_task(service, 1, TaskState.TASK_STATE_FAILED, error="task: non-zero exit (3)")
    yield


def run(folder: Path, fake: FakeControl, *arguments: str, text: str = STACK) -> Ran:
    """Runs a command against ``fake`` with a stack file in ``folder``."""
    (folder / "stack.yml").write_text(text)

    async def go() -> Ran:
        async with serving(folder, fake) as host:
            return await orch("--host", host, *(item.replace("FILE", str(folder / "stack.yml")) for item in arguments))

    return asyncio.run(go())


def test_deploy_waits_until_all_runs(tmp_path: Path) -> None:
    """A deploy ends with status 0 once every service has its tasks, and tells what it did."""
    ran = run(tmp_path, FakeControl(behave=all_run), "deploy", "FILE", "--timeout", "20s")
    assert ran.status == 0, ran.err
    assert "Creating service shop_db\nCreating service shop_web\n" in ran.out
    assert "web       2        2         0          converged" in ran.out
    assert "web 2/2 running" in ran.err


def test_detached_deploy_does_not_wait(tmp_path: Path) -> None:
    """With --detach the command ends once the stack is applied."""
    ran = run(tmp_path, FakeControl(), "stack", "deploy", "-c", "FILE", "-d", "other")
    assert ran.status == 0
    assert "Creating service other_web" in ran.out


def test_a_deploy_that_takes_too_long_has_status_2(tmp_path: Path) -> None:
    """When the time is over the status is 2, and the reason and the failed task's output are shown."""
    ran = run(tmp_path, FakeControl(behave=one_crashes), "deploy", "FILE", "--timeout", "300ms")
    assert ran.status == 2
    assert "db.1 failed: task: non-zero exit (3)" in ran.err
    assert "out of cheese" in ran.err
    assert "orch stack ps shop" in ran.err


def test_a_stack_that_does_not_fit_has_status_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all that is missing waits for a node, the status is 4 with the scheduler's explanation."""
    monkeypatch.setattr(wait, "SETTLE_S", 0.1)
    ran = run(tmp_path, FakeControl(behave=nothing_fits), "deploy", "FILE", "--timeout", "20s")
    assert ran.status == 4
    assert "cannot be placed" in ran.err
    assert "insufficient memory on 1 node" in ran.err


def test_a_rolled_back_update_has_status_3(tmp_path: Path) -> None:
    """When the update was rolled back, the status is 3."""

    async def rolled_back(fake: FakeControl) -> AsyncIterator[None]:
        for service in fake.services():
            for slot in (1, 2):
                fake.set_task(service, slot, RUNNING)
            service.update_status.state = UpdateState.UPDATE_STATE_ROLLBACK_COMPLETED
            service.update_status.message = "rolled back: 1 of 1 slots failed"
            fake.put(4, service)
            yield

    ran = run(tmp_path, FakeControl(behave=rolled_back), "deploy", "FILE", "--timeout", "20s")
    assert ran.status == 3
    assert "rolled back: 1 of 1 slots failed" in ran.err


def test_a_refusal_is_told_in_three_parts(tmp_path: Path) -> None:
    """What the manager refuses is told as what, why and what to do, with status 1."""
    ran = run(tmp_path, FakeControl(refuse="port 80/tcp is published by service blog_web"), "deploy", "FILE")
    assert ran.status == 1
    assert (
        ran.err == "orch: cannot deploy stack shop: port 80/tcp is published by service blog_web\n      do something\n"
    )


def test_a_file_with_problems_reaches_nobody(tmp_path: Path) -> None:
    """Problems in the file are told with their lines before anybody is called."""
    fake = FakeControl()
    ran = run(tmp_path, fake, "deploy", "FILE", text="services:\n  web: {image: x, foo: 1}\n")
    assert ran.status == 1
    assert "stack.yml:2: services.web.foo: the key is unknown" in ran.err
    assert not fake.applied


def test_images_are_built_when_no_node_has_them(tmp_path: Path) -> None:
    """A missing image is built from its context before the stack is applied; one that is there is not."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "keep").write_text("k")
    (tmp_path / "drop").write_text("d")
    (tmp_path / ".dockerignore").write_text("drop\n*.sock\nstack.yml\n")
    text = "name: shop\nservices: {a: {build: .}, b: {image: 'there:1', build: .}}\n"
    fake = FakeControl(images={"there:1"}, behave=all_run)
    ran = run(tmp_path, fake, "deploy", "FILE", "--timeout", "20s", text=text)
    assert ran.status == 0, ran.err
    assert "Building shop_a:latest" in ran.err
    assert "Building there:1" not in ran.err
    with tarfile.open(fileobj=io.BytesIO(bytes(fake.received))) as archive:
        assert archive.getnames() == [".dockerignore", "Dockerfile", "keep"]
    assert spec_of(fake).services[0].task.container.image == "shop_a:latest"


def test_lists_and_removal(tmp_path: Path) -> None:
    """What was deployed is listed in docker's columns, and gone after rm."""
    fake = FakeControl(behave=all_run)
    (tmp_path / "stack.yml").write_text(STACK)

    async def go() -> list[Ran]:
        async with serving(tmp_path, fake) as host:
            results = [await orch("--host", host, "deploy", str(tmp_path / "stack.yml"), "-q")]
            for words in (
                "stack ls",
                "stack ps shop",
                "stack services shop",
                "service ls --format {{.Name}}={{.Replicas}}",
                "ps -q",
                "node ls",
                "stack rm shop",
                "stack rm shop",
                "stack ps shop",
            ):
                results.append(await orch("--host", host, *words.split()))  # noqa: PERF401 - one after the other
            return results

    deployed, stacks, tasks, services, formatted, quiet, nodes, removed, again, none = asyncio.run(go())
    assert deployed.status == 0
    assert stacks.out == "NAME   SERVICES\nshop   2\n"
    assert tasks.out.splitlines()[0].split("  ")[0] == "ID"
    assert "shop_web.2" in tasks.out
    assert "2/2" in services.out
    assert formatted.out == "shop_db=1/1\nshop_web=2/2\n"
    assert len(quiet.out.splitlines()) == 3
    assert "node1 *   n1" in nodes.out
    assert (removed.status, removed.out) == (0, "Removing service shop_web\n")
    assert (again.status, again.err) == (0, "Nothing found in stack: shop\n")
    assert none.status == 1


def test_an_empty_list_is_its_header(tmp_path: Path) -> None:
    """A list without objects prints the header alone."""
    assert run(tmp_path, FakeControl(), "stack", "ls").out == "NAME   SERVICES\n"


def test_plan_tells_changes_by_its_status(tmp_path: Path) -> None:
    """A plan with changes has status 1 and shows fields and placement; one that cannot be made has 255."""
    ran = run(tmp_path, FakeControl(), "plan", "FILE")
    assert ran.status == 1
    assert "task.container.image: web:1 -> web:2  (restarts tasks)" in ran.out
    assert "insufficient memory on 1 node" in ran.out
    assert run(tmp_path, FakeControl(), "plan", "FILE", text="services: {a: {}}").status == 255


def test_logs_carry_their_source(tmp_path: Path) -> None:
    """Log lines are prefixed with task and node, unless --raw."""
    assert run(tmp_path, FakeControl(), "logs", "shop_web").out == "shop_web.1.task1@n1 | out of cheese\n"
    assert run(tmp_path, FakeControl(), "logs", "--raw", "shop_web").out == "out of cheese\n"


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["stak"], 1, 'did you mean "stack"?'),
        (["stack", "lss"], 1, "unknown"),
        (["stack", "ls", "--nope"], 125, "--nope"),
        (["stack", "ps"], 1, "STACK"),
        (["--host", "tcp://x:1", "stack", "ls"], 1, "a certificate is needed"),
        (["--host", "unix:///nowhere/manager.sock", "stack", "ls"], 1, "cannot reach the manager: there is no socket"),
        (["service", "scale", "web"], 1, "SERVICE=REPLICAS"),
        (["deploy", "/nowhere.yml"], 1, "cannot read /nowhere.yml"),
        (["logs", "x", "--since", "yesterday"], 1, "cannot read the time"),
    ],
)
def test_wrong_command_lines_say_what_to_do(words: list[str], status: int, told: str) -> None:
    """Every wrong command line ends with a message and docker's status, never a traceback."""
    ran = asyncio.run(orch(*words))
    assert ran.status == status
    assert told in ran.err
    assert "Traceback" not in ran.err


def test_the_installed_command_checks_a_file_without_grpc(tmp_path: Path) -> None:
    """``orch stack config`` prints the merged file without importing grpc, and its output can be read again."""
    (tmp_path / "stack.yml").write_text("name: shop\nservices:\n  web: {image: 'web:$TAG', command: 'echo $$HOME'}\n")
    script = "import sys; from orch_cli.main import main; main(); assert 'grpc' not in sys.modules"
    command = [sys.executable, "-c", script, "stack", "config"]
    first = subprocess.run(
        [*command, str(tmp_path / "stack.yml")], capture_output=True, text=True, check=True, env={"TAG": "3"}
    )
    assert "image: web:3" in first.stdout
    again = subprocess.run([*command, "-"], input=first.stdout, capture_output=True, text=True, check=True, env={})
    assert again.stdout == first.stdout


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command that the help names exists, and explains its own arguments."""
    from orch_cli import verbs  # noqa: PLC0415 - the table under test

    for noun, group in verbs.NOUNS.items():
        for verb in group.verbs:
            with pytest.raises(SystemExit) as end:
                verbs.parse(noun, verb, ["--help"], "")
            assert end.value.code == 0
            assert f"orch {noun} {verb}" in capsys.readouterr().out
