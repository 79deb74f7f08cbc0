"""A stack's life on one node, through the command line: deploy, answer, scale, read its words, heal, remove."""

from __future__ import annotations

import json
import time

import pytest

from cluster.playground_driver import Playground, task_processes, wait_for
from orch_proto import types_pb2

# A shell that ends at once when it is told to stop.
QUICK_STOP = 'trap "exit 0" TERM; while :; do sleep 3600 & wait $!; done'

WEB = """\
services:
  web:
    image: test:1
    command: ["sh", "-c", "mkdir -p /www && hostname > /www/index.html && exec httpd -f -p 8080 -h /www"]
    init: true
    ports: ["{port}:8080"]
    healthcheck:
      test: ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/"]
      interval: 200ms
    deploy:
      replicas: {replicas}
"""

SLEEPER = """\
services:
  sleeper:
    image: test:1
    command: ["sh", "-c", '{script}']
    deploy:
      replicas: {replicas}
      restart_policy:
        {policy}
"""


def sleeper(replicas: int = 1, policy: str = "delay: 0s", script: str = QUICK_STOP) -> str:
    return SLEEPER.format(replicas=replicas, policy=policy, script=script)


def test_a_deployed_stack_answers_on_its_published_port(clean: Playground) -> None:
    """When `orch deploy` returns 0 every replica runs, and its published port answers at the node's address."""
    clean.deploy("shop", WEB.format(port=8090, replicas=3))
    tasks = clean.wait_running("shop_web", 3)
    assert {task.slot for task in tasks} == {1, 2, 3}
    answers = {clean.get(8090).strip() for _ in range(60)}
    assert len(answers) == 3, "every replica gets its share of requests"


def test_the_same_stack_again_changes_nothing(clean: Playground) -> None:
    """A second deploy of the same file replaces no task, and `orch plan` says beforehand that nothing changes."""
    file = clean.file(sleeper(replicas=2))
    clean.orch("deploy", "--name", "same", file)
    first = task_processes(clean.wait_running("same_sleeper", 2))
    assert clean.orch("plan", "--name", "same", file, ok=False).status == 0
    clean.orch("deploy", "--name", "same", file)
    assert task_processes(clean.wait_running("same_sleeper", 2)) == first


def test_scaling_starts_and_stops_only_what_it_must(clean: Playground) -> None:
    """Scaling from 2 to 5 and to 1 keeps running tasks running, and removes the containers that are too many."""
    clean.deploy("s", sleeper(replicas=2))
    first = task_processes(clean.wait_running("s_sleeper", 2))
    clean.orch("service", "scale", "s_sleeper=5")
    five = task_processes(clean.wait_running("s_sleeper", 5))
    assert first.items() <= five.items()
    clean.orch("service", "scale", "s_sleeper=1")
    one = task_processes(clean.wait_running("s_sleeper", 1))
    assert one.items() <= five.items()
    gone = [process for task, process in five.items() if task not in one]
    wait_for(lambda: not any(process and process.is_alive() for process in gone), "the end of four containers")


def test_a_service_is_known_by_name_to_another(clean: Playground) -> None:
    """A task reaches another service by its name; the name has one address, balanced over its replicas."""
    clean.deploy(
        "names",
        WEB.format(port=8091, replicas=2)
        + """\
  client:
    image: test:1
    init: true
    command: ["sh", "-c", "while sleep 0.2; do nc web 8080 < /request 2>&1 | tail -n 1; done"]
    configs: [{source: request, target: /request}]
configs:
  request: {content: "GET / HTTP/1.0\\r\\n\\r\\n"}
""",
    )
    hostnames = {task.status.container.container_id for task in clean.wait_running("names_web", 2)}
    assert len(hostnames) == 2

    def seen() -> set[str]:
        lines = clean.orch("service", "logs", "--raw", "names_client").stdout.split()
        return set(lines) if len(set(lines)) >= 2 else set()

    wait_for(seen, "answers of both replicas")


def test_logs_hold_both_streams_of_all_replicas(clean: Playground) -> None:
    """`orch service logs` shows what every replica wrote, to standard output and to standard error."""
    clean.deploy("talk", sleeper(replicas=3, script=f"echo to-out; echo to-err >&2; {QUICK_STOP}"))

    def complete() -> bool:
        result = clean.orch("service", "logs", "talk_sleeper")
        text = result.stdout + result.stderr
        return text.count("to-out") == 3 and text.count("to-err") == 3

    wait_for(complete, "six lines")


def test_a_removed_stack_leaves_nothing(clean: Playground) -> None:
    """After `orch stack rm` no task, service or network of the stack is left, no container runs, its port is closed."""
    clean.deploy("gone", WEB.format(port=8092, replicas=3))
    processes = task_processes(clean.wait_running("gone_web", 3))
    clean.orch("stack", "rm", "gone")
    assert not any(process and process.is_alive() for process in processes.values())
    for kind in (types_pb2.OBJECT_KIND_STACK, types_pb2.OBJECT_KIND_SERVICE, types_pb2.OBJECT_KIND_TASK):
        assert not clean.objects(kind)
    networks = [one.network.spec.annotations.name for one in clean.objects(types_pb2.OBJECT_KIND_NETWORK)]
    assert not [name for name in networks if name.startswith("gone")]


def test_a_killed_task_is_replaced_in_its_slot(clean: Playground) -> None:
    """After kill -9 of a task's process a new task of the same slot runs; the old one is kept with its exit code."""
    clean.deploy("heal", sleeper(replicas=2))
    victim, other = clean.wait_running("heal_sleeper", 2)
    process = task_processes([victim])[victim.id]
    assert process is not None
    process.kill()

    def replaced() -> bool:
        up = clean.running("heal_sleeper")
        return {task.slot for task in up} == {1, 2} and victim.id not in {task.id for task in up}

    wait_for(replaced, "a new task in the slot")
    tasks = {task.id: task for task in clean.tasks("heal_sleeper")}
    assert tasks[victim.id].status.state == types_pb2.TASK_STATE_FAILED
    assert tasks[victim.id].status.container.exit_code == 137
    assert tasks[other.id].status.state == types_pb2.TASK_STATE_RUNNING


def test_the_default_policy_waits_before_it_restarts(clean: Playground) -> None:
    """Without a policy a failed task's replacement is there at once and starts five seconds after the failure."""
    clean.deploy("wait", sleeper(policy="condition: any"))
    (victim,) = clean.wait_running("wait_sleeper", 1)
    process = task_processes([victim])[victim.id]
    assert process is not None
    process.kill()
    (new,) = clean_replacement(clean, victim.id)
    failed = next(task for task in clean.tasks("wait_sleeper") if task.id == victim.id)
    waited_ms = new.status.container.started_at_unix_ms - failed.status.timestamp_unix_ms
    assert waited_ms >= 4900, "the delay is a lower bound, whatever the machine does"


def clean_replacement(clean: Playground, victim: str) -> list[object]:
    def replaced() -> list[object]:
        return [task for task in clean.running("wait_sleeper") if task.id != victim]

    return wait_for(replaced, "the replacement", 20)


def test_a_task_that_finishes_is_not_restarted_on_failure_policy(clean: Playground) -> None:
    """With `condition: on-failure` a task that exits with 0 is COMPLETE and stays so."""
    clean.deploy("once", sleeper(policy="condition: on-failure", script="exit 0"), "--detach")

    def complete() -> bool:
        return any(task.status.state == types_pb2.TASK_STATE_COMPLETE for task in clean.tasks("once_sleeper"))

    wait_for(complete, "the end of the task")
    time.sleep(0.5)
    assert len(clean.tasks("once_sleeper")) == 1


def test_a_changed_image_or_command_replaces_the_tasks(clean: Playground) -> None:
    """A deploy with another command replaces every task; one with another number of replicas replaces none."""
    clean.deploy("change", sleeper(replicas=2))
    first = task_processes(clean.wait_running("change_sleeper", 2))
    clean.deploy("change", sleeper(replicas=3))
    more = task_processes(clean.wait_running("change_sleeper", 3))
    assert first.items() <= more.items()
    clean.deploy("change", sleeper(replicas=3, script=f"true; {QUICK_STOP}"))
    new = task_processes(clean.wait_running("change_sleeper", 3))
    assert not new.keys() & more.keys()


def test_memory_beyond_its_limit_is_reported(clean: Playground) -> None:
    """A task that takes more memory than its limit is killed, and its task says that memory ran out."""
    clean.deploy(
        "oom",
        """\
services:
  eater:
    image: test:1
    command: ["sh", "-c", "sleep 1; tail /dev/zero"]
    deploy:
      restart_policy: {condition: none}
      resources: {limits: {memory: 16M}}
""",
        "--detach",
    )

    def killed() -> bool:
        return any(task.status.reason == types_pb2.FAILURE_REASON_OOM for task in clean.tasks("oom_eater"))

    wait_for(killed, "the end for lack of memory")
    (task,) = clean.tasks("oom_eater")
    assert task.status.container.oom_killed


def test_a_volume_outlives_its_tasks(clean: Playground) -> None:
    """What a task wrote into a named volume is there for the next task, also after the stack was removed."""
    text = """\
services:
  keeper:
    image: test:1
    init: true
    command: ["sh", "-c", "echo once >> /data/lines; cat /data/lines; exec sleep infinity"]
    volumes: ["kept:/data"]
volumes:
  kept:
"""
    clean.deploy("vol", text)
    clean.orch("stack", "rm", "vol")
    clean.deploy("vol", text)

    def both() -> bool:
        return clean.orch("service", "logs", "--raw", "vol_keeper").stdout.count("once") == 2

    wait_for(both, "the line of the first task")
    clean.orch("stack", "rm", "vol")
    names = clean.orch("volume", "ls", "-q").stdout.split()
    assert "vol_kept" in names


def test_secrets_and_configs_are_files_of_their_tasks_alone(clean: Playground) -> None:
    """A task reads its secret and its config as files; the secret's value stands in no inspect, log or argument."""
    folder = clean.folder / "with-secret"
    folder.mkdir()
    (folder / "password.txt").write_text("correct horse")
    (folder / "stack.yml").write_text(
        """\
services:
  reader:
    image: test:1
    init: true
    command: ["sh", "-c", "wc -c < /run/secrets/password; cat /etc/motto; echo; exec sleep infinity"]
    secrets: [password]
    configs: [{source: motto, target: /etc/motto}]
secrets:
  password: {file: ./password.txt}
configs:
  motto: {content: "staple"}
"""
    )
    clean.orch("deploy", "--name", "secret", str(folder / "stack.yml"))
    wait_for(lambda: "staple" in clean.orch("service", "logs", "--raw", "secret_reader").stdout, "the config")
    assert "13" in clean.orch("service", "logs", "--raw", "secret_reader").stdout
    inspected = clean.orch("secret", "inspect", "secret_password").stdout
    assert json.loads(inspected)
    assert "horse" not in inspected + clean.orch("service", "inspect", "secret_reader").stdout
    assert "horse" not in clean.node.log_file.read_text(errors="replace")


@pytest.mark.parametrize("verb", ["status", "env"])
def test_the_playground_tells_of_itself(playground: Playground, verb: str) -> None:
    """`orch playground status` shows the node ready, and `env` the line that points the command line at it."""
    output = playground.orch("playground", verb, "--name", playground.name).stdout
    expected = {"status": "ready", "env": f"export ORCH_HOST=unix://{playground.node.manager_socket}"}
    assert expected[verb] in output


def test_a_second_playground_of_the_same_name_is_refused(playground: Playground) -> None:
    """`orch playground up` twice says that it exists, changes nothing and exits with 1."""
    before = playground.process("orchd")
    result = playground.orch("playground", "up", "--name", playground.name, "--subnet", playground.subnet, ok=False)
    assert result.status == 1
    assert "exists already" in result.stderr
    assert playground.process("orchd") == before
