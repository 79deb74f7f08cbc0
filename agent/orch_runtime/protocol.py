"""The conversation on ROOT/runtime.sock: SOCK_SEQPACKET, one JSON message per packet.

Request {"seq":N,"op":OP,...} is answered by {"seq":N,"ok":{...}} or {"seq":N,"error":{"kind":K,"message":M,...}};
answers may come
in another order. After `subscribe`, {"event":"exit"|"oom",...} arrives unasked. Events are hints: who reconnects
lists again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from orch_runtime.errors import ProtocolFailure, RuntimeFailure, from_wire
from orch_runtime.names import (
    EVENT_EXEC_STARTED,
    EVENT_EXIT,
    EVENT_OOM,
    MAX_EXEC_OUTPUT_BYTES,
    MAX_MESSAGE_BYTES,
    OP_CREATE,
    OP_DELETE,
    OP_EXEC,
    OP_EXEC_SIGNAL,
    OP_KILL,
    OP_LIST,
    OP_PAUSE,
    OP_PROCESSES,
    OP_RESUME,
    OP_RUN,
    OP_SHUTDOWN,
    OP_START,
    OP_STATE,
    OP_STATS,
    OP_SUBSCRIBE,
    OP_UPDATE,
    OP_VERSION,
    STATUS_CREATED,
    STATUS_CREATING,
    STATUS_EXITED,
    STATUS_PAUSED,
    STATUS_RUNNING,
)


@dataclass(frozen=True)
class ContainerState:
    """What the supervisor knows of a container. Times are Unix milliseconds, 0 before they happen.

    `exit_code` follows the shells: 128 + N after signal N. `exit_known` is False if the code was lost with a keeper.
    """

    id: str
    status: str
    pid: int = 0
    created_at_unix_ms: int = 0
    started_at_unix_ms: int = 0
    finished_at_unix_ms: int = 0
    exit_code: int = 0
    exit_signal: int = 0
    exit_known: bool = True
    oom_killed: bool = False
    bundle: str = ""
    annotations: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    logs_dropped: int = 0


@dataclass(frozen=True)
class ExecResult:
    """How a command inside a container ended; `output` is stdout and stderr interleaved, cut at the limit asked for."""

    exit_code: int
    output: str
    timed_out: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class NetworkStats:
    """Counters of one interface inside the container."""

    interface: str
    receive_bytes: int
    receive_packets: int
    receive_errors: int
    receive_dropped: int
    transmit_bytes: int
    transmit_packets: int
    transmit_errors: int
    transmit_dropped: int


@dataclass(frozen=True)
class ContainerStats:
    """Usage of one container. A limit of 0 means none."""

    id: str
    started_at_unix_ms: int = 0
    cpu_usage_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cpu_periods: int = 0
    cpu_throttled_periods: int = 0
    cpu_throttled_ns: int = 0
    memory_usage_bytes: int = 0
    memory_working_set_bytes: int = 0
    memory_rss_bytes: int = 0
    memory_cache_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_failures: int = 0
    oom_kills: int = 0
    pids_current: int = 0
    pids_limit: int = 0
    block_read_bytes: int = 0
    block_write_bytes: int = 0
    networks: tuple[NetworkStats, ...] = ()


@dataclass(frozen=True)
class ExitEvent:
    """A container's first process ended."""

    id: str
    code: int
    signal: int
    oom_killed: bool
    finished_at_unix_ms: int


@dataclass(frozen=True)
class OomEvent:
    """The kernel ran a container out of memory; its first process may live on."""

    id: str


_Value = TypeVar("_Value")


def _build(kind: type[_Value], values: Mapping[str, Any]) -> _Value:
    """Make a dataclass of the keys it knows: a newer supervisor may send more."""
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in values.items() if key in known})


def parse_state(values: Mapping[str, Any]) -> ContainerState:
    """Read a container from an answer."""
    return _build(ContainerState, values)


def parse_exec(values: Mapping[str, Any]) -> ExecResult:
    """Read the result of an exec."""
    return _build(ExecResult, values)


def parse_stats(values: Mapping[str, Any]) -> ContainerStats:
    """Read the usage of one container."""
    networks = tuple(_build(NetworkStats, entry) for entry in values.get("networks", ()))
    return _build(ContainerStats, {**values, "networks": networks})


def parse_event(message: Mapping[str, Any]) -> ExitEvent | OomEvent | None:
    """Read an unasked message; None for an event of a newer supervisor."""
    if message.get("event") == EVENT_EXIT:
        return _build(ExitEvent, message)
    if message.get("event") == EVENT_OOM:
        return _build(OomEvent, message)
    return None


def encode(message: Mapping[str, object]) -> bytes:
    """Encode one message.

    Raises:
        ProtocolFailure: it is larger than MAX_MESSAGE_BYTES.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolFailure(f"message of {len(data)} bytes; the limit is {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes) -> dict[str, Any]:
    """Decode one message.

    Raises:
        ProtocolFailure: it is not a JSON object.
    """
    try:
        message = json.loads(data)
    except ValueError as error:
        raise ProtocolFailure(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolFailure("a message must be a JSON object")
    return message


def answer_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a successful answer carries, or raise the failure it reports."""
    error = message.get("error")
    if isinstance(error, dict):
        raise failure_of(error)
    ok = message.get("ok")
    return ok if isinstance(ok, dict) else {}


def failure_of(error: Mapping[str, Any]) -> RuntimeFailure:
    """Rebuild the failure of an error answer."""
    return from_wire(str(error.get("kind", "")), str(error.get("message", "")), dict(error))


__all__ = [
    "EVENT_EXEC_STARTED",
    "EVENT_EXIT",
    "EVENT_OOM",
    "MAX_EXEC_OUTPUT_BYTES",
    "MAX_MESSAGE_BYTES",
    "OP_CREATE",
    "OP_DELETE",
    "OP_EXEC",
    "OP_EXEC_SIGNAL",
    "OP_KILL",
    "OP_LIST",
    "OP_PAUSE",
    "OP_PROCESSES",
    "OP_RESUME",
    "OP_RUN",
    "OP_SHUTDOWN",
    "OP_START",
    "OP_STATE",
    "OP_STATS",
    "OP_SUBSCRIBE",
    "OP_UPDATE",
    "OP_VERSION",
    "STATUS_CREATED",
    "STATUS_CREATING",
    "STATUS_EXITED",
    "STATUS_PAUSED",
    "STATUS_RUNNING",
    "ContainerState",
    "ContainerStats",
    "ExecResult",
    "ExitEvent",
    "NetworkStats",
    "OomEvent",
    "answer_of",
    "decode",
    "encode",
    "failure_of",
    "parse_event",
    "parse_exec",
    "parse_state",
    "parse_stats",
]
