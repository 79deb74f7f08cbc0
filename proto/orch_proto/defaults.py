"""Every default and limit of orch, once: value, unit, bounds and the reason.

``docs/defaults.md`` is generated from this table (``python proto/orch_proto/defaults_page.py``); code takes the values
from the constants below, never from literals of its own. Where Swarm has a default it is Swarm's; the
reason says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Unit = Literal["", "ms", "s", "bytes", "count", "ratio", "prefix length", "port", "ticks", "nano CPUs", "%"]
Kind = Literal["default", "limit"]

MIB: Final = 1024 * 1024
KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: the name by which documentation and errors call it, and why it is what it is."""

    group: str
    name: str
    value: int | float | str
    unit: Unit
    kind: Kind
    reason: str


_ENTRIES: list[Entry] = []


def _integer(group: str, name: str, value: int, unit: Unit, kind: Kind, reason: str) -> int:  # noqa: PLR0917 - a table row
    _ENTRIES.append(Entry(group, name, value, unit, kind, reason))
    return value


def _real(group: str, name: str, value: float, unit: Unit, kind: Kind, reason: str) -> float:  # noqa: PLR0917 - a table row
    _ENTRIES.append(Entry(group, name, value, unit, kind, reason))
    return value


def _text(group: str, name: str, value: str, reason: str) -> str:
    _ENTRIES.append(Entry(group, name, value, "", "default", reason))
    return value


# ---- services --------------------------------------------------------------------------------------
_G = "Services"
REPLICAS: Final = _integer(_G, "replicas", 1, "count", "default", "Swarm's; Compose may leave replicas out")
RESTART_DELAY_MS: Final = _integer(_G, "restart_policy.delay", 5_000, "ms", "default", "Swarm's")
RESTART_MAX_DELAY_MS: Final = _integer(
    _G,
    "restart back-off ceiling",
    300_000,
    "ms",
    "default",
    "a crash loop slows down to once in five minutes instead of Swarm's constant delay; "
    "a delay of 0 s stays 0 for the first failures",
)
RESTART_BACKOFF_RESET_MS: Final = _integer(
    _G, "restart back-off reset", 600_000, "ms", "default", "a task that ran ten minutes is no crash loop"
)
RESTART_BACKOFF_FREE: Final = _integer(
    _G, "restarts before back-off", 3, "count", "default", "one bad moment must not slow down the healing"
)
RESTART_BACKOFF_BASE_MS: Final = _integer(
    _G,
    "restart back-off base",
    100,
    "ms",
    "default",
    "what a delay shorter than this doubles from, once the back-off begins",
)
OLD_TASK_WAIT_MS: Final = _integer(
    _G,
    "wait for the old task",
    60_000,
    "ms",
    "default",
    "Swarm's: a replacement stays READY until the old one has stopped",
)
UPDATE_PARALLELISM: Final = _integer(
    _G, "update_config.parallelism", 1, "count", "default", "Swarm's; 0 means all at once"
)
UPDATE_DELAY_MS: Final = _integer(_G, "update_config.delay", 0, "ms", "default", "Swarm's")
UPDATE_MONITOR_MS: Final = _integer(_G, "update_config.monitor", 5_000, "ms", "default", "Swarm's")
UPDATE_MAX_FAILURE_RATIO: Final = _real(_G, "update_config.max_failure_ratio", 0.0, "ratio", "default", "Swarm's")
UPDATE_PROGRESS_DEADLINE_MS: Final = _integer(
    _G, "update progress deadline", 600_000, "ms", "default", "an update never waits for ever (Swarm does)"
)
STOP_GRACE_MS: Final = _integer(_G, "stop_grace_period", 10_000, "ms", "default", "Swarm's; then SIGKILL")
STOP_SIGNAL: Final = _text(_G, "stop_signal", "SIGTERM", "Swarm's, unless the image names one")
STOP_DELAY_MS: Final = _integer(
    _G, "x-orch.stop_delay", 0, "ms", "default",
    "on one node a task leaves the load balancer before its stop signal is sent; no gossip to wait for",
)  # fmt: skip
DISCONNECT_GRACE_MS: Final = _integer(
    _G, "x-orch.disconnect_grace", 0, "ms", "default", "Swarm's: replaced when the node is DOWN"
)
SHM_SIZE_BYTES: Final = _integer(_G, "shm_size", 64 * MIB, "bytes", "default", "Docker's")
PIDS_LIMIT: Final = _integer(
    _G, "resources.limits.pids", 4096, "count", "default", "a fork bomb ends in its own cgroup"
)
MIN_NANO_CPUS: Final = _integer(
    _G, "smallest CPU limit or reservation", 1_000_000, "nano CPUs", "limit", "Swarm's: 0.001 CPU"
)
MIN_MEMORY_BYTES: Final = _integer(_G, "smallest memory limit or reservation", 4 * MIB, "bytes", "limit", "Swarm's")
MAX_REPLICAS: Final = _integer(
    _G, "replicas of one service", 10_000, "count", "limit", "one service must not fill the store"
)
NOFILE_SOFT: Final = _integer(_G, "ulimit nofile, soft", 1024, "count", "default", "CIS: a default ulimit is set")
NOFILE_HARD: Final = _integer(
    _G, "ulimit nofile, hard", 524_288, "count", "default", "CIS; lowered to the node's own hard limit"
)

# ---- health checks ---------------------------------------------------------------------------------
_G = "Health checks"
HEALTH_INTERVAL_MS: Final = _integer(_G, "interval", 30_000, "ms", "default", "Docker's")
HEALTH_TIMEOUT_MS: Final = _integer(_G, "timeout", 30_000, "ms", "default", "Docker's")
HEALTH_RETRIES: Final = _integer(_G, "retries", 3, "count", "default", "Docker's")
HEALTH_START_PERIOD_MS: Final = _integer(_G, "start_period", 0, "ms", "default", "Docker's")
HEALTH_START_INTERVAL_MS: Final = _integer(
    _G, "start_interval", 5_000, "ms", "default", "Docker's; used within the start period"
)
HEALTH_OUTPUT_BYTES: Final = _integer(_G, "kept output of a probe", 4096, "bytes", "limit", "Docker's")
HEALTH_MIN_MS: Final = _integer(_G, "smallest interval or timeout", 1, "ms", "limit", "Docker's")

# ---- logs ------------------------------------------------------------------------------------------
_G = "Logs"
LOG_DRIVER: Final = _text(_G, "driver", "json-file", "Docker's")
LOG_MAX_SIZE_BYTES: Final = _integer(
    _G, "max-size", 10 * MIB, "bytes", "default", "rotation is on by default (Docker: off)"
)
LOG_MAX_FILES: Final = _integer(_G, "max-file", 3, "count", "default", "rotation is on by default")
LOG_LINE_BYTES: Final = _integer(
    _G, "longest line", 16 * KIB, "bytes", "limit", "Docker's; longer ones are cut into parts"
)

# ---- names and sizes -------------------------------------------------------------------------------
_G = "Names and sizes"
SERVICE_NAME_LENGTH: Final = _integer(_G, "service name", 63, "count", "limit", "a DNS label")
SECRET_NAME_LENGTH: Final = _integer(_G, "secret or config name", 64, "count", "limit", "Swarm's")
STACK_NAME_LENGTH: Final = _integer(_G, "stack name", 63, "count", "limit", "a DNS label")
SECRET_BYTES: Final = _integer(_G, "secret", 500 * KIB, "bytes", "limit", "Swarm's")
CONFIG_BYTES: Final = _integer(_G, "config", 1000 * KIB, "bytes", "limit", "Swarm's")
STACK_HISTORY: Final = _integer(
    _G, "versions kept of a stack", 10, "count", "limit", "enough to go back a week of deploys"
)
MESSAGE_BYTES: Final = _integer(_G, "largest gRPC message", 4 * MIB, "bytes", "limit", "gRPC's default and Swarm's")
TRANSACTION_BYTES: Final = _integer(
    _G, "largest transaction", 1_572_864, "bytes", "limit", "Swarm's 1.5 MiB: one raft entry"
)
TRANSACTION_CHANGES: Final = _integer(_G, "changes in a batch", 200, "count", "limit", "Swarm's")
STACK_FILE_BYTES: Final = _integer(_G, "stack file", 5 * MIB, "bytes", "limit", "larger is no stack file")
FETCH_CHAINS_MAX: Final = _integer(
    _G,
    "layers that a node says it has",
    4096,
    "count",
    "limit",
    "a request of 300 KiB; others are sent again",
)
IMAGE_GC_HIGH_PERCENT: Final = _integer(
    _G, "disk use at which unwanted images go", 85, "%", "default", "the kubelet's; Swarm removes none"
)
IMAGE_GC_LOW_PERCENT: Final = _integer(_G, "disk use at which no more of them go", 80, "%", "default", "the kubelet's")
WANTED_IMAGES_MAX: Final = _integer(
    _G, "images that a node asks about at once", 1000, "count", "limit", "a message of some 300 KiB"
)
RELAY_CHUNK_BYTES: Final = _integer(
    _G, "data frame of a relay", 256 * KIB, "bytes", "limit", "keeps the event loop responsive"
)

# ---- networks --------------------------------------------------------------------------------------
_G = "Networks"
ADDRESS_POOL: Final = _text(_G, "address pool", "10.0.0.0/8", "Swarm's")
SUBNET_PREFIX_LENGTH: Final = _integer(_G, "subnet cut from the pool", 24, "prefix length", "default", "Swarm's")
DYNAMIC_PORT_FIRST: Final = _integer(_G, "first dynamic published port", 30_000, "port", "default", "Swarm's")
DYNAMIC_PORT_LAST: Final = _integer(_G, "last dynamic published port", 32_767, "port", "default", "Swarm's")
VNI_FIRST: Final = _integer(
    _G, "first VXLAN identifier", 4097, "count", "default", "leaves the range of VLAN ids free, as Swarm does"
)
DATA_PATH_PORT: Final = _integer(_G, "VXLAN port", 4789, "port", "default", "RFC 7348")
DNS_TTL_S: Final = _integer(
    _G, "TTL of task names", 5, "s", "default", "an address that has gone must be forgotten soon (Swarm: 600)"
)
NETWORK_MTU: Final = _integer(_G, "MTU of an overlay", 1450, "bytes", "default", "1500 less VXLAN's 50")

# ---- scheduling ------------------------------------------------------------------------------------
_G = "Scheduling"
FAULTY_NODE_FAILURES: Final = _integer(
    _G, "failures that make a node the last choice", 5, "count", "default", "Swarm's"
)
FAULTY_NODE_WINDOW_MS: Final = _integer(_G, "window of those failures", 300_000, "ms", "default", "Swarm's")
TASK_HISTORY_MAX: Final = _integer(_G, "most old tasks kept per slot", 1_000, "count", "limit", "bounds the store")
TASK_HISTORY: Final = _integer(_G, "old tasks kept per slot", 5, "count", "default", "Swarm's")

# ---- agents and managers ---------------------------------------------------------------------------
_G = "Agents and managers"
HEARTBEAT_PERIOD_MIN_MS: Final = _integer(
    _G, "shortest heartbeat period", 500, "ms", "limit", "below it jitter and scheduling of a busy host count as death"
)
HEARTBEAT_PERIOD_MAX_MS: Final = _integer(
    _G, "longest heartbeat period", 300_000, "ms", "limit", "a node is believed alive for three of them"
)
HEARTBEAT_PERIOD_MS: Final = _integer(_G, "heartbeat", 5_000, "ms", "default", "Swarm's")
HEARTBEAT_JITTER_MS: Final = _integer(_G, "heartbeat jitter", 500, "ms", "default", "Swarm's")
HEARTBEAT_GRACE_PERIODS: Final = _integer(_G, "heartbeats missed until DOWN", 3, "count", "default", "Swarm's")
HEARTBEAT_GRACE_PERIODS_UNKNOWN: Final = _integer(
    _G,
    "heartbeats missed after a change of leader",
    6,
    "count",
    "default",
    "Swarm's: nodes need time to find the new leader",
)
ORPHANED_AFTER_MS: Final = _integer(
    _G, "node down until its tasks are ORPHANED", 86_400_000, "ms", "default", "Swarm's"
)
AGENT_BACKOFF_FIRST_MS: Final = _integer(_G, "agent's first back-off", 100, "ms", "default", "Swarm's")
AGENT_BACKOFF_LAST_MS: Final = _integer(_G, "agent's longest back-off", 8_000, "ms", "default", "Swarm's")
ALONE_AFTER_MS: Final = _integer(
    _G,
    "session lost until an agent restarts tasks itself",
    15_000,
    "ms",
    "default",
    "longer than a change of leader takes; a leader that cannot reach the node has marked it DOWN by then",
)
REPLACEMENTS_KEPT: Final = _integer(
    _G,
    "ended tasks of a slot that an agent alone keeps",
    5,
    "count",
    "default",
    "the leader's history; or max_attempts + 1, if that is more",
)
STATUS_BATCH_ITEMS: Final = _integer(_G, "task statuses in one batch", 10_000, "count", "limit", "Swarm's")
ASSIGNMENT_BATCH_CHANGES: Final = _integer(_G, "changes in one assignment message", 100, "count", "limit", "Swarm's")
DESCRIPTION_REFRESH_MS: Final = _integer(_G, "node description refresh", 20_000, "ms", "default", "Swarm's")
RPC_TIMEOUT_MS: Final = _integer(
    _G, "unary call", 10_000, "ms", "default", "longer than a slow disk's sync, shorter than patience"
)
LEADER_WAIT_MS: Final = _integer(
    _G, "wait for a leader", 5_000, "ms", "default", "an election takes less; then the caller is told that none leads"
)
NODE_CALL_TIMEOUT_MS: Final = _integer(_G, "question to a node", 5_000, "ms", "default", "Swarm's dispatcher time-out")
WATCH_QUEUE_EVENTS: Final = _integer(
    _G, "events a slow watcher may lag", 10_000, "count", "limit", "then it must read anew"
)
RECONCILE_INTERVAL_MS: Final = _integer(
    _G,
    "comparison of the kernel with what is wanted",
    30_000,
    "ms",
    "default",
    "drift is repaired within half a minute",
)
MANAGER_PORT: Final = _integer(_G, "managers listen on", 2377, "port", "default", "Swarm's")
JOIN_PORT_OFFSET: Final = _integer(
    _G,
    "the port for joining, above the managers' one",
    1,
    "count",
    "default",
    "who joins has no certificate yet, and a port either asks for one or does not",
)
NODE_METRICS_PORT: Final = _integer(_G, "metrics of a node", 9323, "port", "default", "Docker's engine port")
MANAGER_METRICS_PORT: Final = _integer(_G, "metrics of a manager", 9324, "port", "default", "beside the node's")

BACKUP_BYTES: Final = _integer(
    _G, "backup that is taken", 2 * 1024 * MIB, "bytes", "limit", "a state is kept in memory"
)

# ---- consensus -------------------------------------------------------------------------------------
_G = "Consensus"
SNAPSHOT_INTERVAL_ENTRIES: Final = _integer(_G, "entries between snapshots", 10_000, "count", "default", "Swarm's")
KEEP_ENTRIES: Final = _integer(
    _G, "entries kept behind a snapshot", 500, "count", "default", "Swarm's, for slow followers"
)
RAFT_HEARTBEAT_MS: Final = _integer(_G, "heartbeat of the leader", 100, "ms", "default", "etcd's")
RAFT_ELECTION_MS: Final = _integer(
    _G,
    "silence of the leader until an election, at least",
    800,
    "ms",
    "default",
    "at most twice that, at random: a new leader within 2 s",
)
RAFT_CHUNK_BYTES: Final = _integer(_G, "piece of a snapshot in transfer", MIB, "bytes", "limit", "below gRPC's bound")
RAFT_CHUNK_TIMEOUT_MS: Final = _integer(
    _G, "piece of a snapshot", 10_000, "ms", "default", "a receiver that takes longer has gone"
)
RAFT_QUEUE_MESSAGES: Final = _integer(
    _G, "messages waiting for one manager", 4096, "count", "limit", "Swarm's; more are dropped and sent anew"
)
RAFT_QUEUE_BYTES: Final = _integer(_G, "data waiting for one manager", 64 * MIB, "bytes", "limit", "bounds memory")
PROPOSAL_TIMEOUT_MS: Final = _integer(
    _G,
    "proposal",
    10_000,
    "ms",
    "default",
    "never waits for ever (Swarm does); the error says that the outcome is unknown",
)

# ---- trust -----------------------------------------------------------------------------------------
_G = "Trust"
NODE_CERTIFICATE_LIFETIME_MS: Final = _integer(
    _G, "life of a node's certificate", 7_776_000_000, "ms", "default", "Swarm's: 90 days"
)
NODE_CERTIFICATE_MIN_LIFETIME_MS: Final = _integer(
    _G, "shortest life of a node's certificate", 3_600_000, "ms", "limit", "Swarm's: an hour"
)
ROOT_CERTIFICATE_LIFETIME_MS: Final = _integer(
    _G, "life of the root certificate", 630_720_000_000, "ms", "default", "Swarm's: 20 years"
)
CERTIFICATE_BACKDATE_MS: Final = _integer(
    _G, "certificates begin this long ago", 3_600_000, "ms", "default", "Swarm's: for hosts whose clocks lag"
)
RENEWAL_EARLIEST: Final = _real(
    _G, "renewal, earliest, as part of life", 0.5, "ratio", "default", "Swarm's: there is time to try again"
)
RENEWAL_LATEST: Final = _real(
    _G,
    "renewal, latest, as part of life",
    0.8,
    "ratio",
    "default",
    "Swarm's: spread, so that nodes do not come at once",
)
USER_CERTIFICATE_LIFETIME_MS: Final = _integer(
    _G, "life of a user's certificate", 2_592_000_000, "ms", "default", "30 days: it cannot be called back before"
)
USER_CERTIFICATE_MAX_LIFETIME_MS: Final = _integer(
    _G, "longest life of a user's certificate", 31_622_400_000, "ms", "limit", "a year of 366 days"
)
JOIN_CALLS: Final = _integer(
    _G, "calls at once on the joining port", 64, "count", "limit", "strangers can reach it: they share a bounded part"
)

# ---- deploys ---------------------------------------------------------------------------------------
_G = "Deploys"
DEPLOY_TIMEOUT_MS: Final = _integer(_G, "--timeout", 600_000, "ms", "default", "the progress deadline of an update")

TABLE: Final[tuple[Entry, ...]] = tuple(_ENTRIES)
