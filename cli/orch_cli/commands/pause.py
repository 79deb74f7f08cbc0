"""``orch pause``, ``orch unpause`` and ``orch top``: a task's processes, frozen or looked at."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from orch_cli.errors import CliError
from orch_cli.output.listing import Listing, add_list_options, print_listing
from orch_cli.verbs import Verb

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub
    from orch_proto.node_pb2 import ContainerProcess, RelayCall, RelayResult

PROCESSES: Final = Listing(
    columns=(
        ("User", "USER"),
        ("PID", "PID"),
        ("PPID", "PPID"),
        ("NodePID", "NODE PID"),
        ("Started", "STARTED"),
        ("TTY", "TTY"),
        ("Time", "TIME"),
        ("Memory", "MEMORY"),
        ("Command", "COMMAND"),
    ),
    quiet="PID",
)
_COMMAND_LENGTH = 80


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", metavar="TASK", nargs="+", help="web.2, a task's id, or a service with one task")


async def _ask(stub: ControlAsyncStub, target: str, call: RelayCall, doing: str) -> RelayResult:
    from orch_cli.containers.stream import task_stream
    from orch_proto.control_pb2 import ExecStart

    async with task_stream(stub, ExecStart(target=target, task_call=call), doing) as stream:
        async for output in stream.outputs():
            if output.WhichOneof("output") == "result":
                return output.result
    raise CliError(f"cannot {doing}", "the node gave no result", "look at the log of orchd")


async def _set_paused(arguments: argparse.Namespace, *, paused: bool) -> int:
    from orch_cli.commands.common import for_each
    from orch_cli.connection import control
    from orch_proto.node_pb2 import PauseCall, RelayCall

    async with control(arguments.host) as stub:

        async def work(target: str) -> None:
            call = RelayCall(pause=PauseCall(paused=paused))
            await _ask(stub, target, call, f"{'pause' if paused else 'unpause'} {target}")
            print(target)

        return await for_each(arguments.targets, work)


async def _run_pause(arguments: argparse.Namespace) -> int:
    return await _set_paused(arguments, paused=True)


async def _run_unpause(arguments: argparse.Namespace) -> int:
    return await _set_paused(arguments, paused=False)


def _configure_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="SERVICE|TASK", help="a service (its first task), web.2, or a task's id")
    add_list_options(parser, no_trunc=True)


async def _run_top(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import control
    from orch_proto.node_pb2 import ProcessesCall, RelayCall

    async with control(arguments.host) as stub:
        call = RelayCall(processes=ProcessesCall())
        result = await _ask(stub, arguments.target, call, f"list the processes of {arguments.target}")
    rows = [process_row(process, no_trunc=arguments.no_trunc) for process in result.processes]
    print_listing(PROCESSES, rows, arguments)
    return 0


def process_row(process: ContainerProcess, *, no_trunc: bool = False) -> dict[str, str]:
    """One process as the list shows it."""
    from orch_cli.output.listing import cut
    from orch_cli.output.units import format_ago, format_memory

    seconds = process.cpu_time_ms // 1000
    return {
        "User": process.user,
        "PID": str(process.pid),
        "PPID": str(process.parent_pid),
        "NodePID": str(process.node_pid),
        "Started": format_ago(process.started_at_unix_ms),
        "TTY": process.terminal or "?",
        "Time": f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
        "Memory": format_memory(process.resident_bytes),
        "Command": process.command if no_trunc else cut(process.command, _COMMAND_LENGTH),
    }


VERBS: Final[Mapping[str, Verb]] = {
    "pause": Verb(_configure, _run_pause),
    "unpause": Verb(_configure, _run_unpause),
    "top": Verb(_configure_top, _run_top),
}
