"""Founding a cluster is all or nothing."""

import random
from pathlib import Path

import pytest

from orch_raft.engine import Member, Observer
from orch_raft.errors import AlreadyFounded
from orch_raft.limits import EngineOptions
from orch_raft.storage import found_cluster, is_founded, open_storage
from unit.raft.simulated_disk import PowerLossError, SimulatedDisk

FOLDER = Path("/state/raft")
MEMBER = Member(77, "node-1", "192.0.2.7:2377")


def test_power_loss_while_founding_leaves_a_cluster_or_none() -> None:
    """Whenever power is lost, the folder holds a whole cluster of one member, or founding can be repeated."""
    for at in range(1, 60):
        disk = SimulatedDisk(power_loss_at=at)
        try:
            found_cluster(FOLDER, MEMBER, files=disk)
        except PowerLossError:
            done = False
        else:
            done = True
        for seed in range(10):
            after = disk.after_power_loss(random.Random(f"{at} {seed}"))
            assert is_founded(FOLDER, after) or not done
            if is_founded(FOLDER, after):
                with pytest.raises(AlreadyFounded):
                    found_cluster(FOLDER, MEMBER, files=after)
            else:
                found_cluster(FOLDER, MEMBER, files=after)
            storage, recovered = open_storage(FOLDER, files=after, options=EngineOptions(), observer=Observer())
            assert recovered.snapshot.membership.members == (MEMBER,)
            assert recovered.snapshot.index == 1
            assert recovered.state is None
            assert recovered.log.entries == ()
            storage.close()
        if done:
            return
    pytest.fail("the founding never came to its end")
