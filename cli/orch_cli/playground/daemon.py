"""One node's daemon: start it in the node's namespaces, and ask it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

from orch_cli.playground import record, tools
from orch_cli.playground.layout import NodePlace
from orch_cli.playground.processes import ProcessId, identify
from orch_cli.playground.record import Record
from orch_proto import daemon_pb2, daemon_pb2_grpc
from orch_rpc.channels import unix_channel
from orch_rpc.errors import FailedPrecondition, OutcomeUnknown, Unavailable, rpc_errors

_ANSWER_LIMIT_S: Final = 30.0
_CALL_LIMIT_S: Final = 2.0
_POLL_S: Final = 0.02
_SHOWN_LOG_LINES: Final = 15

# The node's own name is given to its kernel, where the daemon and everything else on the node reads it.
_NAMED_START: Final = 'hostname "$0" && exec "$@"'


def start(found: Record, node: NodePlace) -> ProcessId:
    """Starts the node's daemon in the background, its words going to the node's log file.

    Raises:
        FailedPrecondition: a tool is missing, or the daemon ended at once.
    """
    orchd = Path(sys.executable).with_name("orchd")
    node.state_dir.mkdir(parents=True, exist_ok=True)
    node.run_dir.mkdir(parents=True, exist_ok=True)
    if found.share_images:
        found.layout.images.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            node.images.symlink_to(found.layout.images)
    command = [
        *(tools.find("nsenter"), f"--net={node.namespace_path}", "--"),
        *(tools.find("unshare"), "--uts", "--", "sh", "-c", _NAMED_START, node.hostname),
        *(str(orchd), "--state-dir", str(node.state_dir), "--run-dir", str(node.run_dir)),
        *("--cgroup-parent", node.cgroup_parent, "--hostname", node.hostname),
        *("--advertise-address", str(node.address)),
    ]
    if found.show_metrics:
        command += ["--metrics-address", node.metrics_address]
        command += ["--manager-metrics-address", node.manager_metrics_address]
    with node.log_file.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    identity = identify(process.pid)
    if identity is None:
        raise did_not_start(node, f"it ended at once with status {process.wait()}")
    record.note_daemon(node, identity)
    return identity


def last_words(node: NodePlace) -> list[str]:
    """The ends of the logs of the node's processes: they go with the node's folders."""
    lines = []
    for path in [node.log_file, *sorted(node.run_dir.glob("*/*.log"))]:
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                lines += [f"{path.name}: {line.rstrip()}" for line in deque(file, _SHOWN_LOG_LINES)]
    return lines


def did_not_start(node: NodePlace, why: str) -> FailedPrecondition:
    """The error of a node that did not come up."""
    return FailedPrecondition(f"cannot start {node.hostname}", why, "mend what the end of its log names, above")


async def wait_for_answer(node: NodePlace, identity: ProcessId) -> None:
    """Waits until the daemon answers on its socket.

    Raises:
        FailedPrecondition: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + _ANSWER_LIMIT_S
    while True:
        if not identity.is_alive():
            raise did_not_start(node, "its daemon ended")
        if node.daemon_socket.exists() and await info(node) is not None:
            return
        if time.monotonic() > deadline:
            raise did_not_start(node, f"its daemon did not answer within {_ANSWER_LIMIT_S:g} s")
        await asyncio.sleep(_POLL_S)


async def info(node: NodePlace) -> daemon_pb2.NodeInfoResponse | None:
    """What the daemon says of itself; None when nobody answers in time."""
    identity = record.daemon_of(node)
    if identity is None or not identity.is_alive() or identity.is_stopped():
        return None
    try:
        with rpc_errors(f"ask {node.hostname}"):
            async with unix_channel(node.daemon_socket) as channel:
                stub: daemon_pb2_grpc.DaemonAsyncStub = daemon_pb2_grpc.DaemonStub(channel)
                return await stub.NodeInfo(daemon_pb2.NodeInfoRequest(), timeout=_CALL_LIMIT_S)
    except (Unavailable, OutcomeUnknown):
        return None
