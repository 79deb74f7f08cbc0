"""The rules of changes of the members: thesis, chapter 4, and what the log's form adds."""

import pytest

from orch_raft.core.messages import MessageKind
from orch_raft.core.ready import Proposed, RefusalReason, Refused
from orch_raft.engine import MembershipAction, MembershipChange, Role
from orch_raft.errors import ApplyFailed
from orch_raft.log.records import Entry, EntryKind
from orch_raft.membership import Membership, SnapshotMeta, decode_change, encode_change
from unit.raft.core.lab import Bench, Disk, Lab, acknowledge, elect, founding, lone, member, members


def _change(action: MembershipAction, raft_id: int) -> MembershipChange:
    return MembershipChange(action, member(raft_id))


def _entry(index: int, term: int, action: MembershipAction, raft_id: int) -> Entry:
    return Entry(index, term, EntryKind.MEMBERSHIP, encode_change(_change(action, raft_id)))


def _reason(answer: Proposed | Refused) -> RefusalReason | None:
    return answer.reason if isinstance(answer, Refused) else None


def _leader(voters: int = 3, **bounds: int) -> Bench:
    bench = lone(range(1, voters + 1), **bounds)
    elect(bench, range(1, voters // 2 + 2))
    acknowledge(bench, *range(2, voters + 1))
    return bench


@pytest.mark.parametrize("action", list(MembershipAction))
def test_a_change_survives_its_form_on_disk(action: MembershipAction) -> None:
    """What a change of the members says is the same after it was written and read."""
    change = _change(action, 77)
    assert decode_change(encode_change(change)) == change


def test_a_change_of_a_newer_version_stops_a_member() -> None:
    """A member that cannot know who belongs to the cluster goes no further."""
    bench = lone([1, 2, 3])
    unknown = Entry(2, 2, EntryKind.MEMBERSHIP, b"\x08\x63")
    with pytest.raises(ApplyFailed, match="newer version"):
        bench.step(MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[unknown])


def test_one_change_at_a_time() -> None:
    """A second change is refused until the first is committed and applied (thesis, section 4.1)."""
    bench = _leader()
    assert isinstance(bench.node.propose_membership(_change(MembershipAction.ADD_LEARNER, 4)), Proposed)
    second = _change(MembershipAction.ADD_LEARNER, 5)
    assert _reason(bench.node.propose_membership(second)) is RefusalReason.CHANGE_IN_FLIGHT
    bench.turn()
    bench.hold_apply = True
    acknowledge(bench, 2)
    assert _reason(bench.node.propose_membership(second)) is RefusalReason.CHANGE_IN_FLIGHT
    bench.apply()
    assert isinstance(bench.node.propose_membership(second), Proposed)


def test_two_changes_at_once_would_make_two_leaders() -> None:
    """The story behind the rule: majorities of sets that differ by two need not overlap, so the second must wait."""
    lab = Lab([1, 2, 3])
    lab.elect(1)
    lab.cut |= {(1, 2), (1, 3)}
    first = lab[1].node.propose_membership(_change(MembershipAction.REMOVE, 3))
    second = lab[1].node.propose_membership(_change(MembershipAction.REMOVE, 2))
    assert isinstance(first, Proposed)
    assert _reason(second) is RefusalReason.CHANGE_IN_FLIGHT
    lab.deliver()
    assert lab[1].node.commit_index == 2


def test_a_new_leader_changes_nothing_before_it_has_committed() -> None:
    """A change waits for an entry of the leader's own term (Ongaro's correction to thesis, section 4.1)."""
    bench = lone([1, 2, 3])
    elect(bench, [1, 2])
    change = _change(MembershipAction.ADD_LEARNER, 4)
    assert _reason(bench.node.propose_membership(change)) is RefusalReason.TERM_NOT_COMMITTED
    acknowledge(bench, 2)
    assert isinstance(bench.node.propose_membership(change), Proposed)


def test_a_change_left_by_another_leader_is_in_flight() -> None:
    """A change that an earlier leader wrote counts as under way until it is applied."""
    entries = [_entry(2, 2, MembershipAction.ADD_LEARNER, 4)]
    bench = lone([1, 2, 3], entries=entries)
    elect(bench, [1, 2])
    bench.hold_apply = True
    acknowledge(bench, 2)
    assert _reason(bench.node.propose_membership(_change(MembershipAction.REMOVE, 3))) is RefusalReason.CHANGE_IN_FLIGHT


def test_a_change_counts_from_the_log_on() -> None:
    """A member uses the newest set of members in its log, committed or not (thesis, section 4.1)."""
    bench = lone([1, 2, 3], entries=[_entry(2, 2, MembershipAction.REMOVE, 3)])
    assert bench.node.membership_in_force.find(3) is None
    assert bench.node.membership.find(3) is not None
    bench.node.campaign()
    assert {message.to for message in bench.turn()} == {2}


def test_a_campaign_counts_the_changes_that_are_not_applied() -> None:
    """With a promotion in the log, committed or not, a majority is one of four (thesis, section 4.1)."""
    bench = lone([1, 2, 3], learners=[4], entries=[_entry(2, 2, MembershipAction.PROMOTE, 4)])
    bench.node.campaign()
    bench.turn()
    bench.step(MessageKind.PRE_VOTE_ANSWER, 2, 3)
    assert bench.node.role is Role.PRE_CANDIDATE
    bench.step(MessageKind.PRE_VOTE_ANSWER, 4, 3)
    assert bench.node.role is Role.CANDIDATE


def test_a_change_that_is_replaced_counts_no_more() -> None:
    """When another leader's entry takes the place of a change, the members before it count (thesis, section 4.1)."""
    bench = lone([1, 2, 3], entries=[_entry(2, 2, MembershipAction.REMOVE, 3)])
    bench.step(MessageKind.APPEND, 2, 3, index=1, log_term=1, entries=[Entry(2, 3, EntryKind.NEW_TERM, b"")])
    assert bench.node.membership_in_force == members([1, 2, 3])


def test_changes_come_back_with_the_log() -> None:
    """A restart finds the members of the snapshot and the changes after it, applied or not."""
    lab = Lab([1, 2, 3])
    lab.elect(1)
    lab[1].node.propose_membership(_change(MembershipAction.ADD_LEARNER, 4))
    lab.deliver()
    lab.restart(2)
    assert {each.raft_id for each in lab[2].node.membership_in_force.members} == {1, 2, 3, 4}


def test_a_learner_does_not_count_for_a_majority() -> None:
    """What a learner stores commits nothing (thesis, section 4.2.1)."""
    bench = lone([1, 2, 3], learners=[4, 5])
    elect(bench, [1, 2])
    acknowledge(bench, 4, 5)
    assert bench.node.commit_index == 1
    acknowledge(bench, 2)
    assert bench.node.commit_index == 2


def test_a_learner_becomes_a_voter_when_it_has_caught_up() -> None:
    """A learner that is far behind, or does not answer, is not promoted (thesis, section 4.2.1)."""
    bench = lone([1, 2, 3], learners=[4], promotion_lag_entries=2)
    elect(bench, [1, 2])
    acknowledge(bench, 2)
    promote = _change(MembershipAction.PROMOTE, 4)
    assert _reason(bench.node.propose_membership(promote)) is RefusalReason.LEARNER_BEHIND
    bench.node.propose([b"a"] * 3)
    bench.turn()
    acknowledge(bench, 2)
    acknowledge(bench, 4, index=2)
    assert not bench.node.is_caught_up(4)
    acknowledge(bench, 4, index=3)
    assert bench.node.is_caught_up(4)
    assert isinstance(bench.node.propose_membership(promote), Proposed)


@pytest.mark.parametrize(
    ("action", "raft_id", "says"),
    [
        (MembershipAction.ADD_LEARNER, 2, "it is a member already"),
        (MembershipAction.ADD_LEARNER, 8, "never used again"),
        (MembershipAction.ADD_LEARNER, 0, "positive"),
        (MembershipAction.PROMOTE, 2, "it votes already"),
        (MembershipAction.PROMOTE, 9, "it is no member"),
        (MembershipAction.DEMOTE, 4, "it does not vote"),
        (MembershipAction.REMOVE, 9, "it is no member"),
        (MembershipAction.UPDATE_ADDRESS, 9, "it is no member"),
    ],
)
def test_what_does_not_fit_is_refused(action: MembershipAction, raft_id: int, says: str) -> None:
    """A change that cannot be made is refused with the reason; applied all the same, it changes nothing."""
    before = members([1, 2, 3], [4], [8])
    change = _change(action, raft_id)
    assert says in (before.refusal(change) or "")
    assert before.after(change) is before


@pytest.mark.parametrize("action", [MembershipAction.REMOVE, MembershipAction.DEMOTE])
def test_the_last_voter_stays(action: MembershipAction) -> None:
    """A cluster always has a voter."""
    assert members([1], [2]).refusal(_change(action, 1)) == "it is the only one that votes"


def test_what_changes_do() -> None:
    """Add, promote, demote, remove and the change of an address do what they are called."""
    group = members([1, 2])
    group = group.after(_change(MembershipAction.ADD_LEARNER, 3))
    assert [each.raft_id for each in group.voters] == [1, 2]
    group = group.after(_change(MembershipAction.PROMOTE, 3))
    assert [each.raft_id for each in group.voters] == [1, 2, 3]
    group = group.after(_change(MembershipAction.DEMOTE, 1))
    assert [each.raft_id for each in group.voters] == [2, 3]
    group = group.after(_change(MembershipAction.REMOVE, 2))
    assert (sorted(each.raft_id for each in group.members), group.removed_ids) == ([1, 3], {2})
    assert Membership.from_bytes(group.to_bytes()).removed_ids == {2}


def test_a_removal_that_would_leave_no_majority_in_reach_is_refused() -> None:
    """Of three with one silent, removing one that answers would stop the cluster, and is refused."""
    bench = _leader()
    for _ in range(11):
        bench.node.tick()
        bench.step(MessageKind.HEARTBEAT_ANSWER, 2, 2)
    for action in (MembershipAction.REMOVE, MembershipAction.DEMOTE):
        assert _reason(bench.node.propose_membership(_change(action, 2))) is RefusalReason.QUORUM_AT_RISK
    assert isinstance(bench.node.propose_membership(_change(MembershipAction.REMOVE, 3)), Proposed)


def test_a_removed_leader_leads_until_that_is_committed() -> None:
    """Its own copy of the entry that removes it does not count; once committed it steps down (thesis, 4.2.2)."""
    bench = _leader()
    bench.node.propose_membership(_change(MembershipAction.REMOVE, 1))
    bench.turn()
    acknowledge(bench, 2)
    assert (bench.node.role, bench.node.commit_index) == (Role.LEADER, 2)
    left = acknowledge(bench, 3)
    assert (bench.node.role, bench.node.removed) == (Role.FOLLOWER, True)
    assert MessageKind.TIMEOUT_NOW in {message.kind for message in left}


def test_a_removed_leader_is_followed_at_once() -> None:
    """The most complete voter campaigns when the leader has removed itself, without waiting for a timeout."""
    lab = Lab([1, 2, 3], lazy_commit=True)
    lab.elect(1)
    lab[1].node.propose_membership(_change(MembershipAction.REMOVE, 1))
    lab.deliver()
    assert lab.leader() in {2, 3}


def test_a_server_being_removed_may_still_be_needed() -> None:
    """A voter whose demotion is not committed campaigns: it may be the only one with the newest entries (4.2.2)."""
    bench = lone([1, 2, 3], entries=[_entry(2, 2, MembershipAction.DEMOTE, 1)])
    bench.node.campaign()
    assert {message.to for message in bench.turn()} == {2, 3}


def test_the_removed_are_told() -> None:
    """Whatever a removed member says is answered with its removal, and with nothing else."""
    bench = Bench(Disk(snapshot=SnapshotMeta(1, 1, members([1, 2], removed=[3]))), 1)
    for kind in (MessageKind.VOTE, MessageKind.APPEND, MessageKind.HEARTBEAT):
        (answer,) = bench.step(kind, 3, 9, index=9, log_term=9)
        assert (answer.kind, answer.to) == (MessageKind.REMOVED, 3)
    assert bench.node.term == 1


def test_who_was_told_of_its_removal_campaigns_no_more() -> None:
    """A removed member says so to its driver, and asks nobody for votes."""
    bench = lone([1, 2, 3])
    bench.step(MessageKind.REMOVED, 2, 1)
    for _ in range(50):
        bench.node.tick()
    assert bench.turn() == []
    assert bench.node.removed


def test_a_member_that_learns_of_its_removal_from_the_log_knows() -> None:
    """Applying the own removal is as good as being told."""
    bench = lone([1, 2, 3])
    bench.step(
        MessageKind.APPEND, 2, 2, index=1, log_term=1, entries=[_entry(2, 2, MembershipAction.REMOVE, 1)], commit=2
    )
    assert bench.node.removed


def test_a_leader_stops_sending_to_the_removed() -> None:
    """After a removal is committed nothing goes to that member but the word of it."""
    bench = _leader()
    bench.node.propose_membership(_change(MembershipAction.REMOVE, 3))
    bench.turn()
    told = [message.kind for message in acknowledge(bench, 2) if message.to == 3]
    assert MessageKind.REMOVED in told
    bench.node.propose([b"a"])
    bench.node.tick()
    assert {message.to for message in bench.turn()} == {2}


def test_the_majority_shrinks_with_the_members() -> None:
    """Entries that waited for a removed voter are committed by those who are left."""
    bench = _leader(2)
    bench.node.propose([b"a"])
    bench.turn()
    assert bench.node.commit_index == 2
    for _ in range(5):
        bench.node.tick()
    bench.node.propose_membership(_change(MembershipAction.REMOVE, 2))
    bench.turn()
    assert bench.node.commit_index == 4


def test_a_joiner_gets_the_founding_snapshot_first() -> None:
    """Who joins receives the snapshot at index 1 before any entry, and so knows that it is not alone."""
    lab = Lab([1])
    lab.elect(1)
    lab.start(2)
    kinds: list[MessageKind] = []
    lab.on_message = lambda message: kinds.append(message.kind) if message.to == 2 else None
    lab[1].node.propose_membership(_change(MembershipAction.ADD_LEARNER, 2))
    lab.deliver()
    assert MessageKind.SNAPSHOT in kinds
    assert lab[2].node.membership.find(1) is not None
    assert lab[2].disk.snapshot == founding([1])


def test_addresses_change_without_votes() -> None:
    """A change of address keeps who votes."""
    bench = _leader()
    change = MembershipChange(MembershipAction.UPDATE_ADDRESS, member(2).__class__(2, "node-2", "10.9.9.9:1"))
    assert isinstance(bench.node.propose_membership(change), Proposed)
    bench.turn()
    acknowledge(bench, 2)
    found = bench.node.membership.find(2)
    assert found is not None
    assert found.address == "10.9.9.9:1"
    assert len(bench.node.membership.voters) == 3
