"""Managers under faults of network, disk and process, many seeds, invariants after every step.

A failure names its seed: `run_seed(SEED)` in a Python shell tells the same story again.
"""

import os

import pytest

from simulation.raft.cluster import SimulatedManagers, run_seed
from simulation.raft.faults import FaultMix

_SEEDS_PER_TEST = 20
_TESTS = 20
#: The long run: thousands of seeds, and longer lives.
_LONG_TESTS = int(os.environ.get("ORCH_RAFT_LONG_TESTS", "100"))
_LONG_SEEDS_PER_TEST = 50


def _run(first: int, count: int, ticks: int) -> list[SimulatedManagers]:
    worlds = []
    for seed in range(first, first + count):
        try:
            worlds.append(run_seed(seed, ticks))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return worlds


@pytest.mark.parametrize("part", range(_TESTS))
def test_no_fault_breaks_a_promise(part: int) -> None:
    """One leader in a term, one history, nothing acknowledged is lost, reads are linearizable, and it goes on after."""
    worlds = _run(part * _SEEDS_PER_TEST, _SEEDS_PER_TEST, ticks=300)
    # A simulation in which nothing happens would find nothing.
    assert sum(world.history.elections for world in worlds) > _SEEDS_PER_TEST
    assert sum(len(world.history.acknowledged) for world in worlds) > 10 * _SEEDS_PER_TEST
    assert sum(world.crashes for world in worlds) > _SEEDS_PER_TEST


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(_LONG_TESTS))
def test_no_fault_breaks_a_promise_in_the_long_run(part: int) -> None:
    """The same over thousands of seeds."""
    _run(1_000_000 + part * _LONG_SEEDS_PER_TEST, _LONG_SEEDS_PER_TEST, ticks=600)


@pytest.mark.parametrize("seed", range(15))
def test_power_loss_everywhere_at_once_loses_nothing_acknowledged(seed: int) -> None:
    """When all managers lose power and all that was not synced, what was acknowledged is there afterwards."""
    world = SimulatedManagers(seed, FaultMix.calm(longest_sync=40))
    for _ in range(6):
        world.live(60)
        for raft_id in list(world.members):
            world.crash(raft_id)
    world.heal()
    assert len(world.history.acknowledged) > 20


def test_a_seed_tells_the_same_story_twice() -> None:
    """A run follows from its seed alone, so that a failure can be looked into."""
    stories = [(world.messages, world.crashes, world.describe()) for world in (run_seed(3), run_seed(3))]
    assert stories[0] == stories[1]


def test_every_kind_of_fault_and_use_occurs() -> None:
    """Over the seeds of the short run there are elections, crashes, reads, changes of members and all sizes."""
    worlds = _run(5000, 40, ticks=300)
    assert {world.mix.voters for world in worlds} == {3, 4, 5, 6, 7}
    assert sum(world.changes for world in worlds) > 50
    assert sum(world.history.reads for world in worlds) > 300
    assert sum(world.history.elections for world in worlds) > 150
    assert sum(world.crashes for world in worlds) > 300
