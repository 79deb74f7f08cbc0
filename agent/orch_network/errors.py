"""The errors of the network process.

    NetworkFailure            everything below; ``kind`` travels over the control socket
    ├─ InvalidRequest         a request that cannot be right whatever the node's state (control socket, codecs)
    ├─ NotFound               an id that the node does not know
    ├─ Conflict               a valid request that contradicts what is wanted already
    ├─ LimitExceeded          a bound was reached (requests, networks, ports, sizes)
    ├─ KernelError            the kernel refused; names the call and the errno
    └─ ConnectionLost         raised by clients only: the network process did not answer

Messages have three parts: what failed, why, what to do next.
"""

from __future__ import annotations

import errno
import os


class NetworkFailure(Exception):
    """Base of all errors raised by this package."""

    kind = "internal"


class InvalidRequest(NetworkFailure):
    """Raised by validation: the request is malformed or out of range; repeating it is pointless."""

    kind = "invalid"


class NotFound(NetworkFailure):
    """Raised when a request names a network, service or task that is not wanted on this node."""

    kind = "not_found"


class Conflict(NetworkFailure):
    """Raised when a request contradicts the wanted state, e.g. an address that another task has."""

    kind = "conflict"


class LimitExceeded(NetworkFailure):
    """Raised when a bound of this node is reached; the message names the bound."""

    kind = "limit"


class KernelError(NetworkFailure):
    """Raised at the kernel seam: a system call or a netlink request was refused.

    Attributes:
        call: what was asked, in words ("create veth t1f2e3d…").
        number: the errno.
        reason: the kernel's extended message, or the errno's text.
    """

    kind = "kernel"

    def __init__(self, call: str, number: int, detail: str = "") -> None:
        self.call = call
        self.number = number
        self.reason = detail or os.strerror(number)
        symbol = errno.errorcode.get(number, str(number))
        super().__init__(f"{call}: {self.reason} [{symbol}]")


class ConnectionLost(NetworkFailure):
    """Raised by clients when the network process cannot be reached or went away before it answered."""

    kind = "connection_lost"


BY_KIND: dict[str, type[NetworkFailure]] = {
    failure.kind: failure for failure in (InvalidRequest, NotFound, Conflict, LimitExceeded, ConnectionLost)
}
"""Failures that a client rebuilds from the ``kind`` of an answer (a KernelError arrives as NetworkFailure)."""
