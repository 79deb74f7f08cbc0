"""``orch version``, ``orch events`` and ``orch system df``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from orch_cli.errors import EXIT_OK, CliError
from orch_cli.output.listing import Listing, add_list_options, natural_key, print_listing
from orch_cli.verbs import Verb
from orch_proto.version import VERSION


def _configure_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--client", action="store_true", help="this command's version alone")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text or json")


def _run_version(arguments: argparse.Namespace) -> int | Coroutine[Any, Any, int]:
    """The client's version, and the daemon's where it runs."""
    return _print_versions(arguments, "") if arguments.client else _ask_version(arguments)


async def _ask_version(arguments: argparse.Namespace) -> int:
    """Asks the daemon; that none runs is no error."""
    from orch_cli.connection import calling, daemon
    from orch_proto.daemon_pb2 import NodeInfoRequest

    server = ""
    try:
        async with daemon(arguments.host) as stub:
            with calling("ask this node's daemon"):
                server = (await stub.NodeInfo(NodeInfoRequest(), timeout=5)).version
    except CliError as error:
        print(f"no version of the daemon: {error.why or error.what}", file=sys.stderr)
    return _print_versions(arguments, server)


def _print_versions(arguments: argparse.Namespace, server: str) -> int:
    if arguments.format == "json":
        print(json.dumps({"client": VERSION, "daemon": server or None}))
    else:
        print(f"orch {VERSION}")
        if server:
            print(f"orchd {server}")
    return EXIT_OK


def _configure_events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", default="", metavar="TIME", help="events since: 2026-01-31T12:00:00Z, or 10m")
    parser.add_argument("-f", "--filter", metavar="KEY=VALUE", action="append", default=[], help="show what matches")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text or json")


async def _run_events(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.common import kind_word, parse_filters
    from orch_cli.commands.logs import parse_time_ms
    from orch_cli.connection import calling, control
    from orch_cli.output.objects import to_json
    from orch_cli.output.units import format_time
    from orch_proto.control_pb2 import EventsRequest

    filters = parse_filters(arguments.filter, ("id", "name", "label", "stack", "service", "node"))
    since = parse_time_ms(arguments.since, time.time_ns() // 1_000_000)
    async with control(arguments.host) as stub:
        with calling("follow the events"):
            async for event in stub.Events(EventsRequest(since_unix_ms=since, filters=filters)):
                if arguments.format == "json":
                    print(json.dumps(to_json(event), ensure_ascii=False), flush=True)
                else:
                    reason = f": {event.reason}" if event.reason else ""
                    stamp = format_time(event.timestamp_unix_ms)
                    print(f"{stamp} {kind_word(event.kind)} {event.object_name} {event.action}{reason}", flush=True)
    return EXIT_OK


USAGES: Final = Listing(
    columns=(
        ("Node", "NODE"),
        ("Type", "TYPE"),
        ("Total", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ),
    quiet="Size",
)


def _configure_df(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", default="", metavar="NODE", help="one node's disk; else of all nodes")
    add_list_options(parser)


async def _run_df(arguments: argparse.Namespace) -> int:
    from orch_cli.commands.image import ask_nodes
    from orch_cli.connection import control
    from orch_cli.output.units import format_size
    from orch_proto.node_pb2 import DiskUsageCall, NodeCall

    async with control(arguments.host) as stub:
        call = NodeCall(disk_usage=DiskUsageCall())
        answers = await ask_nodes(stub, call, arguments.node, "measure the disks")
    rows = []
    for answer in sorted(answers, key=lambda one: natural_key(one.node_hostname)):
        for usage in answer.result.disk_usage.usages:
            share = f" ({100 * usage.reclaimable_bytes // usage.size_bytes}%)" if usage.size_bytes else ""
            rows.append(
                {
                    "Node": answer.node_hostname or answer.node_id,
                    "Type": usage.kind,
                    "Total": str(usage.total),
                    "Active": str(usage.active),
                    "Size": format_size(usage.size_bytes),
                    "Reclaimable": format_size(usage.reclaimable_bytes) + share,
                }
            )
    print_listing(USAGES, rows, arguments)
    return EXIT_OK


VERBS: Final[Mapping[str, Verb]] = {
    "df": Verb(_configure_df, _run_df),
    "version": Verb(_configure_version, _run_version),
    "events": Verb(_configure_events, _run_events),
}
