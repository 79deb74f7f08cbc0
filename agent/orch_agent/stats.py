"""What the node's containers use, read from the runtime at most once a second however many ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from orch_agent.packets import JsonObject
from orch_agent.runtime import Runtime
from orch_proto import node_pb2 as calls

FRESH_S = 1.0


class StatsReader:
    """Reads container counters through the runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = asyncio.Lock()
        self._read_at = 0.0
        self._stats: list[JsonObject] = []

    async def read(self) -> list[JsonObject]:
        """Counters of all containers, at most a second old.

        Raises:
            LinkLost, LinkRefused: the supervisor does not answer.
        """
        async with self._lock:
            if time.monotonic() - self._read_at > FRESH_S:
                self._stats = await self._runtime.stats()
                self._read_at = time.monotonic()
            return self._stats

    async def for_tasks(self, task_ids: Collection[str]) -> list[calls.TaskStats]:
        """Counters of some tasks, or of all when none is named."""
        now_ms = time.time_ns() // 1_000_000
        return [
            _task_stats(fields, now_ms)
            for fields in await self.read()
            if not task_ids or str(fields.get("id")) in task_ids
        ]


def _task_stats(fields: JsonObject, now_ms: int) -> calls.TaskStats:
    networks = fields.get("networks") or {}
    counters = [counter for name, counter in networks.items() if name != "lo"]
    return calls.TaskStats(
        task_id=str(fields["id"]),
        cpu_usage_ns=int(fields.get("cpu_usage_ns", 0)),
        memory_usage_bytes=int(fields.get("memory_usage_bytes", 0)),
        memory_limit_bytes=int(fields.get("memory_limit_bytes") or 0),
        pids=int(fields.get("pids", 0)),
        network_receive_bytes=sum(int(counter.get("rx_bytes", 0)) for counter in counters),
        network_transmit_bytes=sum(int(counter.get("tx_bytes", 0)) for counter in counters),
        block_read_bytes=int(fields.get("blkio_read_bytes") or 0),
        block_write_bytes=int(fields.get("blkio_write_bytes") or 0),
        sampled_at_unix_ms=now_ms,
    )
