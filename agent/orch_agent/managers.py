"""Which manager the agent turns to next: pure.

The leader is tried first whenever it is known; a manager that fails goes to the end of the line, so that with several
managers the loss of any of them costs one attempt.
"""

from __future__ import annotations

from collections.abc import Iterable

MOST_MANAGERS = 64  # more than anybody runs; what a manager says is bounded


class ManagerLine:
    """The managers in the order in which they are tried.

    Args:
        addresses: those known at first, at least one.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self._line = list(dict.fromkeys(addresses))[:MOST_MANAGERS]
        self._leader = ""
        if not self._line:
            raise ValueError("a node that knows no manager cannot find its cluster")

    @property
    def addresses(self) -> tuple[str, ...]:
        """All known managers, in no order that means anything."""
        return tuple(sorted(self._line))

    def next(self) -> str:
        """The manager to try now."""
        return self._leader or self._line[0]

    def leads(self, address: str) -> None:
        """Somebody says that this manager leads; it is tried next."""
        if address and len(self._line) < MOST_MANAGERS and address not in self._line:
            self._line.append(address)
        self._leader = address if address in self._line else ""

    def failed(self, address: str) -> None:
        """A manager could not be reached, or knows of no leader: the others come first."""
        if address == self._leader:
            self._leader = ""
        if address in self._line:
            self._line.remove(address)
            self._line.append(address)

    def learned(self, addresses: Iterable[str]) -> bool:
        """The cluster's managers as one of them knows them; an empty list says nothing.

        Returns:
            True when something changed that is worth remembering.
        """
        wanted = list(dict.fromkeys(address for address in addresses if address))[:MOST_MANAGERS]
        if not wanted or set(wanted) == set(self._line):
            return False
        stay = [address for address in self._line if address in wanted]
        self._line = stay + [address for address in wanted if address not in stay]
        if self._leader not in self._line:
            self._leader = ""
        return True
