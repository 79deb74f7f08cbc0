"""The rules of snapshots: Raft paper, section 7 and figure 13."""

import pytest

from orch_raft.core.messages import MessageKind
from orch_raft.core.progress import Pace
from orch_raft.engine import Role
from orch_raft.log.records import HardState
from orch_raft.membership import SnapshotMeta
from unit.raft.core.lab import Bench, Disk, Lab, acknowledge, command, elect, founding, lone, members


def _meta(index: int, term: int) -> SnapshotMeta:
    return SnapshotMeta(index, term, members([1, 2, 3]))


def test_a_snapshot_ahead_replaces_the_log() -> None:
    """A snapshot that covers what is not known here takes the place of the log, and is answered after its sync."""
    bench = lone([1, 2, 3], entries=[command(2, 1)])
    bench.hold_sync = True
    assert bench.step(MessageKind.SNAPSHOT, 2, 3, snapshot=_meta(9, 3)) == []
    (answer,) = bench.sync()
    assert (answer.kind, answer.index) == (MessageKind.APPEND_ANSWER, 9)
    assert (bench.node.last_index, bench.node.commit_index, bench.node.applied_index) == (9, 9, 9)
    assert bench.disk.snapshot.index == 9
    assert bench.disk.entries == []


def test_a_snapshot_that_the_log_holds_keeps_what_follows() -> None:
    """When the log has the snapshot's last entry, what comes after may have been acknowledged and stays (rule 6)."""
    bench = lone([1, 2, 3])
    bench.step(
        MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[command(2, 2), command(3, 2), command(4, 2)], commit=1
    )
    (answer,) = bench.step(MessageKind.SNAPSHOT, 2, 2, snapshot=_meta(3, 2))
    assert answer.index == 3
    assert (bench.node.last_index, bench.node.commit_index) == (4, 3)
    assert [entry.index for entry in bench.disk.entries] == [2, 3, 4]


def test_a_snapshot_commits_only_what_matches_it() -> None:
    """Entries of another term under a snapshot's index go; they are not committed because the index is."""
    bench = lone([1, 2, 3], entries=[command(2, 2), command(3, 2), command(4, 2)])
    bench.step(MessageKind.SNAPSHOT, 2, 5, snapshot=_meta(3, 4))
    assert bench.applied == []
    assert (bench.node.last_index, bench.node.commit_index) == (3, 3)
    assert bench.disk.entries == []


def test_a_snapshot_of_the_past_changes_nothing() -> None:
    """A snapshot behind the commit index is answered with that index (late or doubled message)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[command(2, 2), command(3, 2)], commit=3)
    (answer,) = bench.step(MessageKind.SNAPSHOT, 2, 2, snapshot=_meta(2, 2))
    assert answer.index == 3
    assert bench.disk.snapshot == founding([1, 2, 3])


def test_a_snapshot_of_an_earlier_term_changes_nothing() -> None:
    """A leader of the past installs nothing here (figure 13, rule 1)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.HEARTBEAT, 2, 5)
    bench.step(MessageKind.SNAPSHOT, 3, 4, snapshot=_meta(9, 4))
    assert bench.node.last_index == 1


def test_a_snapshot_brings_the_members() -> None:
    """The members are those of the snapshot, not what was known before (section 7)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.SNAPSHOT, 2, 3, snapshot=SnapshotMeta(9, 3, members([1, 4, 5], removed=[2])))
    assert bench.node.membership == members([1, 4, 5], removed=[2])


def test_nothing_is_applied_before_the_snapshot_is_installed() -> None:
    """Entries after a snapshot wait for the state machine to be restored, and its member does not campaign."""
    bench = lone([1, 2, 3])
    bench.hold_sync = True
    bench.step(MessageKind.SNAPSHOT, 2, 3, snapshot=_meta(9, 3))
    bench.step(MessageKind.APPEND, 2, 3, index=9, log_term=3, entries=[command(10, 3)], commit=10)
    for _ in range(30):
        bench.node.tick()
    bench.turn()
    assert bench.applied == []
    assert bench.node.role is Role.FOLLOWER
    bench.sync()
    bench.turn()
    assert [entry.index for entry in bench.applied] == [10]


def test_a_follower_that_needs_what_is_gone_gets_a_snapshot() -> None:
    """Where entries are held no longer the leader sends its snapshot, and no entries meanwhile (section 7)."""
    lab = Lab([1, 2, 3])
    lab.elect(1)
    lab.isolate(3)
    lab.propose(1, b"a", b"b", b"c")
    lab.snapshot(1)
    lab.heal()
    lab.tick(2, 1)
    assert lab[3].disk.snapshot.index == 5
    assert [entry.data for entry in lab[3].applied] == []
    lab.propose(1, b"d")
    assert [entry.data for entry in lab[3].applied] == [b"d"]


def test_while_a_snapshot_is_under_way_nothing_else_is_sent() -> None:
    """One snapshot at a time, and no appends beside it; a failure leads to another after the next sign of life."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    acknowledge(bench, 2)
    bench.node.propose([b"a"] * 3)
    bench.turn()
    acknowledge(bench, 2)
    bench.node.snapshot_taken(SnapshotMeta(5, 2, members([1, 2, 3])))
    bench.node.compacted(6)
    sent = bench.step(MessageKind.APPEND_ANSWER, 3, 2, index=1, reject=True, hint_index=1, hint_term=1)
    assert [(message.kind, message.to) for message in sent] == [(MessageKind.SNAPSHOT, 3)]
    bench.node.propose([b"b"])
    assert {message.to for message in bench.turn()} == {2}
    bench.node.report_snapshot(3, ok=False)
    assert bench.turn() == []
    again = bench.step(MessageKind.HEARTBEAT_ANSWER, 3, 2)
    assert [message.kind for message in again] == [MessageKind.SNAPSHOT]
    bench.node.report_snapshot(3, ok=True)
    after = bench.step(MessageKind.HEARTBEAT_ANSWER, 3, 2)
    assert [(message.kind, message.index) for message in after] == [(MessageKind.APPEND, 5)]


def test_an_answer_ends_the_wait_for_a_snapshot() -> None:
    """A follower that says it has the snapshot is sent entries, whether or not the driver reported."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    acknowledge(bench, 2)
    bench.node.snapshot_taken(SnapshotMeta(2, 2, members([1, 2, 3])))
    bench.node.compacted(3)
    bench.step(MessageKind.APPEND_ANSWER, 3, 2, index=1, reject=True, hint_index=1, hint_term=1)
    acknowledge(bench, 3, index=2)
    assert {peer.pace for peer in bench.node.peers()} == {Pace.REPLICATE}


def test_no_snapshot_for_the_unreachable() -> None:
    """A member that has not been heard of is not sent a snapshot, which it could not receive."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    acknowledge(bench, 2)
    for _ in range(11):
        bench.node.tick()
        bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2)
    bench.node.snapshot_taken(SnapshotMeta(2, 2, members([1, 2, 3])))
    bench.node.compacted(3)
    bench.node.report_unreachable(3)
    bench.node.propose([b"a"])
    assert MessageKind.SNAPSHOT not in {message.kind for message in bench.turn()}


def test_a_start_goes_on_after_the_snapshot() -> None:
    """A member with a snapshot and entries around it applies those after it, and knows those before."""
    entries = [command(index, 2) for index in range(5, 12)]
    bench = Bench(Disk(HardState(2, 0, 10), _meta(8, 2), entries), 1)
    bench.turn()
    assert [entry.index for entry in bench.applied] == [9, 10]
    assert bench.node._state.log.term(6) == 2
    assert bench.node._state.log.term(4) is None


def test_a_start_refuses_a_log_with_a_hole_after_the_snapshot() -> None:
    """Entries that begin after the one that follows the snapshot mean that some are lost."""
    with pytest.raises(ValueError, match="entries 9 to 10"):
        Bench(Disk(HardState(2, 0, 10), _meta(8, 2), [command(11, 2)]), 1)


def test_a_start_refuses_a_log_that_contradicts_the_snapshot() -> None:
    """A log whose entry at the snapshot's index is of another term was not written by this member."""
    with pytest.raises(ValueError, match="entry 8 is of term 1, the snapshot of term 2"):
        Bench(Disk(HardState(2, 0, 10), _meta(8, 2), [command(index, 1) for index in range(7, 10)]), 1)


def test_entries_are_dropped_only_behind_a_snapshot() -> None:
    """Whatever the driver says is gone, the core forgets nothing that is unapplied or ahead of its snapshot."""
    lab = Lab([1])
    lab.elect(1)
    lab.propose(1, b"a", b"b")
    lab[1].node.compacted(100)
    assert lab[1].node._state.log.term(3) == 2
