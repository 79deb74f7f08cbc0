"""Where the core reads entries that it keeps in memory no longer."""

from collections.abc import Sequence
from typing import Protocol

from orch_raft.log.records import Entry


class LogView(Protocol):
    """Older entries of this member's own log: those on disk that were applied here.

    Must answer without waiting for long.
    """

    def entries(self, first_index: int, last_index: int, max_bytes: int) -> Sequence[Entry]:
        """Entries from `first_index`, at least one, at most up to `last_index` and `max_bytes` of data.

        None at all when `first_index` is not held: the follower that needs it gets a snapshot.
        """
        ...

    def term(self, index: int) -> int | None:
        """Term of the entry at an index, None when it is not held."""
        ...
