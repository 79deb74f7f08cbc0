"""What the node's containers use, read from the runtime at most once a second however many ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from orch_agent.runtime import Runtime
from orch_proto import node_pb2 as calls
from orch_runtime.protocol import ContainerStats

FRESH_S = 1.0


class StatsReader:
    """Reads container counters through the runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = asyncio.Lock()
        self._read_at = 0.0
        self._read_at_unix_ms = 0
        self._stats: list[ContainerStats] = []

    async def read(self) -> list[ContainerStats]:
        """Counters of all containers, at most a second old.

        Raises:
            LinkLost, LinkRefused: the supervisor does not answer.
        """
        async with self._lock:
            if time.monotonic() - self._read_at > FRESH_S:
                self._stats = await self._runtime.stats()
                self._read_at = time.monotonic()
                self._read_at_unix_ms = time.time_ns() // 1_000_000
            return self._stats

    async def for_tasks(self, task_ids: Collection[str]) -> list[calls.TaskStats]:
        """Counters of some tasks, or of all when none is named."""
        chosen = [fields for fields in await self.read() if not task_ids or fields.id in task_ids]
        return [_task_stats(fields, self._read_at_unix_ms) for fields in chosen]


def _task_stats(fields: ContainerStats, read_at_unix_ms: int) -> calls.TaskStats:
    outside = [network for network in fields.networks if network.interface != "lo"]
    return calls.TaskStats(
        task_id=fields.id,
        cpu_usage_ns=fields.cpu_usage_ns,
        memory_usage_bytes=fields.memory_usage_bytes,
        memory_limit_bytes=fields.memory_limit_bytes,
        pids=fields.pids_current,
        network_receive_bytes=sum(network.receive_bytes for network in outside),
        network_transmit_bytes=sum(network.transmit_bytes for network in outside),
        block_read_bytes=fields.block_read_bytes,
        block_write_bytes=fields.block_write_bytes,
        sampled_at_unix_ms=read_at_unix_ms,
    )
