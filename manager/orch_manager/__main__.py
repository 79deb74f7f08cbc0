"""Runs a manager: `python -m orch_manager --state-dir DIR --run-dir DIR --node-id ID [--bootstrap FILE]`.

Exit status: 0 stopped as asked; 1 something failed, a restart may help; 2 wrong arguments; 3 the state cannot be
used, a restart does not help.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import os
import random
import signal
import sys
from pathlib import Path

from orch_manager.founding import read_founding_objects
from orch_manager.process import Manager, Options
from orch_proto import defaults
from orch_proto.objects_pb2 import StoreChanges
from orch_proto.version import VERSION
from orch_raft.engine import Engine, Member, Observer, StateMachine
from orch_raft.errors import FatalError, StorageError
from orch_raft.single import SingleMemberEngine
from orch_raft.storage import found_cluster, is_founded
from orch_rpc import logs
from orch_rpc.errors import OrchError

_log = logs.get("manager")
EXIT_FAILED = 1
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
EXIT_STATE_UNUSABLE = 3
_GC_THRESHOLD = 10_000  # new objects before cycles are looked for: a deploy makes thousands that reference counts free


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orch_manager", description="The manager process of an orch node; orchd starts it."
    )
    parser.add_argument("--state-dir", type=Path, required=True, help="folder of the log and the snapshots")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the socket")
    parser.add_argument("--node-id", required=True, help="id of this node")
    parser.add_argument("--bootstrap", type=Path, help="first objects of a new cluster; ignored when there is one")
    metrics = f"127.0.0.1:{defaults.MANAGER_METRICS_PORT}"
    parser.add_argument("--metrics-address", default=metrics, help="where /metrics is served; empty: nowhere")
    parser.add_argument("--parent-pid", type=int, default=0, help="end when this process, which started it, ends")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


async def _run(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    is_new = not is_founded(arguments.state_dir)
    founding = _founding_objects(arguments.bootstrap, is_new=is_new)
    if founding is not None and is_new:
        member = Member(raft_id=random.SystemRandom().getrandbits(63) or 1, node_id=arguments.node_id)
        await asyncio.to_thread(found_cluster, arguments.state_dir, member)

    def make_engine(machine: StateMachine, observer: Observer) -> Engine:
        return SingleMemberEngine(arguments.state_dir, machine, observer=observer)

    options = Options(
        run_dir=arguments.run_dir,
        node_id=arguments.node_id,
        version=VERSION,
        metrics_address=arguments.metrics_address,
        founding=founding,
    )
    await Manager(options, make_engine).run(stop)


def _founding_objects(bootstrap: Path | None, *, is_new: bool) -> StoreChanges | None:
    # A manager that is started again gets the same arguments; orchd has removed the file once the cluster was made.
    if bootstrap is None or not (is_new or bootstrap.exists()):
        return None
    return read_founding_objects(bootstrap)


def _die_with(parent_pid: int) -> None:
    """Has the kernel end this process when the one that started it ends (prctl(2), PR_SET_PDEATHSIG).

    A manager that outlived a killed orchd would keep the next one's manager from starting. SIGKILL loses nothing: what
    is acknowledged is on the disk.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(EXIT_FAILED)  # it ended before the kernel was told


def main() -> None:
    """Entry point."""
    arguments = _parser().parse_args()
    if arguments.parent_pid:
        _die_with(arguments.parent_pid)
    logs.configure(level=arguments.log_level)
    # What is imported stays for good; the store's objects are kept by count, and cycles are few.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    try:
        asyncio.run(_run(arguments))
    except StorageError as error:
        _log.error("the state cannot be used", reason=error)
        sys.exit(EXIT_STATE_UNUSABLE)
    except (FatalError, OrchError) as error:
        _log.error("the manager ends", reason=error)
        sys.exit(EXIT_FAILED)
    _log.info("manager stopped", node=arguments.node_id)


if __name__ == "__main__":
    main()
