"""The arithmetic of quorums, and its sentences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_manager.members.quorum import Manager, advice, quorum, removal_refusal, tolerates

_MANAGERS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9).map(
    lambda items: [Manager(number, votes=votes, reachable=reachable) for number, (votes, reachable) in enumerate(items)]
)


@pytest.mark.parametrize(("voters", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)])
def test_a_quorum_is_more_than_half(voters: int, needed: int) -> None:
    """More than half of the voters decide."""
    assert quorum(voters) == needed


@given(_MANAGERS)
def test_what_is_tolerated_leaves_a_quorum(managers: list[Manager]) -> None:
    """After the loss of as many reachable voters as are tolerated the rest is a quorum, and one more would end it."""
    voters = [each for each in managers if each.votes]
    reachable = sum(each.reachable for each in voters)
    lost = tolerates(managers)
    if not voters or reachable < quorum(len(voters)):
        assert lost == 0
    else:
        assert reachable - lost >= quorum(len(voters))
        assert reachable - lost - 1 < quorum(len(voters))


@given(_MANAGERS, st.integers(min_value=0, max_value=8))
def test_a_removal_that_is_allowed_leaves_a_quorum_that_can_be_reached(managers: list[Manager], leaving: int) -> None:
    """Whoever may be removed leaves voters of whom more than half can be reached; a learner always may."""
    refused = removal_refusal(managers, leaving)
    staying = [each for each in managers if each.votes and each.raft_id != leaving]
    votes = any(each.votes for each in managers if each.raft_id == leaving)
    if not votes:
        assert not refused
    else:
        enough = bool(staying) and sum(each.reachable for each in staying) >= quorum(len(staying))
        assert bool(refused) is not enough


def test_an_unreachable_manager_of_two_may_be_removed_by_rule() -> None:
    """The one that stays is a quorum of itself."""
    assert not removal_refusal([Manager(1), Manager(2, reachable=False)], 2)


def test_the_last_manager_stays() -> None:
    """The last manager cannot be removed, and the sentence says so."""
    assert removal_refusal([Manager(1)], 1) == "it is the last manager: the cluster would be without one"


def test_even_and_large_numbers_are_advised_against() -> None:
    """An odd number up to seven is nothing to talk about; an even one, or more, is."""
    assert [count for count in range(1, 10) if not advice(count)] == [1, 3, 5, 7]
    assert advice(4) == "4 managers tolerate the loss of 1, as 3 would; an odd number is better: add one, or demote one"
    assert "the loss of none, as 1 would" in advice(2)
