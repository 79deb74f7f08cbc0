"""Errors of the agent.

AgentError
├── LinkLost          a local process (runtime, network) is away; the operation may be repeated
├── LinkRefused       a local process answered with an error of its own
├── TaskFailure       a task cannot go on; carries the sentence and the reason that are reported
├── RelayFailed       a relayed call cannot be served; carries the name of a gRPC status code
└── NotInCluster      the node is in no cluster, or in one already, and was asked for the opposite
"""

from __future__ import annotations

from orch_proto import types_pb2 as types


class AgentError(Exception):
    """Base of all errors of the agent."""


class LinkLost(AgentError):
    """Raised by a link to a local process when the connection breaks; every operation may be repeated."""


class LinkRefused(AgentError):
    """Raised when a local process answers with an error; ``kind`` is the process's own word for it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class TaskFailure(AgentError):
    """Raised inside a task's controller when the task cannot go on; the message reaches `orch ps` as it is."""

    def __init__(self, message: str, reason: types.FailureReason.ValueType, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code


class RelayFailed(AgentError):
    """Raised by whoever serves a relayed call; ``code`` is the name of a gRPC status code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotInCluster(AgentError):
    """Raised by the local API when the node's membership does not allow what was asked."""
