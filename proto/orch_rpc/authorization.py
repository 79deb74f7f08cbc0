"""The interceptor that asks the table (`access.py`) before any handler runs, and leaves an audit line for every write.

A handler learns who calls by `current_call()`: the caller, checked; `require_node` refuses a node that speaks for
another one; `about` names what a stream turned out to be about, for the audit line.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from orch_rpc import logs
from orch_rpc.access import RULES, Callers, Rule, set_of, who_may
from orch_rpc.callers import ANONYMOUS, Caller, CallerKind, caller_of
from orch_rpc.errors import OrchError, PermissionDenied, Unauthenticated, Unavailable
from orch_rpc.identity import REJOIN
from orch_rpc.servers import with_behaviour

# The stubs make the class generic, the library does not.
if TYPE_CHECKING:
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor

_log = logs.get("audit")


@dataclass(slots=True)
class Call:
    """A call that is being answered.

    Attributes:
        method: "Control/ApplyStack".
        caller: on whose behalf.
        subject: what it is about, for the audit line.
    """

    method: str
    caller: Caller
    subject: str = ""

    def about(self, subject: str) -> None:
        """Names what the call is about: "task shop_web.1"."""
        self.subject = subject

    def require_node(self, node_id: str) -> None:
        """Refuses a node that speaks for another one.

        Raises:
            PermissionDenied: the caller is another node.
        """
        self.subject = self.subject or f"node {node_id}"
        caller = self.caller
        if caller.kind is CallerKind.LOCAL or (caller.is_node and caller.id == node_id):
            return
        raise PermissionDenied(
            f"cannot answer for node {node_id}",
            f"the certificate is of {caller}, and a node speaks for itself only",
            "give each host its own certificate: join it with a token",
        )


_current: ContextVar[Call | None] = ContextVar("orch-call", default=None)
#: A server without the interceptor has callers of whom nothing is known: they may do what anonymous ones may.
_UNKNOWN: Final = ANONYMOUS


def current_call() -> Call:
    """The call that is being answered. Outside of one, or without the interceptor, its caller is anonymous."""
    return _current.get() or Call("", _UNKNOWN)


def calling_as(caller: Caller, method: str = "") -> None:
    """Sets the caller of what follows in this task; for tests of handlers without a server."""
    _current.set(Call(method, caller))


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What an audit line tells.

    Attributes:
        method: "Control/ApplyStack".
        caller: on whose behalf.
        subject: what it was about.
        outcome: name of a status code.
        reason: why it was refused or failed.
        duration_s: how long it took.
    """

    method: str
    caller: Caller
    subject: str
    outcome: str
    reason: str = ""
    duration_s: float = 0.0


def write_audit_line(entry: AuditEntry) -> None:
    """One line in the log, of the component "audit"."""
    write = _log.info if entry.outcome == "OK" else _log.warning
    write(
        "call",
        caller=entry.caller,
        method=entry.method,
        object=entry.subject,
        outcome=entry.outcome,
        reason=entry.reason,
        via=entry.caller.forwarded_by,
        duration_ms=round(entry.duration_s * 1000),
    )


def _no_node(_node_id: str) -> bool:
    """For servers that know no nodes."""
    return False


def _no_scope(_caller: Caller, _method: str, _request: Any) -> None:
    """For servers that have nothing which belongs to a stack."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a server knows beyond the table.

    Attributes:
        cluster_id: certificates of another cluster are refused, whatever their issuer; empty: any.
        is_removed: whether a node was removed from the cluster; its certificate then opens nothing.
        is_demoted: whether a node is a worker by now: a manager's certificate that it may still have then opens nothing
            but consensus, which has its own members, and whose followers may not know yet who was promoted.
        check_scope: refuses (PermissionDenied) a request of a user who is limited to some stacks; given the caller, the
            method ("Control/ApplyStack") and the request. Not asked for streams of requests: their handlers ask.
        audit: where entries go.
        clock_unix_ms: the time.
    """

    cluster_id: str = ""
    is_removed: Callable[[str], bool] = _no_node
    is_demoted: Callable[[str], bool] = _no_node
    check_scope: Callable[[Caller, str, Any], None] = _no_scope
    audit: Callable[[AuditEntry], None] = write_audit_line
    clock_unix_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000


class Authorization(_Interceptor):
    """Admits calls by the table.

    Args:
        policy: what the server knows beyond it.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler that serves the call, if there is one."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        path = str(handler_call_details.method)
        method = path.removeprefix("/").removeprefix("orch.v1.")
        rule = RULES.get(path, Rule(Callers.NOBODY))

        def wrap(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            # What is passed on to the leader stays bytes here; the leader looks into it, and leaves the audit line.
            passes_on = handler.request_deserializer is None
            one_request = not handler.request_streaming and not passes_on
            guard = _Guard(
                self._policy, method, rule, behaviour, one_request=one_request, writes=rule.writes and not passes_on
            )
            return guard.stream if inspect.isasyncgenfunction(behaviour) else guard.single

        return with_behaviour(handler, wrap)


class _Guard:
    """One call's handler behind the table."""

    def __init__(
        self,
        policy: Policy,
        method: str,
        rule: Rule,
        behaviour: Callable[[Any, Any], Any],
        *,
        one_request: bool,
        writes: bool,
    ) -> None:
        self._policy = policy
        self._method = method
        self._rule = rule
        self._behaviour = behaviour
        self._one_request = one_request
        self._writes = writes
        self._began_s = time.monotonic()

    async def single(self, request: Any, context: Any) -> Any:
        """For handlers that are coroutines."""
        call = self._admit(request, context)
        try:
            answer = await self._behaviour(request, context)
        except BaseException as error:
            self._audit(call, error)
            raise
        self._audit(call)
        return answer

    async def stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """For handlers that are asynchronous generators."""
        call = self._admit(request, context)
        answers = self._behaviour(request, context)
        try:
            async for answer in answers:
                yield answer
        except BaseException as error:
            self._audit(call, error)
            raise
        finally:
            await answers.aclose()
        self._audit(call)

    def _admit(self, request: Any, context: Any) -> Call:
        """Checks the caller and the request, and makes the call known to the handler."""
        subject = self._rule.tell(request) if self._one_request else ""
        caller = ANONYMOUS
        try:
            caller = caller_of(context)
            self._check_caller(caller)
            self._check_method(caller, request)
        except OrchError as error:
            self._writes = True  # what was refused is told even when it would only have read
            self._audit(Call(self._method, caller, subject), error)
            raise
        if self._one_request and self._rule.is_write is not None:
            self._writes = self._rule.is_write(request)
        call = Call(self._method, caller, subject)
        _current.set(call)
        return call

    def _check_caller(self, caller: Caller) -> None:
        """Whether the caller is who may speak at all."""
        policy = self._policy
        what = f"cannot answer {caller}"
        if caller.cluster_id and policy.cluster_id and caller.cluster_id != policy.cluster_id:
            raise Unauthenticated(
                what,
                f"its certificate is of cluster {caller.cluster_id}, this is cluster {policy.cluster_id}",
                "use the context of this cluster, or join it with a token",
            )
        if caller.not_after_unix_ms and caller.not_after_unix_ms < policy.clock_unix_ms():
            raise Unauthenticated(
                what,
                "its certificate has expired",
                REJOIN if caller.is_node else "have an admin issue another: orch cluster user add",
            )
        for node_id in filter(None, (caller.id if caller.is_node else "", caller.forwarded_by)):
            if policy.is_removed(node_id):
                todo = "to take it back, on that host: orch cluster leave, then join with a token"
                raise Unauthenticated(what, f"node {node_id} was removed from the cluster", todo)
        manager_id = caller.forwarded_by or (caller.id if caller.kind is CallerKind.MANAGER else "")
        if manager_id and not self._method.startswith("Raft/") and policy.is_demoted(manager_id):
            # Nothing was done: who asked through it asks another one.
            raise Unavailable(what, f"node {manager_id} is no manager any more", "ask another manager")

    def _check_method(self, caller: Caller, request: Any) -> None:
        """Whether the caller may call this, and may ask just this."""
        rule, allowed = self._rule, self._rule.callers
        if self._one_request and rule.narrow is not None:
            allowed &= rule.narrow(request)
        if not set_of(caller) & allowed:
            raise PermissionDenied(
                f"cannot answer {self._method}", f"{caller} may not do this", f"who may: {who_may(allowed)}"
            )
        if caller.stack_prefix and rule.writes and self._one_request:
            self._policy.check_scope(caller, self._method, request)

    def _audit(self, call: Call, error: BaseException | None = None) -> None:
        if not self._writes:
            return
        outcome, reason = "OK", ""
        if isinstance(error, OrchError):
            outcome, reason = error.code.name, error.why
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            outcome = "CANCELLED"
        elif error is not None:
            outcome, reason = "INTERNAL", type(error).__name__
        duration_s = time.monotonic() - self._began_s
        self._policy.audit(AuditEntry(call.method, call.caller, call.subject, outcome, reason, duration_s))
