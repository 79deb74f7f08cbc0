"""``orch playground VERB``: its command line; what the verbs do stands in the modules beside."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError
from pathlib import Path
from typing import Final

from orch_cli.playground import cluster, delays, faults, lifecycle, partition, power, record, status, tools
from orch_cli.playground.layout import DEFAULT_NAME, DEFAULT_SUBNET, Layout, NodePlace
from orch_cli.playground.record import Record
from orch_rpc.errors import FailedPrecondition, InvalidArgument, OrchError, PermissionDenied

_NODE_HELP: Final = "node-1, or 1"
_Action = Callable[[argparse.Namespace, list[str]], int]


def run(argv: Sequence[str]) -> int:
    """Carries out ``orch playground ARGV``; the exit status is 0, 1 for an error, 2 for a wrong command line."""
    words, command = _split_command(list(argv))
    try:
        options = _parser().parse_args(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 2
    action: _Action = options.action
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

    def add(name: str, action: _Action, text: str, epilog: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, epilog=epilog)
        command.add_argument("--name", default=DEFAULT_NAME, help=f"of the playground (default: {DEFAULT_NAME})")
        command.set_defaults(action=action)
        return command

    _configure_up(add("up", _up, "Make a playground and wait until its cluster is ready."))
    add("down", _down, "Remove a playground, running or broken, with all that is in it.")
    add("status", _status, "Show a playground's nodes, and what is broken on purpose.")
    add("env", _env, "Print the line that points the other commands at a manager that answers.")
    _configure_kill(add("kill", _kill, "Kill a node as a loss of power does, or send a signal to a part of it."))
    start = add("start", _start, "Start nodes again after they, or their daemons, were killed.")
    start.add_argument("nodes", metavar="NODE", nargs="*", help=f"{_NODE_HELP}; else all that do not run")
    execute = add("exec", _exec, "Run a command on a node: exec NODE -- COMMAND")
    execute.add_argument("node", metavar="NODE", help=_NODE_HELP)
    part = add(
        "partition",
        _partition,
        "Drop what nodes send to each other, in place of what was dropped so far. The host still reaches all of them.",
        "'node-1,node-2|node-3' parts groups; 'node-1>node-2' cuts one way: the second does not hear the first; "
        "'node-3' cuts it from all others. Nodes that are not named keep their links. Mind the quotes.",
    )
    part.add_argument("expressions", metavar="EXPRESSION", nargs="+", help="who is parted from whom")
    delay = add(
        "delay",
        _delay,
        "Make packets late on their way to and from nodes, each way: a round trip takes twice as much longer.",
    )
    delay.add_argument(
        "words", metavar="[NODE…] MS", nargs="+", help="50, or 1.5s; 0 for none; of all nodes if none is named"
    )
    delay.add_argument("--jitter", default="0", metavar="MS", help="up to so much more, for each packet another time")
    add("heal", _heal, "End all partitions and delays.")
    return parser


def _configure_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--managers", type=int, default=1, metavar="N", help="how many managers (default: 1)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="how many workers (default: 0)")
    parser.add_argument(
        "--subnet", default=str(DEFAULT_SUBNET), help=f"the nodes' addresses (default: {DEFAULT_SUBNET})"
    )
    parser.add_argument("--metrics", action="store_true", help="show metrics on the nodes' addresses, not only inside")
    parser.add_argument(
        "--own-images",
        action="store_true",
        help="give each node an image store of its own, as hosts have; else what one node has, all have",
    )
    parser.add_argument(
        "--no-cluster", action="store_true", help="start the daemons only: the nodes are in no cluster yet"
    )


def _configure_kill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", metavar="NODE", help=_NODE_HELP)
    parser.add_argument(
        "-s", "--signal", default="KILL", help="KILL (default), STOP, CONT, TERM or another, by name or number"
    )
    parser.add_argument(
        "--part",
        choices=power.PARTS,
        default=power.WHOLE_NODE,
        help="all (default): the whole node with its containers, as if the host lost power; or one of its processes",
    )


def _require_root() -> None:
    if os.geteuid() != 0:
        raise PermissionDenied(
            "cannot use a playground", "it is made of network namespaces, which need root", "repeat it with sudo"
        )


# ---- up, down ----------------------------------------------------------------------------------------


def _up(options: argparse.Namespace, _: list[str]) -> int:
    made = Record(
        _layout(options), managers=options.managers, show_metrics=options.metrics, share_images=not options.own_images
    )
    lifecycle.up(made, make_cluster=not options.no_cluster)
    print(_welcome(made, in_cluster=not options.no_cluster))
    return 0


def _layout(options: argparse.Namespace) -> Layout:
    try:
        subnet = IPv4Network(options.subnet)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise InvalidArgument(
            f"cannot use {options.subnet} for a playground", str(error), "write it as in 172.31.250.0/24"
        ) from error
    if options.managers < 1 or options.workers < 0:
        raise InvalidArgument(
            f"cannot start {options.managers} managers and {options.workers} workers",
            "a cluster needs at least one manager",
            "leave both options out for one node that is a manager",
        )
    count = options.managers + options.workers
    if count > subnet.num_addresses // 4:
        raise InvalidArgument(
            f"cannot start {count} nodes", f"{subnet} has room for {subnet.num_addresses // 4}", "use --subnet"
        )
    return Layout(options.name, subnet, count)


def _welcome(made: Record, *, in_cluster: bool) -> str:
    layout = made.layout
    option = record.name_option(layout.name)
    nodes = ", ".join(f"{node.hostname} at {node.address}" for node in layout.nodes)
    lines = [f"Playground {layout.name} is up: {nodes}.", ""]
    if in_cluster:
        lines += [
            "  Point the other commands at it:  " + f'eval "$(orch playground env{option})"',
            "  Deploy a stack:                  orch deploy compose-examples/hello/stack.yml",
            f"  Its published ports answer at:   http://{layout.nodes[0].address}:PORT",
        ]
    else:
        lines += [f"  Make a cluster of the first:     orch playground exec{option} node-1 -- orch cluster init"]
    if made.show_metrics:
        lines += [f"  Watch it with Prometheus:        prometheus --config.file={layout.scrape_file}"]
    return "\n".join([*lines, f"  Remove it all:                   orch playground down{option}"])


def _down(options: argparse.Namespace, _: list[str]) -> int:
    was_there = lifecycle.down(options.name)
    print(f"Playground {options.name} is removed." if was_there else f"There is no playground {options.name}.")
    return 0


# ---- status, env, exec -------------------------------------------------------------------------------


def _status(options: argparse.Namespace, _: list[str]) -> int:
    rows = asyncio.run(status.rows(record.load(options.name)))
    widths = [max(len(row[column]) for row in [status.COLUMNS, *rows]) for column in range(len(status.COLUMNS))]
    for row in [status.COLUMNS, *rows]:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _env(options: argparse.Namespace, _: list[str]) -> int:
    found = record.load(options.name)
    answer = asyncio.run(cluster.manager_that_answers(found))
    if answer is None:
        raise FailedPrecondition(
            f"cannot name a manager of playground {options.name}",
            "none answers",
            f"look at it with: orch playground status{record.name_option(options.name)}",
        )
    print(f"export ORCH_HOST=unix://{answer[0].manager_socket}")
    return 0


def _exec(options: argparse.Namespace, command: list[str]) -> int:
    if not command:
        raise InvalidArgument(
            "cannot run nothing", "no command was given", "write it after two hyphens: exec node-1 -- ip address"
        )
    found = record.load(options.name)
    node = found.layout.node(options.node)
    if not node.namespace_path.exists():
        raise FailedPrecondition(
            f"cannot enter {node.hostname}",
            "it is off",
            f"start it with: orch playground start{record.name_option(options.name)} {node.hostname}",
        )
    enter = [tools.find("nsenter"), f"--net={node.namespace_path}"]
    identity = record.daemon_of(node)
    if identity is not None and identity.is_alive():
        enter.append(f"--uts=/proc/{identity.pid}/ns/uts")
    os.execve(enter[0], [*enter, "--", *command], _environment(node))  # noqa: S606 - becomes what was asked for


def _environment(node: NodePlace) -> dict[str, str]:
    """On a node `orch` is this `orch`, and speaks to that node: the daemon's socket stands beside the manager's."""
    own_folder = str(Path(sys.executable).parent)
    path = os.pathsep.join([own_folder, os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "ORCH_HOST": f"unix://{node.manager_socket}"}


# ---- failures ----------------------------------------------------------------------------------------


def _kill(options: argparse.Namespace, _: list[str]) -> int:
    number = power.signal_number(options.signal)
    found = record.load(options.name)
    node = found.layout.node(options.node)
    with record.exclusively(found.layout):
        count = power.send(found, node, options.part, number)
    what = node.hostname if options.part == power.WHOLE_NODE else f"{options.part} of {node.hostname}"
    processes = "1 process" if count == 1 else f"{count} processes"
    if not node.namespace_path.exists():
        print(f"{node.hostname} is off: {processes} ended.")
    else:
        print(f"{number.name} was sent to {what}: {processes}.")
    return 0


def _start(options: argparse.Namespace, _: list[str]) -> int:
    found = record.load(options.name)
    nodes = [found.layout.node(name) for name in options.nodes]
    started = {node: power.start(found, node) for node in nodes or found.layout.nodes}
    asyncio.run(cluster.answering(found, [node for node, identity in started.items() if identity is not None]))
    for node, identity in started.items():
        if identity is not None:
            print(f"{node.hostname} is started.")
        elif nodes:
            print(f"{node.hostname} runs already.")
    if not nodes and not any(started.values()):
        print("All nodes run already.")
    return 0


def _partition(options: argparse.Namespace, _: list[str]) -> int:
    found = record.load(options.name)
    cuts = partition.parse(found.layout, options.expressions)
    with record.exclusively(found.layout):
        partition.apply(found.layout, cuts)
        faults.save(found.layout, replace(faults.load(found.layout), cuts=cuts))
    for node in found.layout.nodes:
        words = partition.describe(cuts, node.hostname)
        if words:
            print(f"{node.hostname}: {words}")
    return 0


def _delay(options: argparse.Namespace, _: list[str]) -> int:
    found = record.load(options.name)
    *names, time = options.words
    nodes = [found.layout.node(name) for name in names] or found.layout.nodes
    delay = faults.Delay(delays.milliseconds(time), delays.milliseconds(options.jitter))
    with record.exclusively(found.layout):
        before = faults.load(found.layout)
        wanted = {**before.delays, **{node.hostname: delay for node in nodes}}
        slow = {name: one for name, one in wanted.items() if one.delay_ms or one.jitter_ms}
        delays.apply(found.layout, slow)
        faults.save(found.layout, replace(before, delays=slow))
    for name, one in sorted(slow.items()):
        print(f"{name}: packets are {one}, each way")
    if not slow:
        print("No packets are late.")
    return 0


def _heal(options: argparse.Namespace, _: list[str]) -> int:
    found = record.load(options.name)
    with record.exclusively(found.layout):
        partition.apply(found.layout, frozenset())
        delays.apply(found.layout, {})
        faults.save(found.layout, faults.Faults())
    print("All nodes reach each other.")
    return 0
