"""kill -9 of every part of a node, again and again, while stacks are being deployed.

Each round kills one part in the middle of a deploy. Afterwards the stack converges, what was acknowledged is there,
every slot runs once, no container is lost or doubled, exit codes are known, and the node's kernel state is what it was.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

import leaks
from cluster.playground_driver import ORCH, Playground, command_line, own_subnet, task_processes, wait_for
from orch_cli.playground.processes import all_pids, identify
from orch_proto import types_pb2

ROUNDS = 10
REPLICAS = 6
MARK = "orch-kill-test"

# Every container carries the mark, so that containers nobody knows of any more would be found.
STACK = """\
services:
  a:
    image: test:1
    command: ["sh", "-c", 'trap "exit 0" TERM; : {mark} {generation}; while :; do sleep 3600 & wait $!; done']
    ports: ["{port}:8080"]
    deploy:
      replicas: {replicas}
      update_config: {{parallelism: 0, monitor: 1s}}
      restart_policy: {{delay: 0s}}
"""


def stack_file(playground: Playground, generation: int) -> str:
    return playground.file(STACK.format(mark=MARK, generation=generation, replicas=REPLICAS, port=8070))


def containers() -> dict[int, str]:
    """The first process of every container of these tests, and which generation it is; none may be unaccounted for."""
    found = {}
    for pid in all_pids():
        words = command_line(pid)
        if len(words) == 3 and MARK in words[2] and words[:2] == ["sh", "-c"] and first_in_its_namespace(pid):
            found[pid] = words[2].split(MARK)[1].split(";")[0].strip()
    return found


def first_in_its_namespace(pid: int) -> bool:
    """Whether a process is number 1 of a pid namespace: a container's own first process, and not a child of it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
    return numbers[-1] == "1"


def assert_each_slot_runs_once(playground: Playground, generation: int) -> None:
    tasks = playground.wait_running("kills_a", REPLICAS, limit_s=40)
    assert {task.slot for task in tasks} == set(range(1, REPLICAS + 1))
    known = {process.pid for process in task_processes(tasks).values() if process is not None}
    assert len(known) == REPLICAS, "each task has a living process"
    wait_for(lambda: containers().keys() == known, f"no other containers than {known}: {containers()}", 15)
    assert set(containers().values()) == {str(generation)}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", ["orchd", "manager", "supervisor", "network"])
def test_a_part_killed_in_the_middle_of_deploys(clean: Playground, part: str) -> None:
    """Ten kills of a part during ten deploys: each deploy converges, every slot runs once, and nothing leaks."""
    chance = random.Random(part)
    for generation in range(1, ROUNDS + 1):
        deploy = subprocess.Popen(
            [ORCH, "deploy", "--name", "kills", "--timeout", "45s", stack_file(clean, generation)],
            env={**os.environ, "ORCH_HOST": f"unix://{clean.node.manager_socket}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Anywhere between the first byte of the request and the last container's start.
        time.sleep(chance.uniform(0.1, 1.2))
        clean.kill(part)
        if part == "orchd":
            clean.restart_daemon()
        stdout, stderr = deploy.communicate(timeout=60)
        assert "Traceback" not in stderr
        if deploy.returncode != 0 and part in {"orchd", "manager"}:
            # The answer was lost with the manager, and the command line said so: repeating it is what a person does.
            clean.services()
            clean.orch("deploy", "--name", "kills", stack_file(clean, generation))
        else:
            assert deploy.returncode == 0, (generation, stdout, stderr, clean.log_tail())
        assert_each_slot_runs_once(clean, generation)
    clean.orch("stack", "rm", "kills")
    wait_for(lambda: not containers(), "the end of all containers")


@pytest.mark.timeout(120)
def test_no_exit_code_is_lost_with_the_supervisor(clean: Playground) -> None:
    """Tasks that end while the supervisor is being killed are reported with the code that they ended with."""
    codes = {f"c{code}": code for code in range(1, 9)}
    services = "\n".join(
        f"""\
  {name}:
    image: test:1
    command: ["sh", "-c", "sleep {1 + code / 4}; exit {code}"]
    deploy: {{restart_policy: {{condition: none}}}}"""
        for name, code in codes.items()
    )
    clean.deploy("codes", f"services:\n{services}\n", "--detach")

    def ended() -> dict[str, int | str]:
        tasks = {name: clean.tasks(f"codes_{name}") for name in codes}
        over = {
            name: found[0].status
            for name, found in tasks.items()
            if found and found[0].status.state >= types_pb2.TASK_STATE_COMPLETE
        }
        return {
            name: status.container.exit_code if status.container.HasField("exit_code") else status.error
            for name, status in over.items()
        }

    for _ in range(ROUNDS):
        if len(ended()) == len(codes):
            break
        clean.kill("supervisor")
        time.sleep(0.3)
    wait_for(lambda: len(ended()) == len(codes), "the end of all tasks", 40)
    assert ended() == codes


@pytest.mark.timeout(120)
def test_containers_outlive_the_keeper(clean: Playground) -> None:
    """After kill -9 of the keeper every container runs on; what it could no longer tell is an unknown code, no more."""
    clean.orch("deploy", "--name", "kills", stack_file(clean, 1))
    before = task_processes(clean.wait_running("kills_a", REPLICAS))
    clean.kill("keeper")
    time.sleep(1)
    assert all(process is not None and process.is_alive() for process in before.values())
    clean.orch("service", "scale", f"kills_a={REPLICAS + 1}")
    after = task_processes(clean.wait_running("kills_a", REPLICAS + 1, limit_s=40))
    assert before.items() <= after.items()


@pytest.mark.timeout(120)
def test_what_was_acknowledged_is_there_after_a_kill(clean: Playground) -> None:
    """Each `orch secret create` that returned 0 right before kill -9 of the manager is there afterwards."""
    acknowledged = []
    for number in range(10):
        name = f"kept-{number}"
        process = subprocess.Popen(
            [ORCH, "secret", "create", name, "-"],
            env={**os.environ, "ORCH_HOST": f"unix://{clean.node.manager_socket}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        process.communicate(b"x", timeout=30)
        if process.returncode == 0:
            acknowledged.append(name)
        clean.kill("manager")
        wait_for(lambda: clean.process("manager"), "the next manager")
    names = {one.secret.spec.annotations.name for one in clean.objects(types_pb2.OBJECT_KIND_SECRET)}
    assert acknowledged
    assert names >= set(acknowledged)
    for name in names:
        clean.orch("secret", "rm", name)


@pytest.mark.timeout(120)
def test_traffic_flows_while_the_daemons_are_dead(clean: Playground) -> None:
    """While orchd, the manager and the network process are dead, published ports answer and containers run."""
    clean.deploy(
        "web",
        """\
services:
  web:
    image: test:1
    init: true
    command: ["sh", "-c", "mkdir /www; echo here > /www/index.html; exec httpd -f -p 8080 -h /www"]
    ports: ["8071:8080"]
""",
    )
    assert clean.get(8071).strip() == "here"
    manager = clean.process("manager")
    daemon = clean.process("orchd")
    network = clean.process("network")
    network_pid = network.pid
    os.kill(network_pid, signal.SIGSTOP)  # killed, it would be back too soon to see anything
    try:
        daemon.kill()
        manager.kill()
        for _ in range(5):
            assert clean.get(8071).strip() == "here"
    finally:
        os.kill(network_pid, signal.SIGCONT)
    clean.restart_daemon()
    clean.wait_running("web_web", 1)
    assert identify(network_pid) == network


@pytest.mark.timeout(120)
def test_a_playground_with_everything_killed_is_removed_whole(tmp_path: Path) -> None:
    """After kill -9 of every process of a node `orch playground down` removes all that is left, and may be repeated."""
    made = Playground(f"ruin-{os.getpid()}", own_subnet(1), tmp_path)
    made.down()
    before = leaks.host(made.layout)
    made.up()
    victims = [made.process(part) for part in ("orchd", "manager", "keeper", "supervisor", "network")]
    for victim in victims:
        victim.kill()
    made.down()
    made.down()
    assert not leaks.settled_difference(before, lambda: leaks.host(made.layout))
