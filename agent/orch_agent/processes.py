"""The processes that the node daemon starts: the manager, its child, and the keeper, which must outlive it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orch_rpc import logs

log = logs.get("processes")
RESTART_FIRST_S = 0.05
RESTART_LAST_S = 5.0
STEADY_S = 10.0
STOP_WAIT_S = 10.0


def python_module(module: str, *arguments: str) -> list[str]:
    """Command line of a module of ours, in isolated mode so that the environment cannot change what runs."""
    return [sys.executable, "-I", "-m", module, *arguments]


class ChildProcess:
    """A child that is started again whenever it ends, with a back-off while it dies young.

    Args:
        name: in logs.
        command: its argument list.
        fatal_exit_codes: after these it is left dead: it says that starting it again would do harm.
    """

    def __init__(self, name: str, command: Sequence[str], *, fatal_exit_codes: Sequence[int] = ()) -> None:
        self.name = name
        self.restarts = 0
        self.pid: int | None = None
        self.failure = ""
        self._command = list(command)
        self._fatal = frozenset(fatal_exit_codes)

    async def run(self) -> None:
        """Keeps the child running until cancelled, then stops it."""
        delay_s = RESTART_FIRST_S
        while True:
            began = time.monotonic()
            process = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.DEVNULL)
            self.pid = process.pid
            log.info("process.started", name=self.name, pid=process.pid)
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await _stop(process)
                raise
            finally:
                self.pid = None
            if code in self._fatal:
                self.failure = f"the {self.name} process refused to run (exit status {code}); its log says why"
                log.error("process.refused", name=self.name, status=code)
                return
            if time.monotonic() - began > STEADY_S:
                delay_s = RESTART_FIRST_S
            log.warning("process.ended", name=self.name, status=code, restart_in_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_LAST_S)
            self.restarts += 1


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_WAIT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def manager_command(
    *, state_dir: Path, run_dir: Path, node_id: str, bootstrap: Path | None, metrics_address: str, log_level: str
) -> list[str]:
    """Command line of the manager process."""
    command = python_module(
        "orch_manager",
        "--state-dir",
        str(state_dir),
        "--run-dir",
        str(run_dir),
        "--node-id",
        node_id,
        "--metrics-address",
        metrics_address,
        "--log-level",
        log_level,
        "--parent-pid",
        str(os.getpid()),
    )
    if bootstrap is not None:
        command += ["--bootstrap", str(bootstrap)]
    return command


def network_command(*, root: Path, node: str) -> list[str]:
    """Command line of the network process, which the keeper runs."""
    return python_module("orch_network.netd", "--root", str(root), "--node", node)
