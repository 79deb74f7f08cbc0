"""``orch stack``: what belongs together."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from orch_cli.commands import deploy
from orch_cli.commands.stack_files import add_file_options, read_files
from orch_cli.errors import EXIT_ERROR, EXIT_NOT_IN_TIME, EXIT_OK, CliError, format_error
from orch_cli.output.listing import Listing, add_list_options, natural_key, print_listing
from orch_cli.verbs import Verb

if TYPE_CHECKING:
    from orch_proto.control_pb2 import Filter
    from orch_proto.control_pb2_grpc import ControlAsyncStub
    from orch_proto.objects_pb2 import Stack

STACKS: Final = Listing(
    columns=(("Name", "NAME"), ("Services", "SERVICES")),
    quiet="Name",
    extra=(("ID", "ID"), ("Version", "VERSION"), ("Updated", "UPDATED"), ("Author", "AUTHOR"), ("State", "STATE")),
)
HISTORY: Final = Listing(
    columns=(
        ("Version", "VERSION"),
        ("Deployed", "DEPLOYED"),
        ("Author", "AUTHOR"),
        ("Services", "SERVICES"),
        ("Message", "MESSAGE"),
    ),
    quiet="Version",
)
REMOVE_TIMEOUT_S: Final = 120.0  # longer than any usual grace period


# ---- ls ----------------------------------------------------------------------------------------------


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    add_list_options(parser)


async def _run_ls(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import fetch
    from orch_cli.connection import control
    from orch_cli.output.units import format_ago
    from orch_proto.objects_pb2 import Stack
    from orch_proto.types_pb2 import OBJECT_KIND_STACK

    async with control(arguments.host) as stub:
        stacks = await fetch(stub, OBJECT_KIND_STACK)
    rows = []
    for stack in stacks:
        assert isinstance(stack, Stack)
        rows.append(
            {
                "ID": stack.id,
                "Name": stack.annotations.name,
                "Services": str(len(stack.current.spec.services)),
                "Version": str(stack.current.number),
                "Updated": format_ago(stack.current.deployed_at_unix_ms),
                "Author": stack.current.author,
                "State": "removing" if stack.pending_delete else "",
            }
        )
    rows.sort(key=lambda row: natural_key(row["Name"]))
    print_listing(STACKS, rows, arguments)
    return EXIT_OK


# ---- what belongs to a stack -------------------------------------------------------------------------


async def _find(stub: ControlAsyncStub, name: str) -> Stack | None:
    from orch_cli.commands.common import get
    from orch_proto.objects_pb2 import Stack
    from orch_proto.types_pb2 import OBJECT_KIND_STACK
    from orch_rpc.errors import NotFound

    try:
        stack = await get(stub, OBJECT_KIND_STACK, name)
    except NotFound:
        return None
    assert isinstance(stack, Stack)
    return stack


def _stack_filter(stack: Stack) -> Filter:
    from orch_proto.control_pb2 import Filter

    return Filter(key="stack", values=[stack.id, stack.annotations.name])


def _configure_ps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stack", metavar="STACK")
    parser.add_argument("--no-resolve", action="store_true", help="show the ids of nodes, not their names")
    add_list_options(parser, no_trunc=True, filters=True)


async def _run_ps(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import fetch, nodes_by_id, parse_filters
    from orch_cli.connection import control
    from orch_cli.output.tasks import TASK_FILTERS, TASKS, task_rows
    from orch_proto.objects_pb2 import Task
    from orch_proto.types_pb2 import OBJECT_KIND_TASK

    filters = parse_filters(arguments.filter, TASK_FILTERS)
    async with control(arguments.host) as stub:
        stack = await _find(stub, arguments.stack)
        if stack is None:
            raise CliError(
                f"nothing found in stack: {arguments.stack}", "there is no such stack", "`orch stack ls` lists them"
            )
        tasks = await fetch(stub, OBJECT_KIND_TASK, [*filters, _stack_filter(stack)])
        nodes = await nodes_by_id(stub)
    own = [task for task in tasks if isinstance(task, Task) and task.stack_id in ("", stack.id)]
    print_listing(
        TASKS, task_rows(own, nodes, no_trunc=arguments.no_trunc, resolve=not arguments.no_resolve), arguments
    )
    return EXIT_OK


def _configure_services(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stack", metavar="STACK")
    add_list_options(parser, filters=True)


async def _run_services(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import fetch, note, parse_filters
    from orch_cli.connection import control
    from orch_cli.output.services import SERVICE_FILTERS, SERVICES, service_rows
    from orch_proto.objects_pb2 import Service, Task
    from orch_proto.types_pb2 import OBJECT_KIND_SERVICE, OBJECT_KIND_TASK

    filters = parse_filters(arguments.filter, SERVICE_FILTERS)
    async with control(arguments.host) as stub:
        stack = await _find(stub, arguments.stack)
        if stack is None:
            note(f"Nothing found in stack: {arguments.stack}")
            return EXIT_OK
        services = await fetch(stub, OBJECT_KIND_SERVICE, [*filters, _stack_filter(stack)])
        tasks = await fetch(stub, OBJECT_KIND_TASK, [_stack_filter(stack)])
    rows = service_rows(
        [item for item in services if isinstance(item, Service)], [item for item in tasks if isinstance(item, Task)]
    )
    print_listing(SERVICES, rows, arguments)
    return EXIT_OK


# ---- rm ----------------------------------------------------------------------------------------------


def _configure_rm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stacks", metavar="STACK", nargs="+")
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait until everything is gone")


async def _run_rm(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import note
    from orch_cli.connection import control
    from orch_rpc.errors import NotFound, OrchError

    status = EXIT_OK
    async with control(arguments.host) as stub:
        for name in arguments.stacks:
            try:
                status = max(status, await _remove(stub, name, detach=arguments.detach))
            except NotFound:
                note(f"Nothing found in stack: {name}")
            except OrchError as error:
                print(format_error(error.what, error.why, error.todo), file=sys.stderr)
                status = EXIT_ERROR
    return status


async def _remove(stub: ControlAsyncStub, name: str, *, detach: bool) -> int:
    """Removes one stack and waits until the manager has nothing of it left."""
    from orch_cli.commands.common import CALL_TIMEOUT_S, note
    from orch_cli.connection import calling
    from orch_proto.control_pb2 import RemoveStackRequest
    from orch_proto.types_pb2 import OBJECT_KIND_VOLUME, ObjectKind

    started = time.monotonic()
    stack = await _find(stub, name)
    with calling(f"remove the stack {name}"):
        answer = await stub.RemoveStack(RemoveStackRequest(name=name), timeout=CALL_TIMEOUT_S)
    for change in answer.changes:
        if change.kind != OBJECT_KIND_VOLUME:
            print(f"Removing {ObjectKind.Name(change.kind).removeprefix('OBJECT_KIND_').lower()} {change.name}")
    sys.stdout.flush()
    if not detach:
        left = await _wait_gone(stub, name, answer.stack_id, started + REMOVE_TIMEOUT_S)
        if left:
            note(
                format_error(
                    f"the stack {name} is not gone yet",
                    f"{left} tasks are left after {REMOVE_TIMEOUT_S:g} s",
                    f"the removal goes on; `orch stack ps {name}` shows what is left",
                )
            )
            return EXIT_NOT_IN_TIME
    volumes = [volume.annotations.name for volume in stack.current.spec.volumes] if stack is not None else []
    if volumes:
        note(f"volumes stay, with their data: {', '.join(volumes)}")
    return EXIT_OK


async def _wait_gone(stub: ControlAsyncStub, name: str, stack_id: str, deadline: float) -> int:
    """Waits until the stack and its tasks are gone; returns how many tasks are left, 0 for none."""
    from contextlib import aclosing

    from orch_cli.deploy.watch import StackState, follow, stack_filter

    state = StackState(name)
    async with aclosing(follow(stub, state, [stack_filter(stack_id, name)], deadline)) as changes:
        async for _ in changes:
            gone = state.stack is None or state.stack.id != stack_id
            if gone and not any(
                task.stack_id in ("", stack_id) for own in state.tasks.values() for task in own.values()
            ):
                return 0
    return max(state.task_count(), 1)


# ---- config ------------------------------------------------------------------------------------------


def _configure_config(parser: argparse.ArgumentParser) -> None:
    add_file_options(parser)
    parser.add_argument("--format", choices=("yaml", "json"), default="yaml", help="yaml or json")
    parser.add_argument("-q", "--quiet", action="store_true", help="check only")


def _run_config(arguments: argparse.Namespace) -> int:
    """Checks the files completely, then prints them merged, with variables replaced."""
    import yaml

    from orch_cli.compose.loader import build_stack, load_model
    from orch_cli.compose.nodes import to_plain

    files, options = read_files(arguments)
    model = load_model(files, options)
    loaded = build_stack(model, "")
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.quiet:
        return EXIT_OK
    plain = to_plain(model.root)
    assert isinstance(plain, dict)
    result = {"name": model.name, **{key: value for key, value in plain.items() if key not in ("name", "version")}}
    escaped = _escape(result)
    if arguments.format == "json":
        print(json.dumps(escaped, indent=2, ensure_ascii=False))
    else:
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        print(yaml.dump(escaped, Dumper=dumper, sort_keys=False, allow_unicode=True), end="")
    return EXIT_OK


def _escape(value: Any) -> Any:
    """Doubles dollar signs, so that the output can be read again."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, list):
        return [_escape(item) for item in value]
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    return value


# ---- inspect, history --------------------------------------------------------------------------------


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="STACK", nargs="+")
    parser.add_argument("--pretty", action="store_true", help="indented text instead of JSON")


async def _run_inspect(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.objects import inspect
    from orch_proto.types_pb2 import OBJECT_KIND_STACK

    return await inspect(arguments, OBJECT_KIND_STACK)


def _configure_history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stack", metavar="STACK")
    add_list_options(parser)


async def _run_history(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import control
    from orch_cli.output.units import format_ago

    async with control(arguments.host) as stub:
        stack = await _find(stub, arguments.stack)
    if stack is None:
        raise CliError(f"there is no stack {arguments.stack}", "", "`orch stack ls` lists them")
    versions = [stack.current, *(version for version in stack.history if version.number != stack.current.number)]
    rows = [
        {
            "Version": str(version.number),
            "Deployed": format_ago(version.deployed_at_unix_ms),
            "Author": version.author,
            "Services": str(len(version.spec.services)),
            "Message": version.message,
        }
        for version in versions
    ]
    print_listing(HISTORY, rows, arguments)
    return EXIT_OK


VERBS: Final[Mapping[str, Verb]] = {
    "deploy": Verb(deploy.configure_deploy, deploy.run_deploy),
    "plan": Verb(deploy.configure_plan, deploy.run_plan),
    "ls": Verb(_configure_ls, _run_ls),
    "ps": Verb(_configure_ps, _run_ps),
    "services": Verb(_configure_services, _run_services),
    "rm": Verb(_configure_rm, _run_rm),
    "config": Verb(_configure_config, _run_config),
    "inspect": Verb(_configure_inspect, _run_inspect),
    "history": Verb(_configure_history, _run_history),
}
