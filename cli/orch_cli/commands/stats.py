"""``orch stats``: what tasks use, once or on and on."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from orch_cli.errors import EXIT_OK
from orch_cli.output.listing import Listing, add_list_options, natural_key, print_listing, short_id
from orch_cli.verbs import Verb

if TYPE_CHECKING:
    from orch_proto.control_pb2_grpc import ControlAsyncStub
    from orch_proto.node_pb2 import TaskStats
    from orch_proto.objects_pb2 import Node, Task

STATS: Final = Listing(
    columns=(
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Node", "NODE"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("MemPerc", "MEM %"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
    ),
    quiet="ID",
)
#: Longer than nodes keep what they have read.
_INTERVAL_S = 1.1
_CLEAR = "\x1b[H\x1b[J"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", metavar="SERVICE|TASK", nargs="*", help="only these; names, ids, beginnings of ids")
    parser.add_argument("--stack", default="", metavar="NAME", help="only the tasks of a stack")
    parser.add_argument("--no-stream", action="store_true", help="show it once")
    add_list_options(parser, no_trunc=True)


async def _run(arguments: argparse.Namespace) -> int:
    from orch_cli.connection import control

    async with control(arguments.host) as stub:
        before: dict[str, TaskStats] = await _read(stub)
        while True:
            await asyncio.sleep(_INTERVAL_S)
            now = await _read(stub)
            rows = await _rows(stub, arguments, before, now)
            if sys.stdout.isatty() and not arguments.no_stream and arguments.format == "table":
                sys.stdout.write(_CLEAR)
            print_listing(STATS, rows, arguments)
            sys.stdout.flush()
            if arguments.no_stream:
                return EXIT_OK
            before = now


async def _read(stub: ControlAsyncStub) -> dict[str, TaskStats]:
    """What every node says, by task; a node that does not answer has a note."""
    from orch_cli.commands.common import CALL_TIMEOUT_S, note
    from orch_cli.connection import calling
    from orch_proto.control_pb2 import CallNodesRequest
    from orch_proto.node_pb2 import NodeCall, TaskStatsCall

    with calling("read what tasks use"):
        answers = await stub.CallNodes(
            CallNodesRequest(call=NodeCall(task_stats=TaskStatsCall())), timeout=CALL_TIMEOUT_S
        )
    found = {}
    for answer in answers.answers:
        if answer.result.HasField("error"):
            note(f"orch: node {answer.node_hostname} does not say what its tasks use: {answer.result.error.message}")
        found.update({stats.task_id: stats for stats in answer.result.task_stats.stats})
    return found


async def _rows(
    stub: ControlAsyncStub, arguments: argparse.Namespace, before: Mapping[str, TaskStats], now: Mapping[str, TaskStats]
) -> list[dict[str, str]]:
    from orch_cli.commands.common import fetch, nodes_by_id
    from orch_proto.control_pb2 import Filter
    from orch_proto.objects_pb2 import Task
    from orch_proto.types_pb2 import OBJECT_KIND_TASK

    filters = [Filter(key="stack", values=[arguments.stack])] if arguments.stack else []
    tasks = [task for task in await fetch(stub, OBJECT_KIND_TASK, filters) if isinstance(task, Task)]
    nodes = await nodes_by_id(stub)
    return stats_rows(chosen(tasks, arguments.targets), nodes, before, now, no_trunc=arguments.no_trunc)


def chosen(tasks: Iterable[Task], targets: Iterable[str]) -> list[Task]:
    """The tasks that are meant, all when nobody is named.

    Raises:
        UsageError: a target is no task that there is.
    """
    from orch_cli.errors import UsageError
    from orch_cli.output.tasks import task_name

    every = sorted(tasks, key=lambda task: natural_key(task_name(task)))
    wanted = list(targets)
    if not wanted:
        return every
    found: dict[str, Task] = {}
    for target in wanted:
        fitting = [
            task
            for task in every
            if target in (task.service_name, task_name(task), task.service_id) or task.id.startswith(target)
        ]
        if not fitting:
            raise UsageError(f"there is no service or task {target!r}", "", "look at them: orch ps")
        found.update({task.id: task for task in fitting})
    return list(found.values())


def stats_rows(
    tasks: Iterable[Task],
    nodes: Mapping[str, Node],
    before: Mapping[str, TaskStats],
    now: Mapping[str, TaskStats],
    *,
    no_trunc: bool = False,
) -> list[dict[str, str]]:
    """A row for each task that runs. CPU is of one processor: 200 % is two of them busy."""
    from orch_cli.output.tasks import task_name
    from orch_cli.output.units import format_memory, format_size

    rows = []
    for task in tasks:
        stats = now.get(task.id)
        if stats is None:
            continue
        node = nodes.get(task.node_id)
        limit = stats.memory_limit_bytes or (node.description.resources.memory_bytes if node is not None else 0)
        share = f"{stats.memory_usage_bytes / limit * 100:.2f}%" if limit else "-"
        earlier = before.get(task.id)
        usage = f"{format_memory(stats.memory_usage_bytes)} / {format_memory(limit) if limit else '-'}"
        rows.append(
            {
                "ID": short_id(task.id, full=no_trunc),
                "Name": task_name(task),
                "Node": node.description.hostname if node is not None else short_id(task.node_id),
                "CPUPerc": cpu_percent(earlier, stats),
                "MemUsage": usage,
                "MemPerc": share,
                "NetIO": f"{format_size(stats.network_receive_bytes)} / {format_size(stats.network_transmit_bytes)}",
                "BlockIO": f"{format_size(stats.block_read_bytes)} / {format_size(stats.block_write_bytes)}",
                "PIDs": str(stats.pids),
            }
        )
    return rows


def cpu_percent(before: TaskStats | None, now: TaskStats) -> str:
    """The share of one processor between two readings; ``--`` when there was none before."""
    if before is None or now.sampled_at_unix_ms <= before.sampled_at_unix_ms:
        return "--"
    spent_ns = max(now.cpu_usage_ns - before.cpu_usage_ns, 0)
    return f"{spent_ns / ((now.sampled_at_unix_ms - before.sampled_at_unix_ms) * 1_000_000) * 100:.2f}%"


VERBS: Final[Mapping[str, Verb]] = {"stats": Verb(_configure, _run)}
