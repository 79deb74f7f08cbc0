"""The order in which an agent turns to managers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orch_agent.managers import MOST_MANAGERS, ManagerLine

ADDRESSES = st.lists(st.sampled_from([f"10.0.0.{number}:2377" for number in range(1, 8)]), min_size=1, max_size=7)


def test_the_leader_is_tried_first_and_forgotten_when_it_fails() -> None:
    """A named leader is next, once; after its failure the others come before it."""
    line = ManagerLine(["a:1", "b:1", "c:1"])
    line.leads("b:1")
    assert line.next() == "b:1"
    line.failed("b:1")
    assert [line.next()] == ["a:1"]
    line.failed("a:1")
    assert line.next() == "c:1"
    line.failed("c:1")
    assert line.next() == "b:1"


def test_a_leader_that_was_not_known_becomes_known() -> None:
    """A leader named by a manager is tried although this node had never heard of it."""
    line = ManagerLine(["a:1"])
    line.leads("new:1")
    assert line.next() == "new:1"
    assert line.addresses == ("a:1", "new:1")


@given(known=ADDRESSES, told=ADDRESSES, failures=st.lists(st.integers(0, 6)))
def test_every_known_manager_is_tried_in_a_round(known: list[str], told: list[str], failures: list[int]) -> None:
    """Whatever happened before, as many failures as there are managers try each of them once."""
    line = ManagerLine(known)
    for number in failures:
        line.failed(f"10.0.0.{number}:2377")
    line.learned(told)
    assert set(line.addresses) == set(told)
    tried = []
    for _ in line.addresses:
        tried.append(line.next())
        line.failed(tried[-1])
    assert sorted(tried) == list(line.addresses)


def test_what_a_manager_says_is_bounded() -> None:
    """A manager that names thousands of others fills no memory."""
    line = ManagerLine(["a:1"])
    line.learned(f"10.0.{number // 250}.{number % 250}:1" for number in range(5000))
    assert len(line.addresses) == MOST_MANAGERS
