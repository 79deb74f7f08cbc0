"""Runs a manager; orchd starts it: `python -m orch_manager --state-dir DIR --run-dir DIR --node-id ID ...`.

Exit status: 0 stopped as asked; 1 something failed, a restart may help; 2 wrong arguments; 3 the state cannot be used,
a restart does not help; 4 the state is sealed, and no key that opens it was given; 5 the cluster removed this manager.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import os
import signal
import sys
from pathlib import Path

import uvloop

from orch_manager.beginning import Beginning, begin
from orch_manager.members.channels import consensus_channels
from orch_manager.process import Manager, Options
from orch_proto import defaults
from orch_proto.version import VERSION
from orch_raft.errors import RaftError, Removed, StateLocked, StorageError
from orch_raft.transport.client import GrpcTransport
from orch_rpc import logs
from orch_rpc.addresses import Address, parse_address
from orch_rpc.errors import OrchError
from orch_rpc.identity import IdentitySource, IdentityStore

_log = logs.get("manager")
EXIT_FAILED = 1
EXIT_STATE_UNUSABLE = 3
EXIT_LOCKED = 4
EXIT_REMOVED = 5
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_GC_THRESHOLD = 10_000  # new objects before cycles are looked for: a deploy makes thousands that reference counts free


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orch_manager", description="The manager process of an orch node; orchd starts it."
    )
    parser.add_argument("--state-dir", type=Path, required=True, help="folder of the log and the snapshots")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the socket")
    parser.add_argument("--node-id", required=True, help="id of this node")
    parser.add_argument("--identity-dir", type=Path, help="folder with the node's certificate; needed to listen on TCP")
    parser.add_argument("--listen-address", default="", help="for managers, agents and people; empty: nowhere")
    parser.add_argument("--advertise-address", default="", help="where those reach it; by default where it listens")
    parser.add_argument("--bootstrap", type=Path, help="first objects of a new cluster; ignored when there is one")
    parser.add_argument("--join", default="", help="a manager of the cluster to join; ignored when it has joined")
    parser.add_argument(
        "--force-new-cluster", action="store_true", help="go on as the only manager: for a quorum that is lost for good"
    )
    parser.add_argument("--unlock-key-file", type=Path, help="holds the key of a locked cluster; removed once read")
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
    listen: Address | None = None
    identity: IdentitySource | None = None
    if arguments.identity_dir is not None:
        identity = IdentitySource(
            IdentityStore(arguments.identity_dir), lambda error: _log.warning("identity cannot be read", reason=error)
        )
    if arguments.listen_address:
        listen = parse_address(arguments.listen_address, "the address to listen on")
    advertised = parse_address(arguments.advertise_address) if arguments.advertise_address else listen
    joins = (parse_address(arguments.join),) if arguments.join else ()
    transport: GrpcTransport | None = None
    if identity is not None and advertised is not None:
        transport = GrpcTransport(consensus_channels(identity), str(advertised))
    begun = await begin(
        Beginning(
            state_dir=arguments.state_dir,
            node_id=arguments.node_id,
            address=str(advertised) if advertised is not None else "",
            bootstrap=arguments.bootstrap,
            join=bool(joins),
            force_new_cluster=arguments.force_new_cluster,
            unlock_key_file=arguments.unlock_key_file,
        ),
        transport,
    )
    options = Options(
        run_dir=arguments.run_dir,
        node_id=arguments.node_id,
        version=VERSION,
        metrics_address=arguments.metrics_address,
        founding=begun.founding,
        listen_address=listen,
        advertise_address=advertised,
        identity=identity,
        join=joins,
        unlock_key=begun.unlock_key,
        transport=transport,
    )
    await Manager(options, begun.make_engine).run(stop)


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
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(arguments))
    except StateLocked as error:
        _log.error("the state is locked", reason=error)
        sys.exit(EXIT_LOCKED)
    except StorageError as error:
        _log.error("the state cannot be used", reason=error)
        sys.exit(EXIT_STATE_UNUSABLE)
    except Removed as error:
        _log.error("removed from the managers", reason=error)
        sys.exit(EXIT_REMOVED)
    except (RaftError, OrchError) as error:
        _log.error("the manager ends", reason=error)
        sys.exit(EXIT_FAILED)
    _log.info("manager stopped", node=arguments.node_id)


if __name__ == "__main__":
    main()
