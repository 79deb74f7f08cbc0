"""The errors that cross process boundaries, each mapped once to a gRPC status and back.

OrchError                  base: what failed, why, what to do next
├── InvalidArgument        INVALID_ARGUMENT     the request is wrong whatever the state; raised before anything changed
├── NotFound               NOT_FOUND            the object named is not there
├── AlreadyExists          ALREADY_EXISTS       the name is taken
├── PermissionDenied       PERMISSION_DENIED    the caller may not do this
├── Unauthenticated        UNAUTHENTICATED      the caller is not known
├── FailedPrecondition     FAILED_PRECONDITION  the state of the cluster forbids it; nothing was changed
├── OutOfDate              ABORTED              the object changed since it was read: read it again, then repeat
├── ResourceExhausted      RESOURCE_EXHAUSTED   a limit was reached
├── OutcomeUnknown         DEADLINE_EXCEEDED    the write may or may not have happened: read before repeating it
├── Unavailable            UNAVAILABLE          nobody answers, or the one who does is not ready; safe to repeat
├── Unimplemented          UNIMPLEMENTED        known, and not there yet
├── Cancelled              CANCELLED            the caller went away
└── Internal               INTERNAL, others     a defect of orch
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

import grpc

from orch_rpc.failures import explain_connection


class OrchError(Exception):
    """Base of what is told to people across processes.

    Args:
        what: what failed: "cannot deploy stack shop".
        why: the reason: "port 80/tcp is published by service blog_web".
        todo: what to do next; may be empty where nothing can be done.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(self, what: str, why: str = "", todo: str = "") -> None:
        self.what = what
        self.why = why
        self.todo = todo
        sentence = f"{what}: {why}" if why else what
        super().__init__(f"{sentence}; {todo}" if todo else sentence)

    def to_details(self) -> str:
        """The three parts as one text, a line each: what a gRPC status carries."""
        return "\n".join(" ".join(part.split("\n")) for part in (self.what, self.why, self.todo)).rstrip("\n")


class InvalidArgument(OrchError):
    """Raised by validation, before anything has changed."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(OrchError):
    """Raised when a reference names nothing."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(OrchError):
    """Raised when a unique name is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDenied(OrchError):
    """Raised when the caller's role does not allow the call."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(OrchError):
    """Raised when the caller shows no valid identity."""

    code = grpc.StatusCode.UNAUTHENTICATED


class FailedPrecondition(OrchError):
    """Raised when the state of the cluster forbids the call; nothing was changed."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class OutOfDate(OrchError):
    """Raised when an update was based on a version that is no longer the newest."""

    code = grpc.StatusCode.ABORTED


class ResourceExhausted(OrchError):
    """Raised when a documented limit is reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class OutcomeUnknown(OrchError):
    """Raised when a write was begun and its fate was not learnt in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(OrchError):
    """Raised when a peer does not answer, or is not ready; repeating is safe."""

    code = grpc.StatusCode.UNAVAILABLE


class Unimplemented(OrchError):
    """Raised for what the contract has and this version does not do yet."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Cancelled(OrchError):
    """Raised when the other side gave up."""

    code = grpc.StatusCode.CANCELLED


class Internal(OrchError):
    """A defect: an exception that nobody expected."""

    code = grpc.StatusCode.INTERNAL


_CLASSES: Final[tuple[type[OrchError], ...]] = (
    InvalidArgument,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    Unauthenticated,
    FailedPrecondition,
    OutOfDate,
    ResourceExhausted,
    OutcomeUnknown,
    Unavailable,
    Unimplemented,
    Cancelled,
    Internal,
)
_BY_CODE: Final = {kind.code: kind for kind in _CLASSES}
_BY_NAME: Final = {kind.code.name: kind for kind in _CLASSES}


def _from_parts(kind: type[OrchError], details: str) -> OrchError:
    what, _, rest = details.partition("\n")
    why, _, todo = rest.partition("\n")
    return kind(what, why, todo)


def from_status(code: grpc.StatusCode, details: str, *, doing: str = "") -> OrchError:
    """The error that a gRPC status stands for.

    Args:
        code: the status code.
        details: its text, three lines when it is ours.
        doing: what was tried ("list the services"); the first part of the message when no orch server wrote one.
    """
    kind = _BY_CODE.get(code, Internal)
    if "\n" in details or not doing:
        return _from_parts(kind, details or code.name.lower().replace("_", " "))
    if code is grpc.StatusCode.UNAVAILABLE:
        told = explain_connection(details)
        if told is not None:
            return kind(f"cannot {doing}", *told)
        return kind(
            f"cannot {doing}",
            details or "nobody answers",
            "check that orch runs on this host (orch node info), then repeat",
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return kind(
            f"cannot {doing}",
            "no answer came in time, so the outcome is not known",
            "look at the state before repeating it",
        )
    return kind(f"cannot {doing}", details or code.name)


def from_call_error(code: str, message: str) -> OrchError:
    """The error that a `CallError` message (a code's name and a text) stands for."""
    return _from_parts(_BY_NAME.get(code, Internal), message)


@contextmanager
def rpc_errors(doing: str = "") -> Iterator[None]:
    """Turns a `grpc.RpcError` raised inside into the `OrchError` it stands for.

    Args:
        doing: what is tried, as in "cannot ...", for statuses that carry no three-part message.

    Raises:
        OrchError: the call failed.
    """
    try:
        yield
    except grpc.RpcError as error:
        code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
        details = (error.details() if hasattr(error, "details") else str(error)) or ""
        raise from_status(code, details, doing=doing) from error
