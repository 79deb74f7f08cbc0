"""`orch playground up|down|status|env|start|exec`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError
from typing import Final

from orch_cli.playground import daemon, lifecycle, record, tools
from orch_cli.playground.layout import DEFAULT_NAME, DEFAULT_SUBNET, Layout, NodePlace
from orch_proto import daemon_pb2, objects_pb2
from orch_rpc.errors import FailedPrecondition, InvalidArgument, OrchError, PermissionDenied

_COLUMNS: Final = ("NODE", "ADDRESS", "DAEMON", "CLUSTER", "MANAGER", "STATE")


def run(argv: Sequence[str]) -> int:
    """Carries out ``orch playground ARGV``; the exit status is 0, 1 for an error, 2 for a wrong command line."""
    words, command = _split_command(list(argv))
    try:
        options = _parser().parse_args(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 2
    action: Callable[[argparse.Namespace, list[str]], int] = options.action
    try:
        _require_root()
        return action(options, command)
    except OrchError as error:
        print(f"orch: {error}", file=sys.stderr)
        return 1


def _split_command(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    middle = argv.index("--")
    return argv[:middle], argv[middle + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orch playground", description="A whole cluster on this machine, to try things and to break them."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, action: Callable[[argparse.Namespace, list[str]], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--name", default=DEFAULT_NAME, help=f"of the playground (default: {DEFAULT_NAME})")
        command.set_defaults(action=action)
        return command

    start = add("up", _up, "Make a playground and wait until its cluster is ready.")
    start.add_argument("--nodes", type=int, default=1, metavar="N", help="how many nodes (default: 1)")
    start.add_argument(
        "--subnet", default=str(DEFAULT_SUBNET), help=f"addresses of its bridge (default: {DEFAULT_SUBNET})"
    )
    start.add_argument("--metrics", action="store_true", help="show metrics on the nodes' addresses, not only inside")
    add("down", _down, "Remove a playground, running or broken, with all that is in it.")
    add("status", _status, "Show a playground's nodes.")
    add("env", _env, "Print the line that points the other commands at a playground.")
    start_again = add(
        "start", _start, "Start a node's daemon again after it was killed; its containers are taken over."
    )
    start_again.add_argument("node", metavar="NODE", help="node-1, or 1")
    execute = add("exec", _exec, "Run a command on a node: exec NODE -- COMMAND")
    execute.add_argument("node", metavar="NODE", help="node-1, or 1")
    return parser


def _require_root() -> None:
    if os.geteuid() != 0:
        raise PermissionDenied(
            "cannot use a playground", "it is made of network namespaces, which need root", "repeat it with sudo"
        )


def _up(options: argparse.Namespace, _: list[str]) -> int:
    try:
        subnet = IPv4Network(options.subnet)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise InvalidArgument(
            f"cannot use {options.subnet} for a playground", str(error), "write it as in 172.31.250.0/24"
        ) from error
    if not 1 <= options.nodes <= subnet.num_addresses // 4:
        raise InvalidArgument(
            f"cannot start {options.nodes} nodes", f"{subnet} has room for {subnet.num_addresses // 4}", "use --subnet"
        )
    layout = Layout(options.name, subnet, options.nodes)
    lifecycle.up(layout, show_metrics=options.metrics)
    print(_welcome(layout, show_metrics=options.metrics))
    return 0


def _welcome(layout: Layout, *, show_metrics: bool) -> str:
    option = record.name_option(layout.name)
    lines = [
        f"Playground {layout.name} is up: "
        + ", ".join(f"{node.hostname} at {node.address}" for node in layout.nodes)
        + ".",
        "",
        "  Point the other commands at it:  " + f'eval "$(orch playground env{option})"',
        "  Deploy a stack:                  orch deploy compose-examples/hello/stack.yml",
        f"  Its published ports answer at:   http://{layout.nodes[0].address}:PORT",
        f"  Remove it all:                   orch playground down{option}",
    ]
    if show_metrics:
        lines.insert(-1, f"  Watch it with Prometheus:        prometheus --config.file={layout.scrape_file}")
    return "\n".join(lines)


def _down(options: argparse.Namespace, _: list[str]) -> int:
    was_there = lifecycle.down(options.name, note=lambda text: print(text, file=sys.stderr))
    print(f"Playground {options.name} is removed." if was_there else f"There is no playground {options.name}.")
    return 0


def _status(options: argparse.Namespace, _: list[str]) -> int:
    found = record.load(options.name)
    rows = asyncio.run(_status_rows(found))
    widths = [max(len(row[column]) for row in [_COLUMNS, *rows]) for column in range(len(_COLUMNS))]
    for row in [_COLUMNS, *rows]:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


async def _status_rows(found: record.Record) -> list[tuple[str, ...]]:
    return [await _status_row(node, found) for node in found.layout.nodes]


async def _status_row(node: NodePlace, found: record.Record) -> tuple[str, ...]:
    info = await daemon.info(node) if node.daemon_socket.exists() else None
    if info is None:
        return (node.hostname, str(node.address), "not running", "-", "-", "-")
    membership = daemon_pb2.MembershipState.Name(info.state).removeprefix("MEMBERSHIP_STATE_").lower()
    identity = found.daemons.get(node.hostname)
    pid = f"pid {identity.pid}" if identity is not None and identity.is_alive() else "running"
    manager = "running" if info.manager_running else "not running"
    return (node.hostname, str(node.address), pid, membership, manager, await _state_in_cluster(node, info))


async def _state_in_cluster(node: NodePlace, info: daemon_pb2.NodeInfoResponse) -> str:
    try:
        known = {one.id: one for one in await daemon.list_nodes(node)}
    except OrchError:
        return "manager does not answer"
    one = known.get(info.node_id)
    if one is None:
        return "not in the cluster"
    return objects_pb2.NodeState.Name(one.status.state).removeprefix("NODE_STATE_").lower()


def _start(options: argparse.Namespace, _: list[str]) -> int:
    found = record.load(options.name)
    node = found.layout.node(options.node)
    if lifecycle.start_again(found, node):
        print(f"{node.hostname} is started.")
    else:
        print(f"{node.hostname} runs already.")
    return 0


def _env(options: argparse.Namespace, _: list[str]) -> int:
    node = asyncio.run(_living_manager(record.load(options.name)))
    print(f"export ORCH_HOST=unix://{node.manager_socket}")
    return 0


async def _living_manager(found: record.Record) -> NodePlace:
    for node in found.layout.nodes:
        info = await daemon.info(node) if node.daemon_socket.exists() else None
        if info is not None and info.manager_running:
            return node
    name = found.layout.name
    raise FailedPrecondition(
        f"cannot name a manager of playground {name}",
        "none is running",
        f"look at it with: orch playground status{record.name_option(name)}",
    )


def _exec(options: argparse.Namespace, command: list[str]) -> int:
    if not command:
        raise InvalidArgument(
            "cannot run nothing", "no command was given", "write it after two hyphens: exec node-1 -- ip address"
        )
    found = record.load(options.name)
    node = found.layout.node(options.node)
    if not node.namespace_path.exists():
        raise FailedPrecondition(f"cannot enter {node.hostname}", f"there is no {node.namespace_path}", "start it anew")
    enter = [tools.find("nsenter"), f"--net={node.namespace_path}"]
    identity = found.daemons.get(node.hostname)
    if identity is not None and identity.is_alive():
        enter.append(f"--uts=/proc/{identity.pid}/ns/uts")
    environment = {**os.environ, "ORCH_HOST": f"unix://{node.manager_socket}"}
    os.execve(enter[0], [*enter, "--", *command], environment)  # noqa: S606 - becomes the command that was asked for
