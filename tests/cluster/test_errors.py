"""What a person does wrong gets one clear message, a status other than 0, and changes nothing."""

from __future__ import annotations

import json
import os

import pytest

from cluster.playground_driver import Playground, Result
from orch_proto import types_pb2

ALL_KINDS = (
    types_pb2.OBJECT_KIND_STACK,
    types_pb2.OBJECT_KIND_SERVICE,
    types_pb2.OBJECT_KIND_TASK,
    types_pb2.OBJECT_KIND_NETWORK,
    types_pb2.OBJECT_KIND_SECRET,
    types_pb2.OBJECT_KIND_CONFIG,
)


def everything(playground: Playground) -> list[bytes]:
    """All objects of the store that a deploy could change."""
    return sorted(one.SerializeToString(deterministic=True) for kind in ALL_KINDS for one in playground.objects(kind))


def assert_one_clear_message(result: Result, *parts: str) -> None:
    assert result.status == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) <= 6, result.stderr


BASE = "services:\n  web:\n    image: test:1\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param(BASE + "    replcas: 3\n", ("stack.yml:4", "replcas"), id="an unknown key"),
        pytest.param(BASE + "    hostname: ${NAME:?say who}\n", ("stack.yml:4", "NAME", "say who"), id="a variable"),
        pytest.param(BASE + "    privileged: true\n", ("privileged", "--allow"), id="against the policy"),
        pytest.param(
            "services:\n  web:\n    image: localhost:1/nosuch:9\n", ("nosuch:9", "orch image"), id="an unknown image"
        ),
        pytest.param(BASE + "    pid: host\n", ("stack.yml:4", "pid"), id="a key for later"),
    ],
)
def test_a_wrong_stack_file_changes_nothing(clean: Playground, text: str, parts: tuple[str, ...]) -> None:
    """An unknown key, a missing variable and an unknown image are each told with their place or name."""
    before = everything(clean)
    assert_one_clear_message(clean.deploy("wrong", text, ok=False), *parts)
    assert everything(clean) == before


def test_a_port_in_use_names_its_owner(clean: Playground) -> None:
    """A stack that publishes another one's port is refused as a whole, with the owner's name."""
    clean.deploy("first", BASE + '    init: true\n    ports: ["8095:80"]\n')
    before = everything(clean)
    result = clean.deploy("second", BASE + '    init: true\n    ports: ["8095:80"]\n', ok=False)
    assert_one_clear_message(result, "8095", "first_web")
    assert everything(clean) == before


def test_too_little_memory_is_explained(clean: Playground) -> None:
    """A reservation that no node can ever fulfil is refused with both figures, and nothing is changed."""
    before = everything(clean)
    text = BASE + "    deploy: {resources: {reservations: {memory: 900G}}}\n"
    assert_one_clear_message(clean.deploy("big", text, ok=False), "big_web", "memory", "900.0 GiB")
    assert everything(clean) == before


def test_no_room_now_is_explained(clean: Playground) -> None:
    """A service for which other reservations leave no room waits; the deploy ends with 4 and says what is missing."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 5
    text = BASE + f"    init: true\n    deploy: {{resources: {{reservations: {{memory: {free}b}}}}}}\n"
    clean.deploy("first", text)
    result = clean.deploy("second", text, ok=False)
    assert result.status == 4
    assert "insufficient memory" in result.stderr + result.stdout


def test_a_second_cluster_on_a_node_is_refused(clean: Playground) -> None:
    """`orch cluster init` on a node that has a cluster is refused and says which; the cluster goes on as it was."""
    before = everything(clean)
    assert_one_clear_message(clean.orch("cluster", "init", ok=False), "cluster", "leave")
    assert everything(clean) == before


def test_a_manager_that_is_not_running_is_told(clean: Playground) -> None:
    """Where no manager answers, every command says which socket it tried and what to do, and exits with 1."""
    nowhere = {"ORCH_HOST": "unix:///run/orch-nowhere/manager.sock"}
    result = clean.orch("service", "ls", ok=False, env=nowhere)
    assert_one_clear_message(result, "/run/orch-nowhere/manager.sock")


def test_errors_stay_off_standard_output(clean: Playground) -> None:
    """What goes wrong goes to standard error: a script that reads JSON gets JSON or nothing."""
    result = clean.orch("service", "inspect", "nosuch", ok=False)
    assert result.status == 1
    assert "nosuch" in result.stderr
    assert not result.stdout.strip() or json.loads(result.stdout) == []
