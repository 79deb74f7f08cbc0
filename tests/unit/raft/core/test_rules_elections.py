"""The rules of elections: Raft paper, sections 5.1, 5.2 and 5.4.1; thesis, sections 3.10, 4.2.3, 6.2 and 9.6."""

import pytest

from orch_raft.core.messages import MessageKind
from orch_raft.core.ready import Recovered
from orch_raft.engine import Role
from orch_raft.log.records import HardState
from unit.raft.core.lab import Bench, Disk, Lab, acknowledge, command, elect, founding, lone, members


def test_a_member_begins_as_a_follower() -> None:
    """A member that starts follows, whatever it was before (section 5.2)."""
    lab = Lab([1, 2, 3])
    lab.elect(1)
    lab.restart(1)
    assert lab[1].node.role is Role.FOLLOWER
    assert lab[1].node.leader_id == 0


def test_a_voter_campaigns_when_it_hears_of_no_leader() -> None:
    """Between one and two election timeouts without a word a voter asks for pre-votes, not before (section 5.2)."""
    bench = lone([1, 2, 3])
    for _ in range(9):
        bench.node.tick()
    assert bench.turn() == []
    for _ in range(11):
        bench.node.tick()
    asked = bench.turn()
    assert {message.kind for message in asked} == {MessageKind.PRE_VOTE}
    assert {message.to for message in asked} == {2, 3}


def test_timeouts_differ_between_members_and_times() -> None:
    """Each wait for a leader has a length of its own, so that members seldom campaign at once (section 5.2)."""
    lengths = set()
    for seed in range(20):
        bench = Bench(Disk(snapshot=founding([1, 2, 3])), 1, seed=seed)
        ticks = 0
        while bench.node.role is Role.FOLLOWER:
            bench.node.tick()
            ticks += 1
        lengths.add(ticks)
    assert len(lengths) > 3
    assert lengths <= set(range(10, 20))


@pytest.mark.parametrize("kind", [MessageKind.HEARTBEAT, MessageKind.APPEND])
def test_a_word_from_the_leader_puts_the_campaign_off(kind: MessageKind) -> None:
    """A follower that hears from its leader waits for a whole timeout again (section 5.2)."""
    bench = lone([1, 2, 3])
    for _ in range(10):
        for _ in range(9):
            bench.node.tick()
        bench.step(kind, 2, 2, **({"index": 1, "log_term": 1} if kind is MessageKind.APPEND else {}))
    assert bench.node.role is Role.FOLLOWER


@pytest.mark.parametrize(("voters", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_a_majority_elects_and_less_does_not(voters: int, needed: int) -> None:
    """More than half of the voters make a leader, half of an even number do not (section 5.2)."""
    bench = lone(range(1, voters + 1))
    bench.node.campaign()
    bench.turn()
    for voter in range(2, needed + 1):
        assert bench.node.role is Role.PRE_CANDIDATE
        bench.step(MessageKind.PRE_VOTE_ANSWER, voter, 2)
    for voter in range(2, needed + 1):
        assert bench.node.role is Role.CANDIDATE
        bench.step(MessageKind.VOTE_ANSWER, voter, 2)
    assert bench.node.role is Role.LEADER


def test_a_vote_counts_once() -> None:
    """The same answer twice is one vote."""
    bench = lone([1, 2, 3, 4, 5])
    bench.node.campaign()
    bench.turn()
    for voter in (2, 3):
        bench.step(MessageKind.PRE_VOTE_ANSWER, voter, 2)
    for _ in range(3):
        bench.step(MessageKind.VOTE_ANSWER, 2, 2)
    assert bench.node.role is Role.CANDIDATE


@pytest.mark.parametrize("stranger", [4, 9])
def test_only_voters_votes_count(stranger: int) -> None:
    """The vote of a learner or of nobody known elects no one (thesis, section 4.2.1)."""
    bench = lone([1, 2, 3], learners=[4])
    bench.node.campaign()
    bench.turn()
    bench.step(MessageKind.PRE_VOTE_ANSWER, stranger, 2)
    assert bench.node.role is Role.PRE_CANDIDATE
    bench.step(MessageKind.PRE_VOTE_ANSWER, 2, 2)
    bench.step(MessageKind.VOTE_ANSWER, stranger, 2)
    assert bench.node.role is Role.CANDIDATE
    bench.step(MessageKind.VOTE_ANSWER, 2, 2)
    assert bench.node.role is Role.LEADER


def test_the_own_vote_counts_after_its_sync() -> None:
    """A lone voter leads only when its vote for itself is on disk: after a crash it could lead the same term twice."""
    bench = lone([1])
    bench.hold_sync = True
    bench.node.campaign()
    bench.turn()
    assert bench.node.role is Role.CANDIDATE
    bench.sync()
    assert bench.node.role is Role.LEADER


def test_votes_are_asked_for_after_the_sync() -> None:
    """A request for votes claims a log and a term, so it leaves when both are on disk."""
    bench = lone([1, 2, 3])
    bench.hold_sync = True
    bench.node.campaign()
    bench.turn()
    assert bench.step(MessageKind.PRE_VOTE_ANSWER, 2, 2) == []
    assert {message.kind for message in bench.sync()} == {MessageKind.VOTE}


def test_a_vote_leaves_after_its_sync() -> None:
    """The answer that grants a vote waits for the disk (section 5.1, figure 2)."""
    bench = lone([1, 2, 3])
    bench.hold_sync = True
    assert bench.step(MessageKind.VOTE, 2, 2, index=1, log_term=1) == []
    (answer,) = bench.sync()
    assert (answer.kind, answer.reject) == (MessageKind.VOTE_ANSWER, False)
    assert bench.disk.hard_state == HardState(2, 2, 1)


def test_one_vote_in_a_term() -> None:
    """The first candidate of a term that asks gets the vote, and gets it again; another does not (section 5.2)."""
    bench = lone([1, 2, 3])
    answers = [bench.step(MessageKind.VOTE, sender, 2, index=1, log_term=1)[0].reject for sender in (2, 3, 2)]
    assert answers == [False, True, False]


def test_the_vote_outlives_a_crash() -> None:
    """After a restart another candidate of the same term is refused (figure 2, persistent state)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.VOTE, 2, 2, index=1, log_term=1)
    again = Bench(bench.disk, 1)
    (answer,) = again.step(MessageKind.VOTE, 3, 2, index=1, log_term=1)
    assert answer.reject


def test_the_term_outlives_a_crash() -> None:
    """After a restart a message of an earlier term is of an earlier term (figure 2, persistent state)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.HEARTBEAT, 2, 7)
    again = Bench(bench.disk, 1)
    assert again.node.term == 7
    again.step(MessageKind.APPEND, 3, 6, index=1, log_term=1, entries=[command(2, 6)])
    assert again.node.last_index == 1


def test_stepping_down_within_the_term_keeps_the_vote() -> None:
    """A candidate that finds a leader of its term, or loses, does not vote again in it (section 5.2)."""
    bench = lone([1, 2, 3])
    bench.node.campaign()
    bench.turn()
    bench.step(MessageKind.PRE_VOTE_ANSWER, 2, 2)
    bench.step(MessageKind.HEARTBEAT, 2, 2)
    assert bench.node.role is Role.FOLLOWER
    again = Bench(bench.disk, 1)
    for each in (bench, again):
        (answer,) = each.step(MessageKind.VOTE, 3, 2, index=9, log_term=1, transfer=True)
        assert answer.reject


def test_a_follower_that_loses_its_leader_keeps_its_vote() -> None:
    """Asking for pre-votes in vain changes neither the term nor the vote (thesis, section 9.6)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.VOTE, 2, 2, index=1, log_term=1)
    bench.node.campaign()
    bench.turn()
    for voter in (2, 3):
        bench.step(MessageKind.PRE_VOTE_ANSWER, voter, 2, reject=True)
    assert bench.node.role is Role.FOLLOWER
    (answer,) = bench.step(MessageKind.VOTE, 3, 2, index=1, log_term=1)
    assert answer.reject


@pytest.mark.parametrize(
    ("last_index", "last_term", "granted"),
    [
        (3, 2, True),
        (4, 2, True),
        (2, 3, True),
        (2, 2, False),
        (9, 1, False),
    ],
)
@pytest.mark.parametrize("kind", [MessageKind.PRE_VOTE, MessageKind.VOTE])
def test_a_candidate_needs_a_log_as_complete(
    kind: MessageKind, last_index: int, last_term: int, *, granted: bool
) -> None:
    """Later last term, or the same and as many entries, gets the vote; a longer log of an older term does not."""
    bench = lone([1, 2, 3], entries=[command(2, 2), command(3, 2)])
    (answer,) = bench.step(kind, 2, 4, index=last_index, log_term=last_term)
    assert answer.reject is not granted


def test_a_pre_vote_disturbs_nothing() -> None:
    """Being asked for a pre-vote changes neither term nor vote, and nothing is written (thesis, section 9.6)."""
    bench = lone([1, 2, 3])
    before = bench.disk.hard_state
    (answer,) = bench.step(MessageKind.PRE_VOTE, 2, 9, index=1, log_term=1)
    assert (answer.term, answer.reject) == (9, False)
    assert bench.node.term == 1
    assert bench.disk.hard_state == before


def test_a_pre_vote_is_no_vote() -> None:
    """A member grants pre-votes to several (thesis, section 9.6)."""
    bench = lone([1, 2, 3])
    assert not bench.step(MessageKind.PRE_VOTE, 2, 2, index=1, log_term=1)[0].reject
    assert not bench.step(MessageKind.PRE_VOTE, 3, 2, index=1, log_term=1)[0].reject


def test_an_answer_to_an_earlier_campaign_does_not_count() -> None:
    """Pre-votes and votes count in the term that they were asked for."""
    bench = lone([1, 2, 3])
    bench.node.campaign()
    bench.turn()
    bench.step(MessageKind.PRE_VOTE_ANSWER, 2, 5)
    assert bench.node.role is Role.PRE_CANDIDATE
    bench.step(MessageKind.PRE_VOTE_ANSWER, 2, 2)
    bench.step(MessageKind.VOTE_ANSWER, 2, 1)
    assert bench.node.role is Role.CANDIDATE


@pytest.mark.parametrize("kind", [MessageKind.VOTE, MessageKind.PRE_VOTE])
def test_while_a_leader_lives_nobody_else_is_elected(kind: MessageKind) -> None:
    """Within the shortest timeout of a word from the leader requests are ignored, at no change of term (4.2.3)."""
    follower = lone([1, 2, 3])
    follower.step(MessageKind.HEARTBEAT, 2, 2)
    assert follower.step(kind, 3, 9, index=9, log_term=9) == []
    assert follower.node.term == 2
    leader = lone([1, 2, 3])
    elect(leader, [1, 2])
    assert leader.step(kind, 3, 9, index=9, log_term=9) == []
    assert leader.node.role is Role.LEADER


def test_the_lease_ends_with_the_shortest_timeout() -> None:
    """A follower that has not heard from its leader for an election timeout votes (thesis, section 4.2.3)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.HEARTBEAT, 2, 2)
    for _ in range(10):
        bench.node.tick()
    (answer,) = bench.step(MessageKind.VOTE, 3, 3, index=1, log_term=1)
    assert not answer.reject


def test_a_campaign_the_leader_asked_for_breaks_the_lease() -> None:
    """A vote for a transfer is granted though the leader lives (thesis, section 4.2.3)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.HEARTBEAT, 2, 2)
    (answer,) = bench.step(MessageKind.VOTE, 3, 3, index=1, log_term=1, transfer=True)
    assert not answer.reject


def test_a_leader_without_a_quorum_steps_down() -> None:
    """A leader that heard from no majority for an election timeout leads no longer (thesis, section 6.2)."""
    bench = lone([1, 2, 3, 4, 5])
    elect(bench, [1, 2, 3])
    for _ in range(30):
        bench.node.tick()
        bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2)
        bench.step(MessageKind.HEARTBEAT_ANSWER, 3, 2)
    assert bench.node.role is Role.LEADER
    for _ in range(11):
        bench.node.tick()
        bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2)
    assert bench.node.role is Role.FOLLOWER
    assert bench.node.term == 2


def test_learners_are_no_quorum_for_a_leader() -> None:
    """Hearing from learners does not keep a leader in office."""
    bench = lone([1, 2, 3], learners=[4, 5])
    elect(bench, [1, 2])
    for _ in range(11):
        bench.node.tick()
        for learner in (4, 5):
            bench.step(MessageKind.HEARTBEAT_ANSWER, learner, 2)
    assert bench.node.role is Role.FOLLOWER


@pytest.mark.parametrize("kind", list(MessageKind))
def test_a_later_term_ends_every_role_but_for_pre_votes(kind: MessageKind) -> None:
    """A leader that hears of a later term follows in it; a pre-vote and its grant name one that nobody is in."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    transfer = kind is MessageKind.VOTE
    bench.step(kind, 2, 5, index=1, log_term=1, transfer=transfer)
    if kind is MessageKind.REMOVED:
        assert bench.node.removed
    elif kind in {MessageKind.PRE_VOTE, MessageKind.PRE_VOTE_ANSWER}:
        assert (bench.node.role, bench.node.term) == (Role.LEADER, 2)
    else:
        assert (bench.node.role, bench.node.term) == (Role.FOLLOWER, 5)


@pytest.mark.parametrize(
    "kind", [MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT, MessageKind.PRE_VOTE]
)
def test_an_earlier_term_is_told_of_the_present_one(kind: MessageKind) -> None:
    """Who leads or asks in an earlier term learns the present one, so that it ends (section 5.1)."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.HEARTBEAT, 2, 5)
    (answer,) = bench.step(kind, 3, 4, index=1, log_term=1)
    assert (answer.to, answer.term) == (3, 5)


def test_a_new_leader_begins_its_term_with_an_entry() -> None:
    """The first thing a leader does is an entry of its term, sent at once (section 8)."""
    bench = lone([1, 2, 3])
    sent = elect(bench, [1, 2])
    assert {(message.to, message.index, len(message.entries)) for message in sent} == {(2, 1, 1), (3, 1, 1)}
    assert bench.node.last_index == 2


def test_a_learner_never_campaigns() -> None:
    """However long a learner hears nothing, it asks for no vote (thesis, section 4.2.1)."""
    bench = lone([2, 3], learners=[1])
    for _ in range(100):
        bench.node.tick()
    assert bench.turn() == []


def test_a_member_of_nothing_never_campaigns() -> None:
    """A joiner without a snapshot belongs to no cluster, and cannot take itself for the only member."""
    lab = Lab([1, 2, 3])
    lab.start(4)
    lab.tick(100, 4)
    assert (lab[4].node.role, lab[4].node.term) == (Role.FOLLOWER, 0)


def test_a_joiner_that_has_the_log_but_no_snapshot_takes_no_part() -> None:
    """Entries from index 2 on never come without the founding snapshot at index 1."""
    lab = Lab([1, 2, 3])
    lab.start(4)
    answer = lab[4].step(MessageKind.APPEND, 1, 2, index=1, log_term=1, entries=[command(2, 2)])
    assert answer[0].reject
    assert lab[4].node.last_index == 0


def test_a_voter_grants_whom_it_does_not_know() -> None:
    """Who is a member is the candidate's knowledge, which may be newer than the voter's (thesis, section 4.1)."""
    bench = lone([1, 2, 3])
    (answer,) = bench.step(MessageKind.VOTE, 9, 2, index=1, log_term=1)
    assert not answer.reject


def test_a_candidate_follows_the_leader_of_its_term() -> None:
    """A candidate that hears from a leader of its own term follows it (section 5.2)."""
    bench = lone([1, 2, 3])
    bench.node.campaign()
    bench.turn()
    bench.step(MessageKind.PRE_VOTE_ANSWER, 2, 2)
    bench.step(MessageKind.APPEND, 3, 2, index=1, log_term=1, entries=[command(2, 2)])
    assert (bench.node.role, bench.node.leader_id, bench.node.last_index) == (Role.FOLLOWER, 3, 2)


def test_a_log_of_a_later_term_than_the_hard_state_is_refused() -> None:
    """The hard state is written before the entries, so a log ahead of it was not written by these rules."""
    with pytest.raises(ValueError, match="after the last term 2"):
        Bench(Disk(HardState(2, 0, 1), founding([1]), [command(2, 3)]), 1)


def test_recovered_state_speaks_for_itself() -> None:
    """The commit index on disk is a hint that never passes the end of the log."""
    bench = lone([1, 2, 3], entries=[command(2, 2)], hard_state=HardState(2, 0, 9))
    assert isinstance(bench.disk.recovered(), Recovered)
    assert bench.node.commit_index == 2
    assert bench.node.membership == members([1, 2, 3])


def test_leading_needs_no_disk_of_others() -> None:
    """Five members with two silent ones elect and commit (section 5.2)."""
    bench = lone([1, 2, 3, 4, 5])
    elect(bench, [1, 2, 3])
    acknowledge(bench, 2)
    assert bench.node.commit_index == 1
    acknowledge(bench, 3)
    assert bench.node.commit_index == 2
