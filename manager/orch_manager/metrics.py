"""What a manager tells Prometheus; names as in docs/manager.md.

Histograms and counters are fed as things happen; what can be read off the store is read when scraped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from orch_manager import tasks as states
from orch_manager.clock import Clock
from orch_manager.labels import NAMESPACE_LABEL
from orch_manager.members import quorum
from orch_manager.members.view import members_of
from orch_manager.store.schema import SCHEMA
from orch_manager.store.store import Store
from orch_manager.store.tables import Reader
from orch_proto.objects_pb2 import Node, NodeState, Service, Stack, Task
from orch_proto.types_pb2 import FailureReason, TaskState, UpdateState
from orch_raft.engine import Observer, Role, Suffrage

_FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_NODE_STATES: Final = tuple(name.removeprefix("NODE_STATE_").lower() for name in NodeState.keys())  # noqa: SIM118 - an enum wrapper


class ManagerMetrics:
    """The registry and its instruments."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.schedule_duration = self._histogram("orch_schedule_duration_seconds", "Time to place a round of tasks.")
        self.step_duration = self._histogram(
            "orch_control_loops_step_seconds", "Time of one step of the control loops."
        )
        self.commit_duration = self._histogram("orch_raft_commit_duration_seconds", "From proposal to applied.")
        self.fsync_duration = self._histogram("orch_raft_wal_fsync_duration_seconds", "Write and sync of the log.")
        self.filtered = CounterMetric(
            "orch_scheduler_filtered_total", "Nodes that a filter refused.", ["filter"], registry=self.registry
        )
        self.failures = CounterMetric(
            "orch_service_task_failures_total",
            "Tasks that ended badly.",
            ["stack", "service", "reason"],
            registry=self.registry,
        )
        self.proposals_failed = CounterMetric(
            "orch_raft_proposals_failed_total", "Writes that raised an error.", ["error"], registry=self.registry
        )
        self.leader_changes = CounterMetric(
            "orch_raft_leader_changes_total", "Changes of leader seen.", registry=self.registry
        )
        self.rpc_duration = Histogram(
            "orch_rpc_duration_seconds", "Calls served.", ["method", "code"], buckets=_FAST, registry=self.registry
        )
        self.elections = CounterMetric(
            "orch_raft_elections_total", "Elections that this manager stood in.", registry=self.registry
        )
        self.snapshots_sent = CounterMetric(
            "orch_raft_snapshots_sent_total", "Snapshots for other managers.", ["result"], registry=self.registry
        )
        self.snapshot_duration = self._histogram(
            "orch_raft_snapshot_duration_seconds", "A snapshot, until it is synced and named."
        )
        self.snapshots_failed = CounterMetric(
            "orch_raft_snapshots_failed_total", "Snapshots that could not be written.", registry=self.registry
        )
        self.snapshots_installed = CounterMetric(
            "orch_raft_snapshots_installed_total",
            "Snapshots of the leader that took the place of this manager's state.",
            registry=self.registry,
        )
        self.log_bytes = CounterMetric(
            "orch_raft_wal_written_bytes_total", "Bytes written to the log and synced.", registry=self.registry
        )
        self.loop_stalls = self._histogram(
            "orch_event_loop_stall_seconds", "Stalls of the event loop: nothing was done for so long."
        )
        self.forwarded = CounterMetric(
            "orch_rpc_forwarded_total", "Calls carried to the leader.", ["method"], registry=self.registry
        )

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_FAST, registry=self.registry)

    # ---- hooks ---------------------------------------------------------------------------------------

    def call_forwarded(self, method: str) -> None:
        """A call is carried to the leader."""
        self.forwarded.labels(method.rpartition("/")[2]).inc()

    def rpc_served(self, method: str, code: str, duration_s: float) -> None:
        """A call ended."""
        self.rpc_duration.labels(method.rpartition("/")[2], code).observe(duration_s)

    def scheduled(self, duration_s: float, filtered: Counter[str]) -> None:
        """A round of the scheduler ended."""
        self.schedule_duration.observe(duration_s)
        for name, count in filtered.items():
            self.filtered.labels(name).inc(count)

    def task_failed(self, task: Task) -> None:
        """A task ended badly."""
        reason = FailureReason.Name(task.status.reason).removeprefix("FAILURE_REASON_").lower()
        self.failures.labels(task.service_labels.get(NAMESPACE_LABEL, ""), task.service_name, reason).inc()


class RaftObserver(Observer):
    """Feeds consensus measurements into the metrics."""

    def __init__(self, metrics: ManagerMetrics) -> None:
        self._metrics = metrics

    def committed(self, duration_s: float) -> None:
        """See `Observer`."""
        self._metrics.commit_duration.observe(duration_s)

    def synced(self, duration_s: float, entries: int, size_bytes: int) -> None:
        """See `Observer`."""
        del entries
        self._metrics.fsync_duration.observe(duration_s)
        self._metrics.log_bytes.inc(size_bytes)

    def snapshot_written(self, duration_s: float, size_bytes: int) -> None:
        """See `Observer`."""
        del size_bytes
        self._metrics.snapshot_duration.observe(duration_s)

    def snapshot_failed(self) -> None:
        """See `Observer`."""
        self._metrics.snapshots_failed.inc()

    def snapshot_sent(self, *, ok: bool) -> None:
        """See `Observer`."""
        self._metrics.snapshots_sent.labels("ok" if ok else "failed").inc()

    def snapshot_installed(self, duration_s: float) -> None:
        """See `Observer`."""
        del duration_s
        self._metrics.snapshots_installed.inc()

    def election_begun(self) -> None:
        """See `Observer`."""
        self._metrics.elections.inc()

    def loop_stalled(self, duration_s: float) -> None:
        """See `Observer`."""
        self._metrics.loop_stalls.observe(duration_s)

    def proposal_failed(self, error_name: str) -> None:
        """See `Observer`."""
        self._metrics.proposals_failed.labels(error_name).inc()


class StateCollector:
    """Reads the store when scraped.

    Args:
        store: read.
        clock: what time it is.
        version: of this software.
        node_id: this manager's node.
        dropped: statuses that were not believed, by reason.
    """

    def __init__(self, store: Store, *, clock: Clock, version: str, node_id: str, dropped: Counter[str]) -> None:
        self._store = store
        self._clock = clock
        self._version = version
        self._node_id = node_id
        self._dropped = dropped

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the store may not be there yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        info = GaugeMetricFamily("orch_build_info", "1, with the version.", labels=["version", "node", "role"])
        info.add_metric([self._version, self._node_id, "manager"], 1)
        yield info
        yield from self._nodes()
        yield from self._tasks()
        yield from self._services()
        yield from self._raft()
        objects = GaugeMetricFamily("orch_store_objects", "Objects in the store.", labels=["kind"])
        for kind, count in self._store.counts().items():
            objects.add_metric([SCHEMA[kind].label], count)
        yield objects
        dropped = CounterMetricFamily(
            "orch_dispatcher_statuses_dropped", "Statuses of agents that were not believed.", labels=["reason"]
        )
        for reason, count in self._dropped.items():
            dropped.add_metric([reason], count)
        yield dropped

    def _nodes(self) -> Iterator[Metric]:
        one_hot = GaugeMetricFamily("orch_node_state", "1 for the state a node is in.", labels=["node", "state"])
        total = GaugeMetricFamily("orch_nodes", "Nodes by state.", labels=["state"])
        counted: Counter[str] = Counter(dict.fromkeys(_NODE_STATES, 0))
        for node in self._store.all(Node):
            present = NodeState.Name(node.status.state).removeprefix("NODE_STATE_").lower()
            counted[present] += 1
            for state in _NODE_STATES:
                one_hot.add_metric([node.description.hostname or node.id, state], float(state == present))
        for state, count in counted.items():
            total.add_metric([state], count)
        yield one_hot
        yield total

    def _tasks(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("orch_tasks", "Tasks by observed state.", labels=["state"])
        counted: Counter[str] = Counter({states.state_name(state): 0 for state in TaskState.values()})
        oldest_ms, now_ms = 0, self._clock.unix_ms()
        for task in self._store.all(Task):
            counted[states.state_name(task.status.state)] += 1
            if task.status.state <= states.PENDING and states.is_wanted(task):
                oldest_ms = max(oldest_ms, now_ms - task.meta.created_at_unix_ms)
        for state, count in counted.items():
            family.add_metric([state], count)
        yield family
        yield GaugeMetricFamily(
            "orch_task_pending_seconds_max", "Age of the oldest task without a node.", value=oldest_ms / 1000
        )

    def _services(self) -> Iterator[Metric]:
        labels = ["stack", "service"]
        desired = GaugeMetricFamily("orch_service_replicas_desired", "Replicas wanted.", labels=labels)
        running = GaugeMetricFamily("orch_service_replicas_running", "Tasks wanted and running.", labels=labels)
        updating = GaugeMetricFamily("orch_service_update_state", "1 for the state.", labels=[*labels, "state"])
        reader: Reader = self._store
        for service in reader.all(Service):
            stack = reader.get(Stack, service.stack_id)
            named = [stack.annotations.name if stack is not None else "", service.spec.annotations.name]
            desired.add_metric(named, float(service.spec.mode.replicated.replicas))
            alive = sum(
                1
                for task in reader.find(Task, service_id=service.id)
                if task.status.state == states.RUNNING and states.is_wanted(task)
            )
            running.add_metric(named, alive)
            if service.update_status.state:
                state = UpdateState.Name(service.update_status.state).removeprefix("UPDATE_STATE_").lower()
                updating.add_metric([*named, state], 1)
        yield desired
        yield running
        yield updating

    def _raft(self) -> Iterator[Metric]:
        status = self._store.engine.status()
        for name, text, value in (
            ("orch_raft_has_leader", "1 when a leader is known.", status.leader_id is not None),
            ("orch_raft_is_leader", "1 on the leader.", status.role is Role.LEADER),
            ("orch_raft_term", "The present term.", status.term),
            ("orch_raft_commit_index", "Index of the last committed entry.", status.commit_index),
            ("orch_raft_applied_index", "Index of the last applied entry.", status.applied_index),
            ("orch_raft_last_index", "Index of the last entry of the log.", status.last_index),
            ("orch_raft_snapshot_index", "Index of the newest snapshot.", status.last_snapshot_index),
            ("orch_raft_proposals_pending", "Writes that wait.", status.waiting_proposals),
            ("orch_raft_tolerates", "Managers that may still be lost; known to the leader.", _tolerates(self._store)),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        role = GaugeMetricFamily("orch_raft_role", "1 for the role of this manager.", labels=["role"])
        for each in Role:
            role.add_metric([each.value], float(each is status.role))
        yield role
        yield from self._members()

    def _members(self) -> Iterator[Metric]:
        """What the leader knows of the others."""
        members = members_of(self._store.engine)
        total = GaugeMetricFamily("orch_raft_members", "Managers by suffrage.", labels=["suffrage"])
        for suffrage in Suffrage:
            total.add_metric([suffrage.value], sum(1 for each in members if each.member.suffrage is suffrage))
        yield total
        match = GaugeMetricFamily("orch_raft_peer_match_index", "Last index on a manager's disk.", labels=["peer"])
        reach = GaugeMetricFamily("orch_raft_peer_reachable", "1 when the leader hears a manager.", labels=["peer"])
        for each in members if self._store.engine.status().peers else ():
            match.add_metric([each.member.node_id], each.match)
            reach.add_metric([each.member.node_id], float(each.reachable))
        yield match
        yield reach


def _tolerates(store: Store) -> int:
    return quorum.tolerates(each.as_manager for each in members_of(store.engine))
