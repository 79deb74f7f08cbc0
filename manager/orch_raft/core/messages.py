"""What members say to each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from orch_raft.log.records import Entry
from orch_raft.membership import SnapshotMeta

#: The id of nobody, where an id is optional.
NOBODY = 0


class MessageKind(IntEnum):
    """The kinds of message; the numbers are those of the wire's RaftMessageType."""

    #: Entries to store, after a given one (Raft paper, AppendEntries).
    APPEND = 1
    APPEND_ANSWER = 2
    #: Would you vote for me? Changes no term (thesis, section 9.6).
    PRE_VOTE = 3
    PRE_VOTE_ANSWER = 4
    #: Vote for me (Raft paper, RequestVote).
    VOTE = 5
    VOTE_ANSWER = 6
    #: I lead; commits no further than the receiver is known to match.
    HEARTBEAT = 7
    HEARTBEAT_ANSWER = 8
    #: A snapshot: on the way out, send it to the receiver; on the way in, it has arrived whole and lies aside.
    SNAPSHOT = 9
    #: Campaign at once: leadership is handed to you (thesis, section 3.10).
    TIMEOUT_NOW = 10
    #: A follower asks its leader for an index at which a read is linearizable (thesis, section 6.4).
    READ_INDEX = 11
    READ_INDEX_ANSWER = 12
    #: You were removed from the cluster, for good.
    REMOVED = 13


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Which attributes count depends on its kind; the others keep their defaults.

    Attributes:
        kind: what it is.
        sender: raft id it comes from.
        to: raft id it goes to.
        term: the sender's term; for PRE_VOTE and a granted PRE_VOTE_ANSWER the term that would be campaigned in.
        index: APPEND: index of the entry before `entries`. APPEND_ANSWER: last index that is stored and matches, or, if
            `reject`, the `index` of the refused APPEND. PRE_VOTE, VOTE: the candidate's last index.
            READ_INDEX_ANSWER: the index to wait for.
        log_term: term of the entry at `index` in APPEND, PRE_VOTE, VOTE.
        commit: the leader's commit index in APPEND; in HEARTBEAT never above what the receiver is known to match.
        entries: of an APPEND. The same object goes to each follower that is sent the same entries, so that a
            transport may encode it once.
        reject: an answer that refuses.
        hint_index: in a refused APPEND_ANSWER, the last index where the logs may agree.
        hint_term: its term.
        context: names a read: in READ_INDEX and its answer the reader's own, in HEARTBEAT and its answer the leader's
            round.
        snapshot: what a SNAPSHOT covers.
        transfer: in VOTE, the present leader asked for this election, so its lease does not count.
    """

    kind: MessageKind
    sender: int
    to: int
    term: int
    index: int = 0
    log_term: int = 0
    commit: int = 0
    entries: Sequence[Entry] = ()
    reject: bool = False
    hint_index: int = 0
    hint_term: int = 0
    context: bytes = b""
    snapshot: SnapshotMeta | None = None
    transfer: bool = False
