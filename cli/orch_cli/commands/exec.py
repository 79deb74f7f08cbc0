"""``orch exec`` and ``orch attach``: a command in a running task; a task's output and signals."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from orch_cli.errors import EXIT_OK, UsageError
from orch_cli.verbs import Verb

if TYPE_CHECKING:
    from orch_cli.containers.stream import TaskStream
    from orch_proto.node_pb2 import ExecCall, RelayOutput

#: So many Ctrl-C in a row leave a program that does not listen to them.
_PATIENCE = 3


def _configure_exec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--interactive", action="store_true", help="send standard input to the command")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="start it and come back at once")
    parser.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="run as another user of the image")
    parser.add_argument("-w", "--workdir", default="", metavar="DIR", help="folder in the container to run in")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable to set")
    parser.add_argument("--detach-keys", default="ctrl-p,ctrl-q", metavar="KEYS", help="keys that leave a terminal")
    parser.add_argument("target", metavar="SERVICE|TASK", help="a service (its first task), web.2, or a task's id")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="the program and its arguments")


async def _run_exec(arguments: argparse.Namespace) -> int:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise UsageError("there is nothing to run", "a command is needed after the task", "write `orch exec web ls -l`")
    if arguments.detach and (arguments.interactive or arguments.tty):
        raise UsageError("--detach goes with neither -i nor -t", "nobody would be there to type", "leave them out")
    on_terminal = os.isatty(0)
    if arguments.tty and arguments.interactive and not on_terminal:
        raise UsageError("-t needs a terminal", "standard input is none", "leave out -t")
    if arguments.workdir and not arguments.workdir.startswith("/"):
        raise UsageError(f"{arguments.workdir!r} is no absolute path", "it is one in the container", "begin it with /")
    from orch_cli.connection import control
    from orch_cli.containers.keys import DetachKeys, parse_keys
    from orch_cli.containers.stream import task_stream
    from orch_cli.containers.terminal import terminal_size
    from orch_proto.control_pb2 import ExecStart
    from orch_proto.node_pb2 import ExecCall

    keys = DetachKeys(parse_keys(arguments.detach_keys))
    rows, columns = terminal_size() if arguments.tty else (0, 0)
    call = ExecCall(
        command=command,
        env=[_variable(text) for text in arguments.env] + _terminal_kind(arguments),
        user=arguments.user,
        working_dir=arguments.workdir,
        tty=arguments.tty,
        interactive=arguments.interactive,
        rows=rows,
        columns=columns,
    )
    async with control(arguments.host) as stub:
        doing = f"run a command in {arguments.target}"
        async with task_stream(stub, ExecStart(target=arguments.target, call=call), doing) as stream:
            if arguments.detach:
                return await _start_alone(stream)
            return await _stay(stream, call, keys)


def _variable(text: str) -> str:
    """``NAME=value``; a name alone takes this shell's value, as docker has it."""
    name, equals, _ = text.partition("=")
    if not name:
        raise UsageError(f"cannot read the variable {text!r}", "its name is missing", "write -e NAME=value")
    return text if equals else f"{name}={os.environ.get(name, '')}"


def _terminal_kind(arguments: argparse.Namespace) -> list[str]:
    given = any(text.startswith("TERM=") for text in arguments.env)
    kind = os.environ.get("TERM", "")
    return [f"TERM={kind}"] if arguments.tty and kind and not given else []


async def _start_alone(stream: TaskStream) -> int:
    """Waits until the command executes, then leaves it."""
    from orch_cli.containers.terminal import write_output
    from orch_proto.node_pb2 import RelayInput

    status = EXIT_OK
    async for output in stream.outputs():
        which = output.WhichOneof("output")
        if which == "ready":
            await stream.send(RelayInput(detach=True))
        elif which == "exec_output":
            write_output(b"", output.exec_output.stderr)
        elif which == "result" and output.result.HasField("exit_code"):
            status = output.result.exit_code
    return status


async def _stay(stream: TaskStream, call: ExecCall, keys: object) -> int:
    """Types, shows and passes signals on until the command ends or the detach keys are typed."""
    from orch_cli.containers.keys import DetachKeys
    from orch_cli.containers.terminal import on_resize, passing_signals, raw_terminal, terminal_size
    from orch_proto.node_pb2 import RelayInput, TerminalSize

    assert isinstance(keys, DetachKeys)

    def resized() -> None:
        rows, columns = terminal_size()
        stream.send_now(RelayInput(resize=TerminalSize(rows=rows, columns=columns)))

    with ExitStack() as stack:
        if call.tty and os.isatty(0):
            stack.enter_context(on_resize(resized))
            if call.interactive:
                stack.enter_context(raw_terminal(0))
        else:
            stack.enter_context(passing_signals(_Patience(stream).take))
        typing = asyncio.create_task(_type(stream, call, keys)) if call.interactive else None
        try:
            return await _show(stream)
        finally:
            if typing is not None:
                typing.cancel()
                await asyncio.wait({typing})


class _Patience:
    """Passes signals on; ends the wait for a program that ignores Ctrl-C."""

    def __init__(self, stream: TaskStream) -> None:
        self._stream = stream
        self._interrupts = 0
        self._task = asyncio.current_task()

    def take(self, number: int) -> None:
        from orch_proto.node_pb2 import RelayInput

        self._interrupts += number == signal.SIGINT
        if self._interrupts >= _PATIENCE and self._task is not None:
            print("orch: left; what runs in the task is being ended", file=sys.stderr)
            self._task.cancel()
        self._stream.send_now(RelayInput(signal=number))


async def _type(stream: TaskStream, call: ExecCall, keys: object) -> None:
    from orch_cli.containers.keys import DetachKeys
    from orch_cli.containers.terminal import standard_input
    from orch_proto.node_pb2 import RelayInput

    assert isinstance(keys, DetachKeys)
    async for typed in standard_input():
        data, detached = keys.feed(typed) if call.tty else (typed, False)
        if data:
            await stream.send(RelayInput(data=data))
        if detached:
            await stream.send(RelayInput(detach=True))
            return
    await stream.send(RelayInput(end_of_data=True))


async def _show(stream: TaskStream) -> int:
    """Writes what comes; returns the exit code, or 0 when the command was left running."""
    from orch_cli.containers.terminal import write_output

    status = EXIT_OK
    async for output in stream.outputs():
        which = output.WhichOneof("output")
        if which == "exec_output":
            write_output(output.exec_output.stdout, output.exec_output.stderr)
        elif which == "result":
            status = _status(output)
    return status


def _status(output: RelayOutput) -> int:
    return output.result.exit_code if output.result.HasField("exit_code") else EXIT_OK


# ---- attach ----------------------------------------------------------------------------------------------------------


def _configure_attach(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="SERVICE|TASK", help="a service (its first task), web.2, or a task's id")
    parser.add_argument(
        "--sig-proxy",
        action="store_true",
        help="send signals such as Ctrl-C to the task's program; by default Ctrl-C only leaves",
    )


async def _run_attach(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import control
    from orch_cli.containers.stream import task_stream
    from orch_cli.containers.terminal import passing_signals
    from orch_proto.control_pb2 import ExecStart
    from orch_proto.node_pb2 import AttachCall, RelayCall, RelayInput

    start = ExecStart(target=arguments.target, task_call=RelayCall(attach=AttachCall()))
    async with control(arguments.host) as stub, task_stream(stub, start, f"attach to {arguments.target}") as stream:
        with ExitStack() as stack:
            if arguments.sig_proxy:
                stack.enter_context(passing_signals(lambda number: stream.send_now(RelayInput(signal=number))))
            return await _show(stream)


VERBS: Final[Mapping[str, Verb]] = {
    "exec": Verb(_configure_exec, _run_exec, ordered=True),
    "attach": Verb(_configure_attach, _run_attach),
}
