"""`up` and `down`: the whole of a playground made, and the whole of it removed, whatever state it is in."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Final

from orch_cli.playground import daemon, leftovers, network, record
from orch_cli.playground.layout import Layout, NodePlace
from orch_cli.playground.processes import ProcessId, in_network_namespace, kill_until_gone
from orch_proto import defaults
from orch_rpc.errors import FailedPrecondition, Internal, OrchError, Unimplemented

_KILL_LIMIT_S: Final = 20.0


def up(layout: Layout, *, show_metrics: bool) -> None:
    """Makes the playground and waits until its cluster is ready; what was made is removed again when a step fails.

    Raises:
        OrchError: a name or address is taken, a tool is missing, a daemon does not start.
    """
    if layout.node_count > 1:
        raise Unimplemented(
            f"cannot start a playground of {layout.node_count} nodes",
            "nodes cannot join a cluster yet: this comes together with consensus between managers",
            "start one node: leave --nodes out",
        )
    made = record.Record(layout, show_metrics=show_metrics, daemons={})
    made.create()
    try:
        network.check_free(layout)
    except OrchError:
        layout.record.unlink()
        layout.state_root.rmdir()
        raise
    try:
        network.make(layout)
        daemons: dict[str, ProcessId] = {}
        for node in layout.nodes:
            daemons[node.hostname] = daemon.start(node, show_metrics=show_metrics)
            made = replace(made, daemons=dict(daemons))
            made.save()
        asyncio.run(_make_cluster(layout, daemons))
        if show_metrics:
            layout.scrape_file.write_text(scrape_configuration(layout), encoding="utf-8")
    except BaseException as error:
        print(f"playground: removing what was made, as it did not start: {type(error).__name__}", file=sys.stderr)
        for line in chain.from_iterable(daemon.last_words(node) for node in layout.nodes):
            print(f"  {line}", file=sys.stderr)
        down(layout.name)
        raise


async def _make_cluster(layout: Layout, daemons: dict[str, ProcessId]) -> None:
    for node in layout.nodes:
        await daemon.wait_for_answer(node, daemons[node.hostname])
    first = layout.nodes[0]
    await daemon.init_cluster(first)
    await daemon.wait_until_ready(first, layout.node_count)


def start_again(found: record.Record, node: NodePlace) -> bool:
    """Starts a node's daemon where the last one left off; False when it runs.

    Raises:
        OrchError: it does not start.
    """
    last = found.daemons.get(node.hostname)
    if last is not None and last.is_alive():
        return False
    identity = daemon.start(node, show_metrics=found.show_metrics)
    replace(found, daemons={**found.daemons, node.hostname: identity}).save()
    asyncio.run(daemon.wait_for_answer(node, identity))
    return True


def scrape_configuration(layout: Layout) -> str:
    """Prometheus' configuration for this playground."""
    nodes = ", ".join(f'"{node.address}:{defaults.NODE_METRICS_PORT}"' for node in layout.nodes)
    manager = f'"{layout.nodes[0].address}:{defaults.MANAGER_METRICS_PORT}"'
    return f"""\
global:
  scrape_interval: 5s
scrape_configs:
  - job_name: orch-node
    static_configs:
      - targets: [{nodes}]
  - job_name: orch-manager
    static_configs:
      - targets: [{manager}]
"""


def down(name: str, note: Callable[[str], None] = lambda _: None) -> bool:
    """Removes everything of a playground, asking its daemons first and by force where they do not answer.

    Args:
        name: of the playground.
        note: told what had to be done by force.

    Returns:
        Whether there was anything to remove.

    Raises:
        OrchError: something would not go; the message names it.
    """
    found = record.load_or_guess(name)
    layout = found.layout
    there = layout.record.exists() or layout.run_root.exists() or bool(leftovers.cgroup_folders(layout))
    for node in layout.nodes:
        there = there or node.namespace_path.exists()
        identity = found.daemons.get(node.hostname)
        if node.daemon_socket.exists() and not asyncio.run(daemon.shut_down(node, identity)):
            note(f"{node.hostname} did not shut down by itself: ending its processes")
    _kill_processes(found)
    stuck = [str(path) for path in leftovers.remove_cgroups(layout)]
    network.remove(layout)
    stuck += leftovers.remove_folders(layout)
    if stuck:
        raise Internal(
            f"cannot remove all of playground {name}",
            f"still in use: {', '.join(stuck[:10])}",
            f"look for what uses it, then repeat: orch playground down{record.name_option(name)}",
        )
    return there


def _kill_processes(found: record.Record) -> None:
    def everything() -> list[ProcessId]:
        # The daemons first: none of them shall start again what is being killed.
        recorded = [identity for identity in found.daemons.values() if identity.is_alive()]
        in_nodes = chain.from_iterable(in_network_namespace(node.namespace_path) for node in found.layout.nodes)
        return [*recorded, *in_nodes, *leftovers.processes_in_cgroups(found.layout)]

    left = kill_until_gone(everything, _KILL_LIMIT_S)
    if left:
        raise FailedPrecondition(
            f"cannot end all processes of playground {found.layout.name}",
            f"these do not die: {', '.join(str(identity.pid) for identity in left[:10])}",
            "look at their state in /proc/PID/stack, then repeat",
        )
