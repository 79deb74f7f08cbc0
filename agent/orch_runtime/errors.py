"""Errors of the runtime.

RuntimeFailure                 anything below; `kind` is its name on the wire
  InvalidConfig                an OCI config or a plan is wrong; carries the JSON path (raised before anything changed)
  KernelError                  a system call failed; carries call, path and errno
  NotFound                     no container of that id
  AlreadyExists                the id is in use by a container with another plan
  WrongState                   the container is not in a state that allows the request
  StartFailed                  the container could not be set up or its program not executed; carries exit_code 126/127
  Refused                      the supervisor refuses for now (limits, shutting down, containers still running)
  ProtocolFailure              a message is malformed or too large
  Unavailable                  no keeper or supervisor answers
  Internal                     a defect of the runtime itself
"""

from __future__ import annotations

import os


class RuntimeFailure(Exception):
    """Base of every error this package raises on purpose."""

    kind = "internal"

    def details(self) -> dict[str, object]:
        """Return the fields that travel beside kind and message."""
        return {}


class InvalidConfig(RuntimeFailure):
    """An OCI config, a bundle or a plan is not acceptable; `path` names the place (`process.user.uid`)."""

    kind = "invalid_config"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}" if path else why)
        self.path = path

    def details(self) -> dict[str, object]:
        """Return the JSON path."""
        return {"path": self.path}


class KernelError(RuntimeFailure):
    """A system call failed: which one, on what, and the kernel's reason."""

    kind = "kernel"

    def __init__(self, call: str, number: int, path: str = "") -> None:
        subject = f" {path}" if path else ""
        super().__init__(f"{call}{subject}: {os.strerror(number)} (errno {number})")
        self.call = call
        self.number = number
        self.path = path

    def details(self) -> dict[str, object]:
        """Return call, errno and path."""
        return {"call": self.call, "errno": self.number, "path": self.path}


class NotFound(RuntimeFailure):
    """No container of that id is known."""

    kind = "not_found"


class AlreadyExists(RuntimeFailure):
    """The id belongs to a container made from another plan."""

    kind = "already_exists"


class WrongState(RuntimeFailure):
    """The container's state does not allow the request."""

    kind = "wrong_state"


class StartFailed(RuntimeFailure):
    """The container did not come to run its program; nothing of it is left."""

    kind = "start_failed"

    def __init__(self, message: str, exit_code: int = 126) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def details(self) -> dict[str, object]:
        """Return the exit code a shell would give: 127 not found, 126 anything else."""
        return {"exit_code": self.exit_code}


class Refused(RuntimeFailure):
    """The supervisor refuses the request at this time."""

    kind = "refused"


class ProtocolFailure(RuntimeFailure):
    """A message cannot be understood or is larger than allowed."""

    kind = "protocol"


class Unavailable(RuntimeFailure):
    """Nobody answers on the runtime's socket."""

    kind = "unavailable"


class Internal(RuntimeFailure):
    """A defect of the runtime; the supervisor's log has the traceback."""

    kind = "internal"


def _integer(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise


def from_wire(kind: str, message: str, details: dict[str, object]) -> RuntimeFailure:
    """Rebuild the error that the other side of the socket raised."""
    simple: dict[str, type[RuntimeFailure]] = {
        cls.kind: cls for cls in (NotFound, AlreadyExists, WrongState, Refused, ProtocolFailure, Unavailable)
    }
    if kind == StartFailed.kind:
        return StartFailed(message, _integer(details.get("exit_code"), 126))
    if kind == InvalidConfig.kind:
        path = str(details.get("path", ""))
        return InvalidConfig(path, message.removeprefix(f"{path}: "))
    if kind == KernelError.kind:
        failure = KernelError(
            str(details.get("call", "")), _integer(details.get("errno"), 0), str(details.get("path", ""))
        )
        failure.args = (message,)
        return failure
    return simple.get(kind, Internal)(message)
