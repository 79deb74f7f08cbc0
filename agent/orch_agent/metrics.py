"""What the node tells Prometheus.

Itself under ``orch_agent_*``; its containers under cAdvisor's names, so that existing dashboards work unchanged.
Containers' counters are read when somebody scrapes, not before.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orch_agent.description import memory_total_bytes
from orch_agent.errors import LinkLost, LinkRefused
from orch_agent.packets import JsonObject, PacketLink
from orch_agent.session import SessionFacts
from orch_agent.stats import StatsReader
from orch_agent.task.controller import TaskController
from orch_agent.task.templates import task_name
from orch_proto import types_pb2 as types
from orch_proto.version import VERSION
from orch_rpc import logs
from orch_runtime.protocol import ContainerStats

log = logs.get("metrics")
SCRAPE_WAIT_S = 5.0
_LABELS = (
    "id",
    "name",
    "image",
    "container_label_com_docker_swarm_service_name",
    "container_label_com_docker_swarm_task_name",
    "container_label_com_docker_stack_namespace",
)
_STACK_LABEL = "com.docker.stack.namespace"


@dataclass(frozen=True, slots=True)
class Measured:
    """One of cAdvisor's series: where it comes from in the runtime's counters, and how it is shown."""

    name: str
    field: str
    help: str
    counter: bool = False
    scale: float = 1.0


_CONTAINER_SERIES = (
    Measured("container_cpu_usage_seconds", "cpu_usage_ns", "CPU time used", counter=True, scale=1e-9),
    Measured("container_cpu_user_seconds", "cpu_user_ns", "CPU time used in user mode", counter=True, scale=1e-9),
    Measured("container_cpu_system_seconds", "cpu_system_ns", "CPU time used in the kernel", counter=True, scale=1e-9),
    Measured("container_cpu_cfs_periods", "cpu_periods", "Elapsed enforcement periods", counter=True),
    Measured("container_cpu_cfs_throttled_periods", "cpu_throttled_periods", "Throttled periods", counter=True),
    Measured(
        "container_cpu_cfs_throttled_seconds", "cpu_throttled_ns", "Time spent throttled", counter=True, scale=1e-9
    ),
    Measured("container_memory_usage_bytes", "memory_usage_bytes", "Memory in use, page cache included"),
    Measured("container_memory_working_set_bytes", "memory_working_set_bytes", "Memory in use that cannot be dropped"),
    Measured("container_memory_rss", "memory_rss_bytes", "Anonymous memory"),
    Measured("container_memory_cache", "memory_cache_bytes", "Page cache"),
    # A counter, shown as a gauge: cAdvisor's name has no _total, which the client library gives to every counter.
    Measured("container_memory_failcnt", "memory_failures", "Times the memory limit was hit"),
    Measured("container_oom_events", "oom_kills", "Processes killed for lack of memory", counter=True),
    Measured("container_spec_memory_limit_bytes", "memory_limit_bytes", "Memory limit; 0: none"),
    Measured("container_processes", "pids_current", "Processes and threads"),
    Measured("container_start_time_seconds", "started_at_unix_ms", "Start time, Unix seconds", scale=1e-3),
    Measured("container_fs_reads_bytes", "block_read_bytes", "Bytes read from disks", counter=True),
    Measured("container_fs_writes_bytes", "block_write_bytes", "Bytes written to disks", counter=True),
)
_NETWORK_SERIES = (
    ("container_network_receive_bytes", "receive_bytes"),
    ("container_network_receive_packets", "receive_packets"),
    ("container_network_receive_errors", "receive_errors"),
    ("container_network_receive_packets_dropped", "receive_dropped"),
    ("container_network_transmit_bytes", "transmit_bytes"),
    ("container_network_transmit_packets", "transmit_packets"),
    ("container_network_transmit_errors", "transmit_errors"),
    ("container_network_transmit_packets_dropped", "transmit_dropped"),
)


class NodeCollector(Collector):
    """Collects at scrape time; runs in the scraper's thread and asks the event loop for what lives there.

    Args:
        loop: the agent's event loop.
        controllers: the node's tasks.
        stats: containers' counters.
        facts: the session.
        certificate_ends_unix_ms: when the node's certificate ends.
        network: link to the network process.
        image_bytes_freed: by removing images that nothing wants.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        controllers: Callable[[], dict[str, TaskController]],
        stats: StatsReader,
        facts: Callable[[], SessionFacts],
        certificate_ends_unix_ms: Callable[[], int],
        network: PacketLink,
        image_bytes_freed: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._controllers = controllers
        self._stats = stats
        self._facts = facts
        self._certificate_ends_unix_ms = certificate_ends_unix_ms
        self._network = network
        self._image_bytes_freed = image_bytes_freed

    def collect(self) -> Iterator[Metric]:
        """All series, as they are now."""
        yield _info("orch_build_info", "Version of orch", {"version": VERSION})
        yield _gauge("machine_cpu_cores", "Processors of the node", len(os.sched_getaffinity(0)))
        memory_bytes = memory_total_bytes(Path("/proc/meminfo").read_text(encoding="ascii"))
        yield _gauge("machine_memory_bytes", "Memory of the node", memory_bytes)
        facts = self._facts()
        yield _gauge("orch_agent_session_connected", "1 while the node has a session", int(facts.connected))
        yield _counter("orch_agent_sessions", "Sessions begun", facts.sessions)
        ends_s = self._certificate_ends_unix_ms() / 1000
        yield _gauge("orch_certificate_expiry_timestamp_seconds", "When the node's certificate ends", ends_s)
        freed = self._image_bytes_freed()
        yield _counter("orch_agent_image_freed_bytes", "Bytes freed by removing images that nothing wants", freed)
        yield from self._tasks()
        try:
            gathered = asyncio.run_coroutine_threadsafe(self._gather(), self._loop)
            containers, network = gathered.result(SCRAPE_WAIT_S)
        except (TimeoutError, LinkLost, LinkRefused) as error:
            log.warning("scrape.incomplete", why=str(error))
            return
        yield from self._containers(containers)
        yield from _network_counters(network)

    async def _gather(self) -> tuple[list[ContainerStats], JsonObject]:
        containers = await self._stats.read()
        network = await self._network.call("status", timeout_s=SCRAPE_WAIT_S)
        return containers, network

    def _tasks(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("orch_agent_tasks", "Tasks of the node by observed state", labels=["state"])
        counts = {name.removeprefix("TASK_STATE_").lower(): 0 for name in types.TaskState.keys()}  # noqa: SIM118
        for controller in list(self._controllers().values()):
            counts[types.TaskState.Name(controller.status.state).removeprefix("TASK_STATE_").lower()] += 1
        for state, count in counts.items():
            states.add_metric([state], count)
        yield states

    def _containers(self, containers: list[ContainerStats]) -> Iterator[Metric]:
        labelled = [(self._labels(fields.id), fields) for fields in containers]
        for series in _CONTAINER_SERIES:
            family: CounterMetricFamily | GaugeMetricFamily
            kind = CounterMetricFamily if series.counter else GaugeMetricFamily
            family = kind(series.name, series.help, labels=_LABELS)
            for labels, fields in labelled:
                family.add_metric(labels, float(getattr(fields, series.field)) * series.scale)
            yield family
        for name, field in _NETWORK_SERIES:
            network = CounterMetricFamily(name, name.replace("_", " "), labels=(*_LABELS, "interface"))
            for labels, fields in labelled:
                for counters in fields.networks:
                    if counters.interface != "lo":
                        network.add_metric((*labels, counters.interface), float(getattr(counters, field)))
            yield network

    def _labels(self, container_id: str) -> tuple[str, ...]:
        controller = self._controllers().get(container_id)
        if controller is None:
            return (f"/orch/{container_id}", container_id, "", "", "", "")
        task = controller.task
        name = task_name(task)
        return (
            f"/orch/{container_id}",
            name,
            task.spec.container.image,
            task.service_name,
            name,
            task.service_labels.get(_STACK_LABEL, ""),
        )


def serve_metrics(collector: Collector, address: str) -> Callable[[], None]:
    """Serves /metrics at ``host:port`` in a thread; returns what stops it.

    Raises:
        OSError: the address cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    host, _, port = address.rpartition(":")
    server, thread = start_http_server(int(port), host.strip("[]") or "127.0.0.1", registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(SCRAPE_WAIT_S)

    return stop


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _info(name: str, text: str, labels: dict[str, str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _network_counters(status: JsonObject) -> Iterator[Metric]:
    counters = status.get("counters") or {}
    drift = CounterMetricFamily("orch_agent_reconcile_drift", "Kernel entries repaired", labels=["kind"])
    for kind, count in (counters.get("repairs") or {}).items():
        drift.add_metric([str(kind)], float(count))
    yield drift
    queries = CounterMetricFamily("orch_dns_queries", "Name queries of tasks by outcome", labels=["outcome"])
    for outcome, count in (counters.get("dns_queries") or {}).items():
        queries.add_metric([str(outcome)], float(count))
    yield queries
