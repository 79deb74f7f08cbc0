"""How a manager process comes by its state: found a cluster, join one, go on alone, or just go on."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

from orch_manager.control.unlocking import parse_key
from orch_manager.founding import read_founding_objects
from orch_manager.process import EngineMaker
from orch_proto.objects_pb2 import StoreChanges
from orch_raft.driver import ReplicatedEngine
from orch_raft.engine import Engine, Member, Observer, StateMachine
from orch_raft.recovery import force_new_cluster
from orch_raft.storage import check_unlock_key, found_cluster, is_founded, is_locked, prepare_joiner
from orch_raft.transport.seam import Transport
from orch_rpc import logs

_log = logs.get("manager")


@dataclass(frozen=True, slots=True)
class Beginning:
    """What orchd says about it.

    Attributes:
        state_dir: folder of the log and the snapshots.
        node_id: this node.
        address: ``host:port`` where other managers reach this one; empty: nowhere.
        bootstrap: file with the first objects of a new cluster.
        join: whether a cluster is to be joined.
        force_new_cluster: the state that is there goes on as a cluster of one manager.
        unlock_key_file: may hold the key of a locked cluster; removed once it was read.
    """

    state_dir: Path
    node_id: str
    address: str = ""
    bootstrap: Path | None = None
    join: bool = False
    force_new_cluster: bool = False
    unlock_key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """What the process goes on with.

    Attributes:
        make_engine: the consensus engine over the state.
        founding: first objects of a new cluster, to be written unless they are there.
        unlock_key: what the state was opened with.
    """

    make_engine: EngineMaker
    founding: StoreChanges | None = None
    unlock_key: bytes | None = None


async def begin(beginning: Beginning, transport: Transport | None) -> Begun:
    """Prepares the state folder. What was prepared before, and cut short, is taken up.

    Args:
        beginning: what orchd says.
        transport: to the other managers.

    Raises:
        StorageError: the folder cannot be used as it is.
        OrchError: what is to begin with cannot be read.
    """
    return await asyncio.to_thread(_begin, beginning, transport)


def _begin(beginning: Beginning, transport: Transport | None) -> Begun:
    folder = beginning.state_dir
    unlock_key = _unlock_key(beginning.unlock_key_file)
    is_new = not is_founded(folder)
    founding = _founding_objects(beginning.bootstrap, is_new=is_new)
    if is_new and founding is not None:
        found_cluster(folder, _own_member(beginning))
    elif is_new and beginning.join:
        prepare_joiner(folder, _new_raft_id())
    elif not is_new and is_locked(folder):
        check_unlock_key(folder, unlock_key or b"")
    elif not is_new:
        unlock_key = None  # nothing is sealed: the key was for a state that is no more
    if beginning.force_new_cluster and not is_new:
        removed = force_new_cluster(folder, unlock_key=unlock_key)
        _log.warning("goes on as the only manager", removed=[member.node_id for member in removed])

    def make_engine(machine: StateMachine, observer: Observer) -> Engine:
        return ReplicatedEngine(folder, machine, transport=transport, observer=observer, unlock_key=unlock_key)

    return Begun(make_engine, founding, unlock_key)


def _new_raft_id() -> int:
    return random.SystemRandom().getrandbits(63) or 1


def _own_member(beginning: Beginning) -> Member:
    return Member(raft_id=_new_raft_id(), node_id=beginning.node_id, address=beginning.address)


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
