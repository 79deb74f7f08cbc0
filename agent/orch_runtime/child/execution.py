"""A command entering a running container (`exec`): its namespaces, its group, the confinement of its program."""

from __future__ import annotations

import json
import os
import select

from orch_runtime.child import execute, identity, terminal
from orch_runtime.child.container import join_cgroups, keep_only
from orch_runtime.child.failure import SetupFailed
from orch_runtime.errors import KernelError
from orch_runtime.kernel import process as kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypedDict

    from orch_runtime.plan import ProcessPlan

    class ExecStreams(TypedDict):
        """The streams of a command: three descriptors, or a socket that a new terminal is sent over (else -1)."""

        standard: list[int]
        console: int
        rows: int
        columns: int


_NAMESPACES = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWNET | kernel.CLONE_NEWCGROUP
)


def run_exec_child(  # noqa: PLR0917 -- called once, in a fork
    pidfd: int, join: list[str], process: ProcessPlan, streams: ExecStreams, status: int, last_capability: int
) -> None:
    """Become the command. Never returns; a failure goes to `status` as JSON, whose end without one means executed."""
    exit_code = 126
    try:
        console = streams["console"]
        standard = streams["standard"]
        keep_only(*{fd for fd in (pidfd, status, console, *standard) if fd >= 0})
        # Before any of the container's processes can see us: /proc/PID of ours leads to the host's interpreter.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        join_cgroups(join)
        kernel.setns(pidfd, _NAMESPACES, "container")
        os.umask(0)
        os.setsid()
        uid, gid, groups, home = identity.resolve_user(process["user"])
        execute.enter_working_directory(process["cwd"])
        identity.set_rlimits(process["rlimits"], [])
        env = execute.environment(process["env"], home)
        if console >= 0:
            master, slave = terminal.open_terminal(streams["rows"], streams["columns"])
            terminal.take_control(slave, uid)
            terminal.hand_over(console, master)
            standard = [slave, slave, slave]
        execute.set_standard_descriptors(standard, uid, gid)
        identity.become(process, uid, gid, groups, last_capability)
        # Whoever asked is gone with the supervisor, and with it the limit of time: do not outlive it.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
        watcher = select.poll()
        watcher.register(status, 0)
        if watcher.poll(0):
            os._exit(137)
        identity.filter_calls_at_last(process)
        execute.reset_signals()
        execute.execute(process["args"], env)
    except SetupFailed as error:
        exit_code = error.exit_code
        _report(status, exit_code, str(error))
    except KernelError as error:
        _report(status, exit_code, str(error))
    except BaseException as error:
        _report(status, exit_code, f"{type(error).__name__}: {error}")
    finally:
        os._exit(exit_code)


def _report(status: int, exit_code: int, message: str) -> None:
    os.write(status, json.dumps({"exit_code": exit_code, "message": message[:4000]}).encode())
