"""A node whose manager does not answer: what runs goes on, what ends is replaced, and the manager learns of it."""

from __future__ import annotations

import os
import signal

import pytest

from cluster.playground_driver import Playground, task_processes, wait_for

STACK = """\
services:
  a:
    image: test:1
    command: ["sh", "-c", 'trap "exit 0" TERM; : orch-alone-test; while :; do sleep 3600 & wait $!; done']
    deploy: {replicas: 2, restart_policy: {delay: 0s}}
  once:
    image: test:1
    command: ["sh", "-c", ": orch-alone-once; exec sleep 3600"]
    deploy: {restart_policy: {condition: none}}
"""


@pytest.mark.timeout(120)
def test_an_agent_without_its_manager_restarts_what_fails_and_reports_it(clean: Playground) -> None:
    """A container that dies while the manager is stopped is replaced by the node; the manager takes that in later."""
    clean.deploy("alone", STACK)
    first, second = clean.wait_running("alone_a", 2)
    (once,) = clean.wait_running("alone_once", 1)
    before = task_processes([first, second, once])
    manager = clean.process("manager")
    os.kill(manager.pid, signal.SIGSTOP)
    try:
        for task in (first, once):
            process = before[task.id]
            assert process is not None
            process.kill()
        wait_for(lambda: "task.replaced_alone" in clean.log_tail(400), "the node to act by itself", 50)
        kept = before[second.id]
        assert kept is not None
        assert kept.is_alive()
    finally:
        os.kill(manager.pid, signal.SIGCONT)
    # Until the node is heard again the manager shows what it last knew.
    wait_for(lambda: first.id not in {task.id for task in clean.running("alone_a")}, "the manager to hear of it", 30)
    after = {task.slot: task for task in clean.wait_running("alone_a", 2)}
    assert after[second.slot].id == second.id
    made = after[first.slot]
    assert made.replaces == first.id
    assert made.networks == first.networks, "it has the address of the one before"
    assert f"new={made.id}" in clean.log_tail(400), "the one that the node made, not another"
    assert not clean.running("alone_once"), "its restart policy is none"
    assert clean.services()["alone_once"].spec.task.restart.condition
