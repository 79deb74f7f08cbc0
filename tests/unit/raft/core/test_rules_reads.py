"""The rules of reads (thesis, section 6.4) and of handing leadership over (section 3.10)."""

import pytest

from orch_raft.core.messages import MessageKind
from orch_raft.core.ready import Proposed, RefusalReason, Refused
from orch_raft.engine import Role
from unit.raft.core.lab import Bench, Lab, acknowledge, elect, lone


def _leader(voters: int = 3, **bounds: int) -> Bench:
    bench = lone(range(1, voters + 1), **bounds)
    elect(bench, range(1, voters // 2 + 2))
    acknowledge(bench, *range(2, voters + 1))
    return bench


def _round(bench: Bench) -> bytes:
    """The context of the heartbeats that a read sends."""
    (context,) = {message.context for message in bench.turn() if message.kind is MessageKind.HEARTBEAT}
    return context


def test_a_read_waits_for_a_majority() -> None:
    """A read index counts after a majority has said, later than the read began, that this one leads (6.4, step 3)."""
    bench = _leader(5)
    bench.node.read_index(b"r")
    context = _round(bench)
    assert bench.reads == {}
    bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2, context=context)
    assert bench.reads == {}
    bench.step(MessageKind.HEARTBEAT_ANSWER, 3, 2, context=context)
    assert bench.reads == {b"r": 2}


def test_an_answer_to_an_earlier_round_confirms_nothing() -> None:
    """Heartbeats answered before the read began say nothing about it."""
    bench = _leader()
    bench.node.read_index(b"first")
    earlier = _round(bench)
    bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2, context=earlier)
    bench.node.read_index(b"second")
    _round(bench)
    bench.step(MessageKind.HEARTBEAT_ANSWER, 3, 2, context=earlier)
    bench.step(MessageKind.HEARTBEAT_ANSWER, 3, 2)
    assert bench.reads == {b"first": 2}


def test_learners_confirm_no_read() -> None:
    """The majority that confirms a read is one of voters."""
    bench = lone([1, 2, 3], learners=[4, 5])
    elect(bench, [1, 2])
    acknowledge(bench, 2)
    bench.node.read_index(b"r")
    context = _round(bench)
    for learner in (4, 5):
        bench.step(MessageKind.HEARTBEAT_ANSWER, learner, 2, context=context)
    assert bench.reads == {}


def test_a_new_leader_reads_when_it_has_committed_in_its_term() -> None:
    """Before that it may not know of what is committed (6.4, step 1); the read waits, and is served then."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    bench.node.read_index(b"r")
    assert [message for message in bench.turn() if message.context] == []
    sent = acknowledge(bench, 2)
    (context,) = {message.context for message in sent if message.context}
    bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2, context=context)
    assert bench.reads == {b"r": 2}


def test_a_read_sees_what_was_committed_when_it_began() -> None:
    """The index of a read is at or after everything committed before it."""
    bench = _leader()
    bench.node.propose([b"a"] * 5)
    bench.turn()
    acknowledge(bench, 2)
    bench.node.read_index(b"r")
    context = _round(bench)
    bench.step(MessageKind.HEARTBEAT_ANSWER, 3, 2, context=context)
    assert bench.reads == {b"r": 7}


def test_reads_that_come_during_a_round_share_the_next() -> None:
    """A burst of reads costs two rounds of heartbeats and not one each."""
    bench = _leader()
    bench.node.read_index(b"0")
    context = _round(bench)
    for number in range(1, 100):
        bench.node.read_index(b"%d" % number)
    assert [message for message in bench.turn() if message.kind is MessageKind.HEARTBEAT] == []
    sent = bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2, context=context)
    (second,) = {message.context for message in sent if message.context}
    bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2, context=second)
    assert len(bench.reads) == 100


def test_a_lost_round_is_asked_again() -> None:
    """Each heartbeat carries the round under way, so a lost one delays reads and loses none."""
    bench = _leader()
    bench.node.read_index(b"r")
    context = _round(bench)
    bench.node.tick()
    assert _round(bench) == context
    bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2, context=context)
    assert bench.reads == {b"r": 2}


def test_a_member_alone_reads_at_once() -> None:
    """The only voter needs nobody's confirmation."""
    lab = Lab([1])
    lab.elect(1)
    lab[1].node.read_index(b"r")
    lab.turn(1)
    assert lab[1].reads == {b"r": 2}


@pytest.mark.parametrize("reader", [2, 3, 4])
def test_followers_and_learners_read_through_the_leader(reader: int) -> None:
    """A member that does not lead gets an index from the leader (thesis, end of section 6.4)."""
    lab = Lab([1, 2, 3], learners=[4])
    lab.elect(1)
    lab.propose(1, b"a")
    lab[reader].node.read_index(b"r")
    lab.deliver()
    assert lab[reader].reads == {b"r": 3}


def test_reads_end_with_leadership() -> None:
    """A leader that steps down refuses the reads that wait, its own and others', so that they are asked again."""
    bench = _leader()
    bench.node.read_index(b"own")
    bench.step(MessageKind.READ_INDEX, 2, 2, context=b"theirs")
    left = bench.step(MessageKind.HEARTBEAT, 3, 5)
    assert bench.refused_reads == [b"own"]
    assert [(message.to, message.context) for message in left if message.reject] == [(2, b"theirs")]


def test_reads_need_a_leader() -> None:
    """Without a leader a read is refused at once; asked of a member that does not lead, it is refused by answer."""
    bench = lone([1, 2, 3])
    assert bench.node.read_index(b"r") == Refused(RefusalReason.NO_LEADER)
    (answer,) = bench.step(MessageKind.READ_INDEX, 2, 1, context=b"theirs")
    assert (answer.kind, answer.reject, answer.context) == (MessageKind.READ_INDEX_ANSWER, True, b"theirs")


def test_waiting_reads_are_bounded() -> None:
    """Beyond the bound reads are refused, the own and those of others."""
    bench = _leader(max_waiting_reads=2)
    assert bench.node.read_index(b"1") is None
    assert bench.node.read_index(b"2") is None
    assert bench.node.read_index(b"3") == Refused(RefusalReason.TOO_MANY_READS)
    answers = bench.step(MessageKind.READ_INDEX, 2, 2, context=b"4")
    assert [answer.reject for answer in answers if answer.kind is MessageKind.READ_INDEX_ANSWER] == [True]


# ---- handing leadership over ---------------------------------------------------------------------


def test_leadership_goes_to_whom_it_is_handed() -> None:
    """A voter with the whole log is told to campaign, and leads without an election timeout (thesis, 3.10)."""
    lab = Lab([1, 2, 3])
    lab.elect(1)
    assert lab[1].node.transfer(3) is None
    lab.deliver()
    assert lab.leader() == 3


def test_the_target_gets_the_whole_log_first() -> None:
    """A target that lacks entries is told to campaign when it has them (thesis, 3.10, step 2)."""
    bench = _leader()
    bench.node.propose([b"a"])
    bench.node.transfer(2)
    assert MessageKind.TIMEOUT_NOW not in {message.kind for message in bench.turn()}
    sent = acknowledge(bench, 2)
    assert [message.to for message in sent if message.kind is MessageKind.TIMEOUT_NOW] == [2]


def test_proposals_wait_while_leadership_is_handed_over() -> None:
    """No proposal is taken during a transfer, and all are after it was given up (thesis, 3.10, steps 1 and 4)."""
    bench = _leader()
    bench.node.transfer(2)
    assert bench.node.propose([b"a"]) == Refused(RefusalReason.TRANSFERRING)
    for _ in range(10):
        bench.node.tick()
        bench.step(MessageKind.HEARTBEAT_ANSWER, 3, 2)
    assert bench.node.transfer_target == 0
    assert isinstance(bench.node.propose([b"a"]), Proposed)


@pytest.mark.parametrize("target", [1, 4, 9])
def test_leadership_is_handed_to_voters_only(target: int) -> None:
    """Not to itself, a learner, or nobody."""
    bench = lone([1, 2, 3], learners=[4])
    elect(bench, [1, 2])
    refused = bench.node.transfer(target)
    assert refused is not None
    assert refused.reason is RefusalReason.CANNOT_TAKE_OVER


def test_leadership_is_not_handed_to_the_silent() -> None:
    """A voter that has not answered for an election timeout cannot take over."""
    bench = _leader()
    for _ in range(11):
        bench.node.tick()
        bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2)
    refused = bench.node.transfer(3)
    assert refused == Refused(RefusalReason.CANNOT_TAKE_OVER, "it does not answer")


def test_only_the_leader_tells_to_campaign() -> None:
    """TIMEOUT_NOW from anyone but the present leader is nothing."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.HEARTBEAT, 2, 2)
    bench.step(MessageKind.TIMEOUT_NOW, 3, 2)
    assert bench.node.role is Role.FOLLOWER
    bench.step(MessageKind.TIMEOUT_NOW, 2, 2)
    assert bench.node.role is Role.CANDIDATE
