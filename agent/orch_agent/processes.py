"""The processes that the node daemon starts: the manager, its child, and the keeper, which must outlive it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orch_rpc import logs

log = logs.get("processes")
RESTART_FIRST_S = 0.05
RESTART_LAST_S = 2.0
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
        command_again: the one of later starts, if that is another.
        fatal_exit_codes: after these it is left dead: it says that starting it again would do harm.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        command_again: Sequence[str] = (),
        fatal_exit_codes: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.restarts = 0
        self.pid: int | None = None
        self.failure = ""
        #: Exit status of the one before; None before the first end.
        self.last_status: int | None = None
        self._command = list(command)
        self._command_again = list(command_again or command)
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
            self.last_status = code
            if code in self._fatal:
                self.failure = f"the {self.name} process refused to run (exit status {code}); its log says why"
                log.error("process.refused", name=self.name, status=code)
                return
            if time.monotonic() - began > STEADY_S:
                delay_s = RESTART_FIRST_S
            log.warning("process.ended", name=self.name, status=code, restart_in_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_LAST_S)
            self._command = self._command_again
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


def network_command(*, root: Path, node: str) -> list[str]:
    """Command line of the network process, which the keeper runs."""
    return python_module("orch_network.netd", "--root", str(root), "--node", node)
