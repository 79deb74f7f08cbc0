"""Runs scenario files: commands, and below each the text of what they bring about.

    command [arguments]
    ----
    what happens, a line for each thing
    (an empty line ends it)

Commands:

    cluster 1 2 3 [learner 4] [led-by=1] [BOUND=NUMBER]   found a cluster, and have a leader elected without a word
    join 4                     start a member that has nothing
    campaign 1                 its election timer runs out
    tick 1 [TIMES]             time passes for one member, nothing is delivered
    propose 1 DATA...          ask for entries
    change 1 add|promote|demote|remove 4
    read 1 NAME                ask for a read index
    transfer 1 2               hand leadership over
    deliver [COUNT]            deliver until nothing is under way, or so many messages
    drop                       lose all that is under way
    cut 1 2 / isolate 1 / heal links in both directions
    hold 1 / sync 1            keep syncs from returning, let them
    restart 1                  kill it; it starts with what was synced
    snapshot 1 [KEEP]          take one, drop the log before it
    unreachable 1 2            the driver of 1 lost messages to 2
    state                      a line for each member
    log 1                      its entries
"""

from collections.abc import Callable
from dataclasses import dataclass

from orch_raft.core.messages import Message, MessageKind
from orch_raft.core.ready import Ready
from orch_raft.engine import MembershipAction, MembershipChange, Suffrage
from orch_raft.log.records import Entry, EntryKind
from orch_raft.membership import decode_change
from unit.raft.core.lab import Lab, member

_ACTIONS = {
    "add": MembershipAction.ADD_LEARNER,
    "promote": MembershipAction.PROMOTE,
    "demote": MembershipAction.DEMOTE,
    "remove": MembershipAction.REMOVE,
}


@dataclass(frozen=True, slots=True)
class Block:
    """One command, the comment before it and what it should bring about."""

    comment: str
    command: str
    expected: str


def parse(text: str) -> list[Block]:
    """The blocks of a file."""
    blocks: list[Block] = []
    for chunk in text.strip().split("\n\n"):
        head, separator, expected = chunk.partition("\n----")
        assert separator, f"no line of dashes in {chunk!r}"
        lines = head.split("\n")
        comment = "\n".join(line for line in lines if line.startswith("#"))
        (command,) = [line for line in lines if not line.startswith("#")]
        blocks.append(Block(comment, command, expected.strip("\n")))
    return blocks


def render(blocks: list[Block]) -> str:
    """The file of blocks."""
    parts = []
    for block in blocks:
        comment = f"{block.comment}\n" if block.comment else ""
        expected = f"\n{block.expected}" if block.expected else ""
        parts.append(f"{comment}{block.command}\n----{expected}\n")
    return "\n".join(parts)


def describe_entry(entry: Entry) -> str:
    """An entry in one word or three."""
    if entry.kind is EntryKind.NEW_TERM:
        what = "new-term"
    elif entry.kind is EntryKind.MEMBERSHIP:
        change = decode_change(entry.data)
        what = f"{change.action.value.split()[0]}:{change.member.raft_id}"
    else:
        what = entry.data.decode()
    return f"{entry.index}/{entry.term}:{what}"


def describe_message(message: Message) -> str:
    """A message in one line: only what counts for its kind."""
    words = [f"{message.sender}>{message.to} {message.kind.name} term={message.term}"]
    match message.kind:
        case MessageKind.APPEND:
            words.append(f"after={message.index}/{message.log_term} commit={message.commit}")
            words.append(" ".join(describe_entry(entry) for entry in message.entries) or "nothing")
        case MessageKind.APPEND_ANSWER if message.reject:
            words.append(f"refuses={message.index} hint={message.hint_index}/{message.hint_term}")
        case MessageKind.APPEND_ANSWER:
            words.append(f"has={message.index}")
        case MessageKind.PRE_VOTE | MessageKind.VOTE:
            words.append(f"last={message.index}/{message.log_term}" + (" transfer" if message.transfer else ""))
        case MessageKind.PRE_VOTE_ANSWER | MessageKind.VOTE_ANSWER:
            words.append("no" if message.reject else "yes")
        case MessageKind.HEARTBEAT:
            words.append(f"commit={message.commit}")
        case MessageKind.SNAPSHOT if message.snapshot is not None:
            words.append(f"through={message.snapshot.index}/{message.snapshot.term}")
        case MessageKind.READ_INDEX_ANSWER:
            words.append("no" if message.reject else f"index={message.index}")
        case _:
            pass
    if message.context:
        is_round = message.kind in {MessageKind.HEARTBEAT, MessageKind.HEARTBEAT_ANSWER}
        words.append(f"round={int.from_bytes(message.context, 'big')}" if is_round else message.context.decode())
    return " ".join(words)


class Script:
    """Carries out commands and writes down what happens."""

    def __init__(self) -> None:
        self._lab = Lab([])
        self._lines: list[str] = []
        self._standing: dict[int, tuple[str, int]] = {}

    def run(self, command: str) -> str:
        """Carry out one command; return what happened."""
        self._lines = []
        name, *words = command.split()
        handler: Callable[..., None] = getattr(self, f"_do_{name}")
        handler(*words)
        return "\n".join(self._lines)

    def _say(self, line: object) -> None:
        self._lines.append(str(line))

    def _on_ready(self, raft_id: int, ready: Ready) -> None:
        standing = (ready.role.value, ready.term)
        if self._standing.get(raft_id) != standing:
            self._standing[raft_id] = standing
            self._say(f"{raft_id} is {ready.role.value} in term {ready.term}")
        if ready.removed:
            self._say(f"{raft_id} knows that it was removed")
        if ready.snapshot is not None:
            self._say(f"{raft_id} installs snapshot {ready.snapshot.index}/{ready.snapshot.term}")
        if ready.must_sync and ready.hard_state is not None:
            state = ready.hard_state
            self._say(f"{raft_id} writes term={state.term} vote={state.vote} commit={state.commit}")
        if ready.entries:
            self._say(f"{raft_id} writes {' '.join(describe_entry(entry) for entry in ready.entries)}")
        if ready.committed:
            self._say(f"{raft_id} applies {' '.join(describe_entry(entry) for entry in ready.committed)}")
        for read in ready.reads:
            self._say(f"{raft_id} may read {read.context.decode()} at {read.index}")
        for context in ready.refused_reads:
            self._say(f"{raft_id} must ask again for {context.decode()}")

    def _do_cluster(self, *words: str) -> None:
        bounds = {name: int(value) for name, _, value in (word.partition("=") for word in words if "=" in word)}
        leader = bounds.pop("led-by", 0)
        plain = [word for word in words if "=" not in word]
        cut = plain.index("learner") if "learner" in plain else len(plain)
        self._lab = Lab([int(word) for word in plain[:cut]], [int(word) for word in plain[cut + 1 :]], **bounds)
        self._standing = {}
        if leader:
            self._lab.elect(leader)
            self._standing = {
                raft_id: (bench.node.role.value, bench.node.term) for raft_id, bench in self._lab.benches.items()
            }
        self._lab.on_ready = self._on_ready
        self._lab.on_message = lambda message: self._say(describe_message(message))

    def _do_join(self, raft_id: str) -> None:
        self._lab.start(int(raft_id))

    def _do_campaign(self, raft_id: str) -> None:
        self._lab[int(raft_id)].node.campaign()
        self._lab.turn(int(raft_id))

    def _do_tick(self, raft_id: str, times: str = "1") -> None:
        for _ in range(int(times)):
            self._lab[int(raft_id)].node.tick()
            self._lab.turn(int(raft_id))

    def _do_propose(self, raft_id: str, *data: str) -> None:
        self._say(self._lab[int(raft_id)].node.propose([word.encode() for word in data]))
        self._lab.turn(int(raft_id))

    def _do_change(self, raft_id: str, action: str, target: str) -> None:
        change = MembershipChange(_ACTIONS[action], member(int(target)))
        self._say(self._lab[int(raft_id)].node.propose_membership(change))
        self._lab.turn(int(raft_id))

    def _do_read(self, raft_id: str, name: str) -> None:
        refused = self._lab[int(raft_id)].node.read_index(name.encode())
        if refused:
            self._say(refused)
        self._lab.turn(int(raft_id))

    def _do_transfer(self, raft_id: str, to: str) -> None:
        refused = self._lab[int(raft_id)].node.transfer(int(to))
        if refused:
            self._say(refused)
        self._lab.turn(int(raft_id))

    def _do_deliver(self, count: str = "") -> None:
        self._lab.deliver(at_most=int(count) if count else None)

    def _do_drop(self) -> None:
        for message in self._lab.queue:
            self._say(f"lost: {describe_message(message)}")
        self._lab.queue.clear()

    def _do_cut(self, one: str, other: str) -> None:
        self._lab.cut |= {(int(one), int(other)), (int(other), int(one))}

    def _do_isolate(self, raft_id: str) -> None:
        self._lab.isolate(int(raft_id))

    def _do_heal(self) -> None:
        self._lab.heal()

    def _do_hold(self, raft_id: str) -> None:
        self._lab[int(raft_id)].hold_sync = True

    def _do_sync(self, raft_id: str) -> None:
        self._lab[int(raft_id)].hold_sync = False
        self._lab.sync(int(raft_id))

    def _do_restart(self, raft_id: str) -> None:
        self._lab.restart(int(raft_id))
        self._standing.pop(int(raft_id), None)
        self._lab.turn(int(raft_id))

    def _do_snapshot(self, raft_id: str, keep: str = "0") -> None:
        self._lab.snapshot(int(raft_id), int(keep))

    def _do_unreachable(self, raft_id: str, other: str) -> None:
        self._lab[int(raft_id)].node.report_unreachable(int(other))

    def _do_state(self) -> None:
        for raft_id, bench in sorted(self._lab.benches.items()):
            node = bench.node
            known = node.membership_in_force.members
            voters = ",".join(str(each.raft_id) for each in known if each.suffrage is Suffrage.VOTER)
            learners = ",".join(str(each.raft_id) for each in known if each.suffrage is Suffrage.LEARNER)
            self._say(
                f"{raft_id} {node.role.value} term={node.term} leader={node.leader_id} last={node.last_index} "
                f"commit={node.commit_index} applied={node.applied_index} voters={voters or '-'}"
                + (f" learners={learners}" if learners else "")
            )

    def _do_log(self, raft_id: str) -> None:
        log = self._lab[int(raft_id)].node._state.log
        self._say(f"snapshot {log.snapshot.index}/{log.snapshot.term}")
        for entry in log._entries:
            self._say(describe_entry(entry))
