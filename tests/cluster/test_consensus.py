"""Real managers under faults: what clients saw has one order, nothing acknowledged is lost, and the cluster heals.

The seeds are fixed: which faults come, and what clients ask, is the same in every run; when exactly is not.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import leaks
from cluster.conftest import build_test_image
from cluster.consensus_disk import small_disk, write_large_objects
from cluster.consensus_faults import Nemesis, converged
from cluster.consensus_workload import Ran, run_clients
from cluster.playground_driver import Playground, own_subnet, wait_for
from linearizability.explain import NotLinearizable
from linearizability.history import saved_on_failure
from orch_cli.playground.power import processes_of_part


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, busybox: str) -> Iterator[Playground]:
    """Three managers, which run tasks as well."""
    made = Playground(f"trio-{os.getpid()}", own_subnet(3), tmp_path_factory.mktemp("trio"), managers=3)
    made.down()
    before = leaks.host(made.layout)
    made.up()
    try:
        build_test_image(made, Path(busybox))
        yield made
    finally:
        made.down()
    left = leaks.settled_difference(before, lambda: leaks.host(made.layout))
    assert not left, f"the playground left behind: {left}"


def run(playground: Playground, disturb: Callable[[], None], seed: str, folder: Path) -> Ran:
    """Clients at every manager while something is done to the cluster; checks what they saw, and that it healed."""
    sockets = [playground.place(node).manager_socket for node in range(1, playground.managers + 1)]
    ran = asyncio.run(run_clients(sockets, disturb, seed=seed, quiesce=lambda: converged(playground)))
    print(ran.history.summary())
    with saved_on_failure(ran.history, folder / "history.jsonl"):
        ran.assert_linearizable()
        assert ran.last_reads_failed == 0, "a manager of a healed cluster does not answer reads"
    return ran


@pytest.mark.timeout(180)
def test_histories_under_faults_are_linearizable(trio: Playground, tmp_path: Path) -> None:
    """While managers are killed, stopped, switched off and parted, clients see one order of all writes and reads."""
    nemesis = Nemesis(trio, random.Random("faults"))

    def disturb() -> None:
        for fault in nemesis.all_faults():
            fault()

    ran = run(trio, disturb, "faults", tmp_path)
    assert ran.progressed() > 100


@pytest.mark.timeout(120)
def test_stale_reads_are_told_from_others(trio: Playground) -> None:
    """Reads that were asked for as stale show the past at a manager that is cut off: the checker finds it."""
    follower = next(node for node in (1, 2, 3) if node != trio.leader())

    def disturb() -> None:
        trio.partition(trio.place(follower).hostname)
        time.sleep(2)  # the length of the fault
        trio.heal()

    sockets = [trio.place(node).manager_socket for node in (1, 2, 3)]
    ran = asyncio.run(run_clients(sockets, disturb, seed="stale", stale=True, quiesce=lambda: converged(trio)))
    with pytest.raises(NotLinearizable, match="no order of these"):
        ran.assert_linearizable()


@pytest.mark.timeout(180)
def test_a_leader_whose_disk_is_full_gives_way(trio: Playground, tmp_path: Path) -> None:
    """A leader that cannot write stops and another leads; nothing acknowledged is lost, and with room it comes back."""
    leader = trio.leader()
    with small_disk(trio, leader) as disk:
        converged(trio)
        other = next(node for node in (1, 2, 3) if node != leader)

        def disturb() -> None:
            disk.fill()
            write_large_objects(trio, other)
            wait_for(lambda: not processes_of_part(trio.place(leader), "manager"), "the end of the manager")
            disk.make_room()
            wait_for(lambda: processes_of_part(trio.place(leader), "manager"), "the manager's return", 40)

        run(trio, disturb, "disk", tmp_path)
    converged(trio)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(8))
def test_long_histories_under_random_faults_are_linearizable(trio: Playground, tmp_path: Path, seed: int) -> None:
    """The same for a hundred seconds a seed, with faults of random kinds and lengths one after the other."""
    chance = random.Random(f"long {seed}")

    def disturb() -> None:
        for _ in range(25):
            nemesis = Nemesis(trio, chance, hold_s=chance.choice([0.2, 1.0, 3.0, 8.0]))
            chance.choice(nemesis.all_faults())()

    run(trio, disturb, f"long-{seed}", tmp_path)
