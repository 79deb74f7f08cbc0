"""The slots of a virtual address."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orch_network.slots import assign

BACKENDS = st.lists(st.integers(0, 200).map(str), unique=True, max_size=150)


@given(BACKENDS, BACKENDS)
def test_slots_are_balanced_whatever_came_before(before: list[str], after: list[str]) -> None:
    """Every backend owns its even share of the 120 slots or one more; no slot belongs to anybody else."""
    owners = assign(assign((), before), after)
    counts = Counter(owner for owner in owners if owner is not None)
    assert len(owners) == 120
    if not after:
        assert not counts
        return
    serving = after[:120]
    assert counts.keys() == set(serving)
    assert set(counts.values()) <= {120 // len(serving), 120 // len(serving) + 1}


@given(BACKENDS, BACKENDS)
def test_slots_move_no_more_than_balance_demands(before: list[str], after: list[str]) -> None:
    """A backend that stays keeps as many of its slots as its new share allows."""
    old = assign((), before)
    new = assign(old, after)
    shares = Counter(new)
    for backend in set(before[:120]) & set(after[:120]):
        kept = sum(1 for one, other in zip(old, new, strict=True) if one == other == backend)
        assert kept == min(Counter(old)[backend], shares[backend])


@given(BACKENDS)
def test_the_same_backends_change_nothing(backends: list[str]) -> None:
    """Assigning again, in whatever order, moves no slot."""
    owners = assign((), backends)
    assert assign(owners, backends) == owners
    if len(backends) <= 120:
        assert assign(owners, backends[::-1]) == owners


def test_up_to_twenty_backends_differ_by_at_most_a_sixth_slot() -> None:
    """Seven backends differ by 6 % of a share, six by nothing."""
    seven, six = Counter(assign((), list("abcdefg"))), Counter(assign((), list("abcdef")))
    assert (max(seven.values()), min(seven.values())) == (18, 17)
    assert set(six.values()) == {20}
