"""``orch ps`` and ``orch task``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from orch_cli.errors import EXIT_OK
from orch_cli.output.listing import add_list_options, print_listing
from orch_cli.verbs import Verb


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="show ended tasks too")
    parser.add_argument("--no-resolve", action="store_true", help="show the ids of nodes, not their names")
    add_list_options(parser, no_trunc=True, filters=True)


async def _run_ls(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import fetch, nodes_by_id, parse_filters
    from orch_cli.connection import control
    from orch_cli.output.tasks import TASK_FILTERS, TASKS, task_rows
    from orch_proto.objects_pb2 import Task
    from orch_proto.types_pb2 import OBJECT_KIND_TASK, TaskState

    filters = parse_filters(arguments.filter, (*TASK_FILTERS, "stack"))
    async with control(arguments.host) as stub:
        tasks = await fetch(stub, OBJECT_KIND_TASK, filters)
        nodes = await nodes_by_id(stub)
    wanted_only = not arguments.all and not any(item.key == "desired-state" for item in filters)
    own = [
        task
        for task in tasks
        if isinstance(task, Task) and (not wanted_only or task.desired_state <= TaskState.TASK_STATE_RUNNING)
    ]
    print_listing(
        TASKS, task_rows(own, nodes, no_trunc=arguments.no_trunc, resolve=not arguments.no_resolve), arguments
    )
    return EXIT_OK


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="TASK", nargs="+", help="id or beginning of an id")
    parser.add_argument("--pretty", action="store_true", help="indented text instead of JSON")


async def _run_inspect(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.objects import inspect
    from orch_proto.types_pb2 import OBJECT_KIND_TASK

    return await inspect(arguments, OBJECT_KIND_TASK)


VERBS: Final[Mapping[str, Verb]] = {
    "ls": Verb(_configure_ls, _run_ls),
    "inspect": Verb(_configure_inspect, _run_inspect),
}
