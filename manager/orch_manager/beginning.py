"""How a manager process comes by its state: found a cluster, join one, restore one, go on alone, or just go on."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

from orch_manager.control.unlocking import parse_key
from orch_manager.founding import read_founding_objects
from orch_manager.process import EngineMaker
from orch_proto.objects_pb2 import StoreChanges
from orch_raft.engine import Engine, Member, Observer, StateMachine
from orch_raft.single import SingleMemberEngine
from orch_raft.storage import found_cluster, is_founded
from orch_rpc import logs
from orch_rpc.addresses import Address

_log = logs.get("manager")


@dataclass(frozen=True, slots=True)
class Beginning:
    """What orchd says about it.

    Attributes:
        state_dir: folder of the log and the snapshots.
        node_id: this node.
        address: ``host:port`` where other managers reach this one; empty: nowhere.
        bootstrap: file with the first objects of a new cluster.
        join: a manager of the cluster to join.
        restore: a backup that becomes the state of a new cluster of one manager.
        force_new_cluster: the state that is there goes on as a cluster of one manager.
        unlock_key_file: may hold the key of a locked cluster; removed once it was read.
    """

    state_dir: Path
    node_id: str
    address: str = ""
    bootstrap: Path | None = None
    join: Address | None = None
    restore: Path | None = None
    force_new_cluster: bool = False
    unlock_key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """What the process goes on with.

    Attributes:
        make_engine: the consensus engine over the state.
        founding: first objects of a new cluster, to be written unless they are there.
    """

    make_engine: EngineMaker
    founding: StoreChanges | None = None


async def begin(beginning: Beginning) -> Begun:
    """Prepares the state folder. What was prepared before, and cut short, is taken up.

    Raises:
        StorageError: the folder cannot be used as it is.
        OrchError: what is to begin with cannot be read.
    """
    return await asyncio.to_thread(_begin, beginning)


def _begin(beginning: Beginning) -> Begun:
    folder = beginning.state_dir
    is_new = not is_founded(folder)
    founding = _founding_objects(beginning.bootstrap, is_new=is_new)
    if founding is not None and is_new:
        found_cluster(folder, _own_member(beginning))
    _unlock_key(beginning.unlock_key_file)

    def make_engine(machine: StateMachine, observer: Observer) -> Engine:
        return SingleMemberEngine(folder, machine, observer=observer)

    return Begun(make_engine, founding)


def _own_member(beginning: Beginning) -> Member:
    raft_id = random.SystemRandom().getrandbits(63) or 1
    return Member(raft_id=raft_id, node_id=beginning.node_id, address=beginning.address)


def _founding_objects(bootstrap: Path | None, *, is_new: bool) -> StoreChanges | None:
    # A manager that is started again gets the same arguments; orchd has removed the file once the cluster was made.
    if bootstrap is None or not (is_new or bootstrap.exists()):
        return None
    return read_founding_objects(bootstrap)


def _unlock_key(file: Path | None) -> bytes | None:
    """The key that orchd left in a file; the file does not outlive its being read.

    Raises:
        InvalidArgument: what is in it is no key.
    """
    if file is None or not file.exists():
        return None
    try:
        text = file.read_text(encoding="utf-8")
    finally:
        file.unlink(missing_ok=True)
    return parse_key(text)
