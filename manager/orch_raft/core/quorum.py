"""Majorities (Raft paper, section 5.4)."""

from collections.abc import Iterable


def quorum(voters: int) -> int:
    """How many of so many voters are a majority: more than half of them."""
    return voters // 2 + 1


def reached_by_quorum(values: Iterable[int]) -> int:
    """The largest value that a majority has reached, given each voter's; 0 without voters."""
    ranked = sorted(values, reverse=True)
    return ranked[quorum(len(ranked)) - 1] if ranked else 0
