"""Limits, usage, freezing and out-of-memory reports."""

from __future__ import annotations

import time
from typing import Any

import pytest

from orch_runtime.client import RuntimeClient
from orch_runtime.errors import WrongState
from orch_runtime.protocol import OomEvent
from runtime.runtime_node import RuntimeNode, wait_for

MIB = 1 << 20
# Doubles a shell variable until the group has no memory left.
EAT = "x=0123456789abcdef; while :; do x=$x$x; done"


def _memory(limit_bytes: int) -> Any:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["memory"] = {"limit": limit_bytes, "swap": limit_bytes}

    return change


def test_out_of_memory_is_reported(node: RuntimeNode, client: RuntimeClient) -> None:
    """A container killed for want of memory exits with 137 and says so in state and event."""
    client.subscribe()
    plan = node.plan(["sh", "-c", EAT], change=_memory(16 * MIB))
    client.run(plan)
    state = node.wait_exit(client, plan["id"], 30.0)
    assert (state.exit_code, state.oom_killed) == (137, True)
    client.delete(plan["id"])


def test_out_of_memory_of_a_child(node: RuntimeNode, client: RuntimeClient) -> None:
    """When the kernel kills another process than the first, an event tells, and the exit code is the program's own."""
    client.subscribe()
    plan = node.plan(["sh", "-c", f"sh -c '{EAT}'; sleep 0.2; exit 3"], change=_memory(16 * MIB))
    client.run(plan)
    state = node.wait_exit(client, plan["id"], 30.0)
    assert (state.exit_code, state.oom_killed) == (3, True)
    assert OomEvent(plan["id"]) in list(client.events(0.1))
    client.delete(plan["id"])


def test_pids_limit(node: RuntimeNode, client: RuntimeClient) -> None:
    """A container cannot have more processes than its limit."""
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; wait"
    plan = node.plan(["sh", "-c", script], change=lambda config: config["linux"]["resources"].update(pids={"limit": 5}))
    state, output = node.run_to_end(client, plan)
    assert state.exit_code != 0
    assert "fork" in output


def test_cpu_quota_throttles(node: RuntimeNode, client: RuntimeClient) -> None:
    """A container with a tenth of a processor is throttled when it wants more."""

    def change(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["cpu"] = {"quota": 5000, "period": 50_000, "shares": 100}

    plan = node.plan(["sh", "-c", "while :; do :; done"], change=change)
    client.run(plan)
    wait_for(lambda: client.stats([plan["id"]])[0].cpu_throttled_periods > 2, "throttling")
    client.delete(plan["id"], force=True)


def test_stats(node: RuntimeNode, client: RuntimeClient) -> None:
    """Usage figures are those of the container, and limits are shown."""
    plan = node.plan(["sh", "-c", "dd if=/dev/zero of=/dev/shm/f bs=1M count=4; sleep 100"], change=_memory(64 * MIB))
    before = int(time.time() * 1000)
    client.run(plan)
    wait_for(lambda: client.stats([plan["id"]])[0].memory_usage_bytes > 4 * MIB, "memory use")
    (stats,) = client.stats([plan["id"]])
    assert stats.memory_limit_bytes == 64 * MIB
    assert stats.memory_usage_bytes < 64 * MIB
    assert stats.cpu_usage_ns > 0
    assert (stats.pids_limit, stats.oom_kills) == (4096, 0)
    assert stats.pids_current >= 1
    assert before <= stats.started_at_unix_ms <= before + 60_000
    assert plan["id"] in [entry.id for entry in client.stats()]
    client.delete(plan["id"], force=True)


def test_update(node: RuntimeNode, client: RuntimeClient) -> None:
    """Limits of a running container can be raised and lowered."""
    plan = node.plan(["sleep", "100"], change=_memory(32 * MIB))
    client.run(plan)
    for size in (128 * MIB, 16 * MIB):
        client.update(plan["id"], {"memory_bytes": size, "memory_swap_bytes": size, "pids_max": 77})
        (stats,) = client.stats([plan["id"]])
        assert (stats.memory_limit_bytes, stats.pids_limit) == (size, 77)
    client.delete(plan["id"], force=True)


def test_pause_and_resume(node: RuntimeNode, client: RuntimeClient) -> None:
    """A paused container does nothing, refuses commands, goes on after resume, and can be killed while paused."""
    plan = node.plan(["sh", "-c", "while :; do echo tick; sleep 0.01; done"])
    client.run(plan)
    wait_for(lambda: node.output(plan["id"]), "output")
    client.pause(plan["id"])
    assert client.state(plan["id"]).status == "paused"
    wait_for(lambda: _is_still(node, plan["id"]), "standstill")
    with pytest.raises(WrongState):
        client.exec(plan["id"], ["true"])
    seen = len(node.output(plan["id"]))
    client.resume(plan["id"])
    wait_for(lambda: len(node.output(plan["id"])) > seen, "more output")
    client.pause(plan["id"])
    client.kill(plan["id"], 9)
    assert node.wait_exit(client, plan["id"]).exit_code == 137
    client.delete(plan["id"])


def _is_still(node: RuntimeNode, container_id: str) -> bool:
    before = node.output(container_id)
    time.sleep(0.1)
    return node.output(container_id) == before
