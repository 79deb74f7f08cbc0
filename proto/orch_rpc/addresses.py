"""Addresses of managers as people write them: ``HOST`` or ``HOST:PORT``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from orch_proto import defaults
from orch_rpc.errors import InvalidArgument

_LONGEST: Final = 253 + 6  # a host name (RFC 1035, 2.3.4), a colon and a port
_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?")
_LAST_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """Where a manager listens, or is reached.

    Attributes:
        host: an IPv4 or IPv6 address without brackets, or a name.
        port: of the mutually authenticated server.
    """

    host: str
    port: int = defaults.MANAGER_PORT

    def __str__(self) -> str:
        """``HOST:PORT``, as gRPC takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def for_joining(self) -> Address:
        """Where those ask that have no certificate yet."""
        return Address(self.host, self.port + defaults.JOIN_PORT_OFFSET)

    @property
    def is_unspecified(self) -> bool:
        """Whether it means every address of the host: good to listen on, useless to tell others."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False


def parse_address(text: str, what: str = "the address of a manager") -> Address:
    """The address that a text means.

    Args:
        text: ``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``.
        what: named in errors.

    Raises:
        InvalidArgument: it is no address.
    """
    todo = f"write HOST or HOST:PORT, as in 10.0.0.5:{defaults.MANAGER_PORT}"
    if len(text) > _LONGEST or not text.isprintable():
        raise InvalidArgument(f"cannot use {what}", "it is too long, or has characters that do not belong there", todo)
    host, port = _split(text)
    if not _is_host(host):
        raise InvalidArgument(f"cannot use {what} {text!r}", "it names no host", todo)
    if not port:
        return Address(host)
    number = int(port) if port.isdecimal() and port.isascii() else 0
    if not 0 < number <= _LAST_PORT - defaults.JOIN_PORT_OFFSET:
        why = f"{port!r} is no port between 1 and {_LAST_PORT - defaults.JOIN_PORT_OFFSET}"
        raise InvalidArgument(f"cannot use {what} {text!r}", why, todo)
    return Address(host, number)


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        return (host, rest[1:]) if closed and (not rest or rest.startswith(":")) else ("", "")
    if text.count(":") > 1:
        return text, ""
    host, separator, port = text.partition(":")
    return (host, port) if port or not separator else ("", "")


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # Digits and dots that are no address are a mistyped address, and no name.
        return bool(_HOST_NAME.fullmatch(host)) and not re.fullmatch(r"[0-9.]+", host)
    return True
