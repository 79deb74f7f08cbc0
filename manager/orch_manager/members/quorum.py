"""How many managers may be lost, and why one cannot be removed now: pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: More make every write slower and nothing safer (features: CIS benchmark 7.1).
MOST_ADVISED: Final = 7


@dataclass(frozen=True, slots=True)
class Manager:
    """A member of Raft as the leader sees it.

    Attributes:
        raft_id: which.
        votes: whether it counts towards the quorum.
        reachable: it was heard of within an election timeout; the leader is to itself.
    """

    raft_id: int
    votes: bool = True
    reachable: bool = True


def quorum(voters: int) -> int:
    """How many of so many voters are needed to decide anything."""
    return voters // 2 + 1


def tolerates(managers: Iterable[Manager]) -> int:
    """How many more of the managers may be lost now, those that are unreachable counted as lost; never below 0."""
    voters = [manager for manager in managers if manager.votes]
    reachable = sum(1 for manager in voters if manager.reachable)
    return max(0, reachable - quorum(len(voters))) if voters else 0


def removal_refusal(managers: Iterable[Manager], raft_id: int) -> str:
    """Why a manager cannot be removed or demoted; empty when it can.

    Those that stay and can be reached must be a quorum of those that stay (SwarmKit: CanRemoveMember).
    """
    every = list(managers)
    leaving = next((manager for manager in every if manager.raft_id == raft_id), None)
    if leaving is None or not leaving.votes:
        return ""
    staying = [manager for manager in every if manager.votes and manager.raft_id != raft_id]
    if not staying:
        return "it is the last manager: the cluster would be without one"
    reachable = sum(1 for manager in staying if manager.reachable)
    needed = quorum(len(staying))
    if reachable < needed:
        return (
            f"the quorum would be lost: of the {len(staying)} managers that would stay, {reachable} can be reached, "
            f"and {needed} are needed"
        )
    return ""


def advice(voters: int) -> str:
    """What is unwise about a number of managers; empty when nothing is."""
    if voters > MOST_ADVISED:
        return (
            f"{voters} managers: every write waits for {quorum(voters)} of them; {MOST_ADVISED} are enough for anybody"
        )
    if voters % 2:
        return ""
    lost = voters - quorum(voters)
    few = f"{voters} managers tolerate the loss of {lost or 'none'}, as {voters - 1} would"
    return f"{few}; an odd number is better: add one, or demote one"
