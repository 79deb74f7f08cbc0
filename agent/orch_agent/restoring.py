"""Turns a backup into the state of a manager that was not started yet.

What a backup holds is the manager's business: its own program reads it, in a process of its own, and writes the state,
and a certificate signed by the cluster's root, which is in the backup too.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Final

from orch_agent.node_addresses import NodeAddresses
from orch_agent.node_state import Membership
from orch_agent.processes import python_module
from orch_rpc.errors import InvalidArgument

_WAIT_S: Final = 120.0


async def restore_state(backup: Path, state_dir: Path, addresses: NodeAddresses) -> Membership:
    """Founds a cluster of one manager from a backup.

    Args:
        backup: the file.
        state_dir: of the node, which is in no cluster.
        addresses: of the node.

    Returns:
        the node's place in the cluster: it takes the place of the manager that made the backup.

    Raises:
        InvalidArgument: it is no backup, or a damaged one; nothing is left of the attempt.
    """
    command = python_module(
        "orch_manager.restoring",
        *("--backup", str(backup)),
        *("--state-dir", str(state_dir / "manager")),
        *("--identity-dir", str(state_dir)),
        *("--advertise-address", str(addresses.advertise)),
    )
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_WAIT_S):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        await asyncio.to_thread(shutil.rmtree, state_dir / "manager", ignore_errors=True)
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise InvalidArgument("cannot restore the cluster", last[0], "name a whole file that orch cluster backup made")
    restored = json.loads(output)
    return addresses.membership(str(restored["node_id"]), str(restored["cluster_id"]))
