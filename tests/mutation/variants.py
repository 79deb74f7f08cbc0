"""Broken variants of the consensus core: known bugs of Raft implementations, each as a change of its source.

The first 26 are those that the design's research injected into a prototype; the others came with this implementation.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """A fragment of a file of `orch_raft` that occurs in it once, and what stands there in the variant."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One bug."""

    name: str
    edits: tuple[Edit, ...]


def _variant(name: str, *edits: tuple[str, str, str]) -> Variant:
    return Variant(name, tuple(Edit(*edit) for edit in edits))


_ELECTION = "core/election.py"
_FOLLOWING = "core/following.py"
_LOG = "core/log.py"
_NODE = "core/node.py"
_READS = "core/reads.py"
_RECEIVING = "core/receiving.py"
_RECONFIGURATION = "core/reconfiguration.py"
_REPLICATION = "core/replication.py"
_ROLES = "core/roles.py"

NAMED = (
    _variant(
        "answers an append before the sync",
        (
            _FOLLOWING,
            "state.send_after_sync(Message(MessageKind.APPEND_ANSWER",
            "state.send(Message(MessageKind.APPEND_ANSWER",
        ),
    ),
    _variant(
        "the leader counts its own unsynced entry",
        (
            _REPLICATION,
            "reached_by_quorum(state.peers[voter_id].match for voter_id in state.voter_ids)",
            (
                "reached_by_quorum(state.log.last_index if voter_id == state.raft_id else state.peers[voter_id].match"
                " for voter_id in state.voter_ids)"
            ),
        ),
    ),
    _variant(
        "the vote is not kept over a restart",
        (_NODE, "vote=recovered.hard_state.vote,", "vote=NOBODY,"),
    ),
    _variant(
        "term and vote are not kept over a restart",
        (
            _NODE,
            "term=max(recovered.hard_state.term, recovered.snapshot.term),",
            "term=max([recovered.snapshot.term, *(entry.term for entry in recovered.entries)]),",
        ),
        (_NODE, "vote=recovered.hard_state.vote,", "vote=NOBODY,"),
    ),
    _variant(
        "the vote is cleared on a step-down within the term",
        (_ROLES, "    if term != state.term:\n", "    if True:\n"),
    ),
    _variant(
        "entries of older terms are committed by counting (figure 8)",
        (
            _REPLICATION,
            "if index > state.log.commit and state.log.term(index) == state.term:",
            "if index > state.log.commit:",
        ),
    ),
    _variant(
        "half of an even number is a quorum",
        ("core/quorum.py", "return voters // 2 + 1", "return (voters + 1) // 2"),
    ),
    _variant(
        "votes without a look at the candidate's log",
        (_ELECTION, "granted = free and state.log.is_up_to_date(message.index, message.log_term)", "granted = free"),
    ),
    _variant(
        "the longer log wins, whatever its last term",
        (
            _LOG,
            "return (last_term, last_index) >= (self.last_term, self.last_index)",
            "return last_index >= self.last_index",
        ),
    ),
    _variant(
        "every append truncates, conflict or not",
        (_LOG, "            if not self.matches(entry.index, entry.term):\n", "            if True:\n"),
    ),
    _variant(
        "an append without entries truncates",
        (
            _FOLLOWING,
            "    log.merge(message.entries)\n",
            "    log.merge(message.entries)\n    if not message.entries:\n        log._truncate(message.index + 1)\n",
        ),
    ),
    _variant(
        "a snapshot commits entries that do not match it",
        (_FOLLOWING, "if log.matches(meta.index, meta.term):", "if meta.index <= log.last_index:"),
    ),
    _variant(
        "a heartbeat's commit index is not bounded by the match",
        (_REPLICATION, "commit = min(peer.match, state.log.commit)", "commit = state.log.commit"),
    ),
    _variant(
        "the term of the previous entry is not compared",
        (
            _FOLLOWING,
            "if not log.matches(message.index, message.log_term):",
            "if message.index > log.last_index:",
        ),
    ),
    _variant(
        "an append of an earlier term is accepted",
        (
            _RECEIVING,
            "elif message.term == state.term or _come_to_terms(state, message):",
            (
                "elif (message.term <= state.term and kind is MessageKind.APPEND) or message.term == state.term"
                " or _come_to_terms(state, message):"
            ),
        ),
        (
            _RECEIVING,
            "        raise SafetyBroken(f",
            "        return\n        raise SafetyBroken(f",
        ),
    ),
    _variant(
        "the match is taken from an answer of an earlier term",
        (
            _RECEIVING,
            "elif message.term == state.term or _come_to_terms(state, message):",
            (
                "elif (message.term <= state.term and kind is MessageKind.APPEND_ANSWER) or message.term == state.term"
                " or _come_to_terms(state, message):"
            ),
        ),
    ),
    _variant(
        "reads without a round of a quorum",
        (_READS, "for voter_id in state.voter_ids) < queue.round:", "for voter_id in state.voter_ids) < 0:"),
    ),
    _variant(
        "reads before an entry of the own term is committed",
        (_READS, "and not state.reads.confirming and state.has_committed_in_term", "and not state.reads.confirming"),
    ),
    _variant(
        "two changes of members in flight",
        (_RECONFIGURATION, "    if state.log.membership_indexes:\n", "    if False:\n"),
    ),
    _variant(
        "campaigns and counts without the changes that are not applied",
        (_RECONFIGURATION, "    for index in state.log.membership_indexes:\n", "    for index in ():\n"),
    ),
    _variant(
        "learners count in the quorum",
        (
            _RECONFIGURATION,
            "state.voter_ids = frozenset(member.raft_id for member in membership.voters)",
            "state.voter_ids = frozenset(member.raft_id for member in membership.members)",
        ),
    ),
    _variant(
        "the vote of one who is no voter counts",
        (
            _ELECTION,
            "sum(1 for voter_id in state.voter_ids if state.votes.get(voter_id) is True)",
            "sum(state.votes.values())",
        ),
    ),
    _variant(
        "a snapshot is applied over a longer log",
        (_FOLLOWING, "if log.matches(meta.index, meta.term):", "if False:"),
    ),
    _variant(
        "entries are written before the hard state",
        (
            "log/records.py",
            '    return b"".join(parts)\n',
            '    return b"".join(parts if batch.hard_state is None else parts[1:] + parts[:1])\n',
        ),
    ),
    _variant(
        "a leader without a quorum stays",
        (_REPLICATION, "if not hears_quorum(state):", "if False:"),
    ),
    _variant(
        "votes though a leader lives",
        (_RECEIVING, "and election.holds_lease(state)", "and False"),
    ),
)

FURTHER = (
    _variant(
        "grants a vote before the sync",
        (_ELECTION, "    state.send_after_sync(answer)", "    state.send(answer)"),
    ),
    _variant(
        "asks for votes before the sync",
        (_ELECTION, "send = state.send_after_sync if kind is MessageKind.VOTE else state.send", "send = state.send"),
    ),
    _variant(
        "counts the own vote before the sync",
        (
            _ELECTION,
            "    _ask(state, MessageKind.VOTE, state.term)\n",
            "    _ask(state, MessageKind.VOTE, state.term)\n    own_vote_persisted(state)\n",
        ),
    ),
    _variant(
        "commits beyond what was compared",
        (_FOLLOWING, "log.commit_to(min(message.commit, matched))", "log.commit_to(message.commit)"),
    ),
    _variant(
        "a pre-vote raises the term",
        (_RECEIVING, "    if not is_pre_vote:\n", "    if True:\n"),
    ),
    _variant(
        "answers to an earlier round confirm a read",
        (_READS, "    queue.round += 1\n", "    queue.round = 1\n"),
    ),
    _variant(
        "changes members before the own term has a committed entry",
        (_RECONFIGURATION, "    if not state.has_committed_in_term:\n", "    if False:\n"),
    ),
    _variant(
        "a removed id comes back",
        ("membership.py", "        if raft_id in self.removed_ids:\n", "        if False:\n"),
    ),
    _variant(
        "a learner votes before it has caught up",
        (_RECONFIGURATION, "and not is_caught_up(state, change.member.raft_id)", "and False"),
    ),
    _variant(
        "a sync of replaced entries counts",
        (_LOG, "if index > self.persisted and self.matches(index, term):", "if index > self.persisted:"),
    ),
    _variant(
        "hands over before the target has the log",
        (
            "core/transfer.py",
            "if target is not None and target.match == state.log.last_index:",
            "if target is not None:",
        ),
    ),
    _variant(
        "applies before the snapshot is installed",
        (_NODE, "            if log.has_committed and not state.installing\n", "            if log.has_committed\n"),
    ),
    _variant(
        "a removed leader counts itself until the end",
        (
            _REPLICATION,
            "reached_by_quorum(state.peers[voter_id].match for voter_id in state.voter_ids)",
            "reached_by_quorum(peer.match for peer in state.peers.values())",
        ),
    ),
    _variant(
        "a change that was replaced goes on counting",
        (
            _FOLLOWING,
            "    if log.membership_indexes != state.known_changes:\n",
            "    if len(log.membership_indexes) > len(state.known_changes):\n",
        ),
    ),
    _variant(
        "the commit index falls",
        (_LOG, "        if index <= self.commit:\n            return False\n", ""),
    ),
)

ALL = NAMED + FURTHER
