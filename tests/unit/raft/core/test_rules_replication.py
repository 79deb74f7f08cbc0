"""The rules of replication: Raft paper, sections 5.3, 5.4.2 and figure 2; thesis, section 10.2.1."""

import pytest

from orch_raft.core.messages import Message, MessageKind
from orch_raft.core.ready import Proposed, RefusalReason, Refused
from orch_raft.engine import Role
from orch_raft.errors import SafetyBroken
from orch_raft.log.records import Batch, EntryKind, HardState, decode_batch, encode_batch
from unit.raft.core.lab import Bench, Lab, acknowledge, command, elect, lone


def _log(bench: Bench) -> list[tuple[int, int]]:
    return [(entry.index, entry.term) for entry in bench.node._state.log._entries]


# ---- the follower --------------------------------------------------------------------------------


def test_an_append_is_answered_after_the_sync() -> None:
    """That entries are stored is said once they are on disk (figure 2: stable storage before responding)."""
    bench = lone([1, 2, 3])
    bench.hold_sync = True
    assert bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[command(2, 2)]) == []
    (answer,) = bench.sync()
    assert (answer.kind, answer.index, answer.reject) == (MessageKind.APPEND_ANSWER, 2, False)
    assert [entry.index for entry in bench.disk.entries] == [2]


def test_answers_between_two_syncs_are_one() -> None:
    """Answers are cumulative, so the last of a turn stands for all."""
    bench = lone([1, 2, 3])
    bench.hold_sync = True
    for index in range(2, 6):
        bench.node.step(
            Message(
                MessageKind.APPEND,
                2,
                1,
                2,
                index=index - 1,
                log_term=1 if index == 2 else 2,
                entries=[command(index, 2)],
            )
        )
    bench.turn()
    assert [answer.index for answer in bench.sync()] == [5]


def test_an_append_of_an_earlier_term_changes_nothing() -> None:
    """A leader of the past stores nothing here (AppendEntries 1)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.HEARTBEAT, 2, 5)
    bench.step(MessageKind.APPEND, 3, 4, index=1, log_term=1, entries=[command(2, 4)], commit=2)
    assert (bench.node.last_index, bench.node.commit_index, bench.node.leader_id) == (1, 1, 2)


@pytest.mark.parametrize(("index", "log_term"), [(5, 2), (3, 3), (2, 2)])
def test_what_does_not_match_before_is_refused(index: int, log_term: int) -> None:
    """Entries after one that is missing or of another term are not stored (AppendEntries 2)."""
    bench = lone([1, 2, 3], entries=[command(2, 1), command(3, 2)])
    (answer,) = bench.step(
        MessageKind.APPEND, 2, 4, index=index, log_term=log_term, entries=[command(index + 1, 4)], commit=9
    )
    assert answer.reject
    assert _log(bench) == [(2, 1), (3, 2)]
    assert bench.node.commit_index == 1


def test_what_conflicts_is_replaced_with_all_after_it() -> None:
    """An entry of another term at the same index goes, and so does what follows (AppendEntries 3)."""
    bench = lone([1, 2, 3], entries=[command(2, 1), command(3, 2), command(4, 2), command(5, 2)])
    bench.step(MessageKind.APPEND, 2, 3, index=2, log_term=1, entries=[command(3, 3)])
    assert _log(bench) == [(2, 1), (3, 3)]
    assert [(entry.index, entry.term) for entry in bench.disk.entries] == [(2, 1), (3, 3)]


def test_a_late_append_takes_nothing_back() -> None:
    """An append that brings less than is stored leaves the rest, which may have been acknowledged (AppendEntries 3)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[command(2, 2), command(3, 2), command(4, 2)])
    (answer,) = bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[command(2, 2)])
    assert answer.index == 2
    assert _log(bench) == [(2, 2), (3, 2), (4, 2)]


def test_an_append_of_nothing_takes_nothing_back() -> None:
    """An append without entries, after an early one, leaves the log as it is (AppendEntries 3)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[command(2, 2), command(3, 2)])
    bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1)
    assert _log(bench) == [(2, 2), (3, 2)]


def test_only_what_was_compared_is_committed() -> None:
    """The leader's commit index counts up to the last entry of its message, not to the end of the log (rule 5)."""
    bench = lone([1, 2, 3], entries=[command(2, 1), command(3, 1), command(4, 1)])
    bench.step(MessageKind.APPEND, 2, 2, index=2, log_term=1, commit=4)
    assert bench.node.commit_index == 2
    bench.step(MessageKind.APPEND, 2, 2, index=2, log_term=1, commit=4, entries=[command(3, 2)])
    assert bench.node.commit_index == 3


def test_the_commit_index_never_falls() -> None:
    """A late message with a lower commit index takes nothing back."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[command(2, 2), command(3, 2)], commit=3)
    bench.step(MessageKind.HEARTBEAT, 2, 2, commit=1)
    bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, commit=1)
    assert bench.node.commit_index == 3


def test_what_is_committed_is_never_replaced() -> None:
    """A message that would replace a committed entry means that safety is broken: the member stops instead."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[command(2, 2), command(3, 2)], commit=3)
    with pytest.raises(SafetyBroken, match="entry 3"):
        bench.node._state.log.merge([command(3, 9)])


def test_two_leaders_in_a_term_stop_a_member() -> None:
    """There is one leader in a term at most (figure 3); a member that sees two does not choose."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.HEARTBEAT, 2, 2)
    with pytest.raises(SafetyBroken, match="both lead in term 2"):
        bench.step(MessageKind.HEARTBEAT, 3, 2)


def test_entries_are_applied_in_order_once() -> None:
    """Every committed entry is handed out once, in order, whatever arrives twice (section 5.3)."""
    bench = lone([1, 2, 3])
    first, second = [command(2, 2), command(3, 2)], [command(4, 2)]
    for _ in range(2):
        bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=first, commit=2)
        bench.step(MessageKind.APPEND, 2, 2, index=3, log_term=2, entries=second, commit=4)
    assert [entry.index for entry in bench.applied] == [2, 3, 4]


def test_hints_skip_whole_terms() -> None:
    """A refusal names the last place where the logs may agree, a term at a time (end of section 5.3)."""
    entries = [command(index, 2) for index in range(2, 8)] + [command(index, 5) for index in range(8, 12)]
    bench = lone([1, 2, 3], entries=entries)
    (answer,) = bench.step(MessageKind.APPEND, 2, 6, index=11, log_term=4)
    assert (answer.reject, answer.hint_index, answer.hint_term) == (True, 7, 2)
    (answer,) = bench.step(MessageKind.APPEND, 2, 6, index=90, log_term=6)
    assert (answer.hint_index, answer.hint_term) == (11, 5)


# ---- the leader ----------------------------------------------------------------------------------


def test_only_a_leader_takes_proposals() -> None:
    """Anyone else refuses before anything is written."""
    bench = lone([1, 2, 3])
    assert bench.node.propose([b"a"]) == Refused(RefusalReason.NOT_LEADER)
    assert bench.node.last_index == 1


def test_entries_leave_before_the_leaders_own_sync() -> None:
    """Followers write while the leader does (thesis, section 10.2.1)."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    acknowledge(bench, 2, 3)
    bench.hold_sync = True
    bench.node.propose([b"a", b"b"])
    sent = bench.turn()
    assert {(message.to, len(message.entries)) for message in sent} == {(2, 2), (3, 2)}
    assert bench.disk.entries[-1].index == 2


def test_the_leaders_own_entry_counts_after_its_sync() -> None:
    """What the leader has not synced is not on a majority by its own copy (thesis, section 10.2.1)."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    acknowledge(bench, 2)
    bench.hold_sync = True
    bench.node.propose([b"a"])
    bench.turn()
    acknowledge(bench, 2)
    assert bench.node.commit_index == 2
    bench.sync()
    assert bench.node.commit_index == 3


def test_a_majority_of_others_commits_without_the_leaders_disk() -> None:
    """A majority is a majority, though the leader is not in it (thesis, section 10.2.1)."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    acknowledge(bench, 2)
    bench.hold_sync = True
    bench.node.propose([b"a"])
    bench.turn()
    acknowledge(bench, 2, 3)
    assert bench.node.commit_index == 3


def test_a_sync_of_what_was_replaced_does_not_count() -> None:
    """A sync that returns late speaks of entries that are no longer in the log."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    bench.hold_sync = True
    bench.node.propose([b"a", b"b"])
    bench.turn()
    bench.step(MessageKind.APPEND, 3, 3, index=2, log_term=2, entries=[command(3, 3)])
    (old, *_) = bench.unsynced
    bench.node.persisted(old)
    assert bench.node.persisted_index == 2


@pytest.mark.parametrize(("voters", "needed"), [(2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)])
def test_more_than_half_must_have_an_entry(voters: int, needed: int) -> None:
    """An entry is committed when more than half of all voters have it, the leader among them (section 5.3)."""
    bench = lone(range(1, voters + 1))
    elect(bench, range(1, voters // 2 + 2))
    for follower in range(2, needed + 1):
        acknowledge(bench, follower)
        assert bench.node.commit_index == 1
    acknowledge(bench, needed + 1)
    assert bench.node.commit_index == 2


def test_entries_of_an_earlier_term_are_not_committed_by_counting() -> None:
    """Figure 8: an old entry on a majority is committed with one of the present term, not before (5.4.2)."""
    bench = lone([1, 2, 3, 4, 5], entries=[command(2, 2)])
    elect(bench, [1, 2, 3])
    assert bench.node.last_index == 3
    acknowledge(bench, 2, 3, index=2)
    assert bench.node.commit_index == 1
    acknowledge(bench, 2, 3, index=3)
    assert bench.node.commit_index == 3


def test_the_whole_of_figure_8() -> None:
    """The story of figure 8: an entry on a majority is replaced after all, and nobody had applied it (5.4.2)."""
    lab = Lab([1, 2, 3, 4, 5], max_append_bytes=1)
    lab.elect(1)
    # (a) 1 leads and writes entry 3 on itself and 2.
    lab.cut |= {(1, each) for each in (3, 4, 5)}
    lab.propose(1, b"two")
    assert [lab[each].node.last_index for each in range(1, 6)] == [3, 3, 2, 2, 2]
    # (b) 1 crashes; 5 is elected by 3, 4 and itself, and writes another entry 3 on itself.
    lab.isolate(1)
    for each in (2, 3, 4, 5):
        lab.restart(each)
    lab.cut |= {(2, 5), (5, 2)}
    lab[5].node.campaign()
    lab.deliver_until(lambda: lab[5].node.role is Role.LEADER)
    lab.turn(5)
    lab.queue.clear()
    # (c) 5 crashes; 1 is back, is elected, and brings its old entry 3 to 3: a majority has it.
    lab.heal()
    lab.isolate(5)
    for each in (1, 2, 3, 4, 5):
        lab.restart(each)
    lab[1].node.campaign()
    lab.deliver()  # in which it learns of the term of 5
    lab[1].node.campaign()
    lab.deliver_until(lambda: lab[1].node.role is Role.LEADER and lab[3].node.last_index == 3)
    lab.deliver_until(lambda: {peer.match for peer in lab[1].node.peers() if peer.raft_id in {2, 3}} >= {3})
    lab.queue.clear()
    assert lab[1].node.commit_index == 2
    # (d) 1 crashes; 5 is elected by 2, 3 and 4, and replaces entry 3 everywhere.
    lab.heal()
    lab.isolate(1)
    for each in (2, 3, 4, 5):
        lab.restart(each)
    lab[5].node.campaign()
    lab.deliver()
    lab.elect(5)
    lab.heal()
    lab.tick(3, 5)
    histories = [[(entry.index, entry.term) for entry in lab[each].applied] for each in range(1, 6)]
    longest = max(histories, key=len)
    assert (3, 3) in longest
    assert all(history == longest[-len(history) :] or history == longest for history in histories)


def test_an_answer_of_an_earlier_term_does_not_count() -> None:
    """That a follower stored entries of an earlier leadership says nothing about those at the same index now."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    bench.node.propose([b"lost"] * 3)
    bench.turn()
    bench.step(MessageKind.APPEND, 3, 3, index=1, log_term=1, entries=[command(2, 3)])
    for _ in range(20):
        bench.node.tick()
    bench.turn()
    if bench.node.role is Role.FOLLOWER:
        bench.node.campaign()
        bench.turn()
    bench.step(MessageKind.PRE_VOTE_ANSWER, 2, 4)
    bench.step(MessageKind.VOTE_ANSWER, 2, 4)
    assert (bench.node.role, bench.node.term, bench.node.last_index) == (Role.LEADER, 4, 3)
    bench.step(MessageKind.APPEND_ANSWER, 2, 2, index=3)
    assert bench.node.commit_index == 1
    assert {peer.match for peer in bench.node.peers()} == {0}


def test_an_answer_for_what_was_never_sent_does_not_count() -> None:
    """A match beyond the leader's log is none."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    bench.step(MessageKind.APPEND_ANSWER, 2, 2, index=99)
    assert {peer.match for peer in bench.node.peers()} == {0}


def test_a_heartbeat_commits_no_further_than_what_matches() -> None:
    """A follower that has entries of another leader must not commit them by a heartbeat."""
    bench = lone([1, 2, 3], heartbeat_ticks=1)
    elect(bench, [1, 2])
    acknowledge(bench, 2)
    bench.node.propose([b"a"])
    bench.turn()
    acknowledge(bench, 2)
    assert bench.node.commit_index == 3
    bench.node.tick()
    commits = {message.to: message.commit for message in bench.turn() if message.kind is MessageKind.HEARTBEAT}
    assert commits == {2: 3, 3: 0}


def test_the_story_of_a_heartbeat_that_knows_too_much() -> None:
    """Entries of an old leader on a follower are not committed by the new leader's heartbeats."""
    lab = Lab([1, 2, 3])
    lab.elect(1)
    lab.isolate(1)
    lab[1].node.propose([b"old"] * 3)
    lab.turn(1)
    for each in (2, 3):
        lab.restart(each)
    lab.elect(2)
    lab.propose(2, b"new", b"newer")
    lab.queue.clear()
    lab.heal()
    lab[2].node.tick()
    lab.turn(2)
    lab.queue = [message for message in lab.queue if message.kind is MessageKind.HEARTBEAT and message.to == 1]
    lab[1].node.step(lab.queue.pop())
    lab[1].turn()
    assert lab[1].node.commit_index == 2
    assert b"old" not in [entry.data for entry in lab[1].applied]


def test_a_late_refusal_changes_nothing() -> None:
    """A refusal of what has matched since does not make the leader start over."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    acknowledge(bench, 2)
    assert bench.step(MessageKind.APPEND_ANSWER, 2, 2, index=1, reject=True, hint_index=0) == []
    (peer, _) = bench.node.peers()
    assert (peer.match, peer.pace.value) == (2, "replicate")


def test_the_hard_state_stands_before_the_entries() -> None:
    """A batch that is cut short never holds an entry of a term that the hard state does not know."""
    whole = encode_batch(Batch(HardState(3, 1, 1), (command(2, 3, b"data"),)))
    alone = encode_batch(Batch(HardState(3, 1, 1), ()))
    assert whole.startswith(alone)
    assert decode_batch(alone).hard_state == HardState(3, 1, 1)


def test_a_term_is_written_no_later_than_its_entries() -> None:
    """A Ready with entries of a new term carries the hard state of that term."""
    bench = lone([1, 2, 3])
    bench.hold_sync = True
    bench.step(MessageKind.APPEND, 2, 7, index=1, log_term=1, entries=[command(2, 7)])
    (ready,) = bench.unsynced
    assert ready.must_sync
    assert ready.hard_state is not None
    assert ready.hard_state.term == 7


def test_a_commit_index_alone_asks_for_no_sync() -> None:
    """The commit index on disk is a hint: a Ready that changes nothing else may wait with it."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[command(2, 2)])
    bench.hold_sync = True
    bench.step(MessageKind.HEARTBEAT, 2, 2, commit=2)
    assert [ready.must_sync for ready in bench.unsynced] == [False]


# ---- bounds --------------------------------------------------------------------------------------


def test_proposals_are_taken_whole_and_numbered() -> None:
    """A batch becomes entries one after the other, and the answer says where."""
    bench = lone([1])
    bench.node.campaign()
    bench.turn()
    assert bench.node.propose([b"a", b"b", b"c"]) == Proposed(2, 3, 5)
    bench.turn()
    assert [(entry.kind, entry.data) for entry in bench.applied[1:]] == [
        (EntryKind.COMMAND, b"a"),
        (EntryKind.COMMAND, b"b"),
        (EntryKind.COMMAND, b"c"),
    ]


def test_uncommitted_data_is_bounded() -> None:
    """Beyond the bound proposals are refused whole, until something commits; one alone is always taken."""
    bench = lone([1, 2, 3], max_uncommitted_bytes=10)
    elect(bench, [1, 2])
    acknowledge(bench, 2)
    assert isinstance(bench.node.propose([b"x" * 50]), Proposed)
    assert bench.node.propose([b"y"]) == Refused(RefusalReason.TOO_MUCH_UNCOMMITTED)
    bench.turn()
    acknowledge(bench, 2)
    assert isinstance(bench.node.propose([b"y"]), Proposed)


def test_a_silent_follower_gets_no_more_than_the_window() -> None:
    """Unanswered appends are bounded in number and bytes, each in size."""
    bench = lone([1, 2, 3], max_append_bytes=20, max_inflight_appends=4, max_inflight_bytes=60)
    elect(bench, [1, 2])
    acknowledge(bench, 2, 3)
    bench.node.propose([b"0123456789"] * 40)
    sent = [message for message in bench.turn() if message.to == 2]
    assert [len(message.entries) for message in sent] == [2, 2, 2]
    bench.step(MessageKind.APPEND_ANSWER, 2, 2, index=4)
    bench.node.propose([b""] * 40)
    assert sum(1 for message in bench.turn() if message.to == 2) <= 4


def test_what_is_handed_out_to_apply_is_bounded() -> None:
    """Committed entries come in pieces of bounded size, at least one at a time."""
    bench = lone([1], max_apply_bytes=25)
    bench.node.campaign()
    bench.turn()
    bench.node.propose([b"0123456789"] * 5 + [b"x" * 90])
    bench.turn()
    sizes = []
    bench.node.propose([b"0123456789"] * 5)
    while bench.node.has_ready():
        ready = bench.node.ready()
        bench.node.persisted(ready)
        sizes.append(sum(len(entry.data) for entry in ready.committed))
    assert max(sizes) <= 25


def test_a_follower_that_lost_messages_is_sent_them_again() -> None:
    """Told that messages to a follower were dropped, the leader goes back to what is known to match."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    acknowledge(bench, 2, 3)
    bench.node.propose([b"a"])
    bench.turn()
    bench.node.report_unreachable(2)
    bench.node.propose([b"b"])
    (again,) = [message for message in bench.turn() if message.to == 2]
    assert [entry.data for entry in again.entries] == [b"a", b"b"]
    bench.node.propose([b"c"])
    assert [message.to for message in bench.turn()] == [3]


def test_old_entries_leave_memory() -> None:
    """Entries that are applied and on disk are kept up to a bound and asked of the log view beyond it."""
    bench = lone([1], memory_bytes=100)
    bench.node.campaign()
    bench.turn()
    for _ in range(10):
        bench.node.propose([b"0123456789"] * 10)
        bench.turn()
    # Without a view of the log they stay until a snapshot covers them.
    assert len(_log(bench)) > 100
    lab = Lab([1], memory_bytes=100)
    lab.elect(1)
    for _ in range(5):
        lab.propose(1, *[b"0123456789"] * 10)
        lab.snapshot(1)
    assert len(_log(lab[1])) == 0


def test_followers_learn_of_a_commit_index_when_the_driver_says_so() -> None:
    """With lazy commits nothing is sent for a commit index alone until it is announced, and then once."""
    lab = Lab([1, 2, 3], lazy_commit=True)
    lab.elect(1)
    lab.propose(1, b"a")
    assert lab[2].node.commit_index == 2
    assert lab[1].node.commit_unannounced
    lab[1].node.announce_commit()
    assert not lab[1].node.commit_unannounced
    lab.deliver()
    assert lab[2].node.commit_index == 3
    lab[1].node.announce_commit()
    assert not lab[1].node.has_ready()
