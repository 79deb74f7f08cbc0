"""`up` and `down`: the whole of a playground made, and the whole of it removed, whatever state it is in."""

from __future__ import annotations

import asyncio
import sys
from itertools import chain
from typing import Final

from orch_cli.playground import cluster, daemon, leftovers, network, power, record
from orch_cli.playground.processes import in_network_namespace, kill_until_gone
from orch_cli.playground.record import Record
from orch_rpc.errors import Internal, OrchError

_KILL_LIMIT_S: Final = 20.0


def up(made: Record, *, make_cluster: bool) -> None:
    """Makes the playground and waits until its cluster is ready; what was made is removed again when a step fails.

    Args:
        made: what to make.
        make_cluster: otherwise the daemons run, each in no cluster.

    Raises:
        OrchError: a name or address is taken, a tool is missing, a daemon does not start.
    """
    layout = made.layout
    made.create()
    try:
        network.check_free(layout)
    except OrchError:
        layout.record.unlink()
        layout.state_root.rmdir()
        raise
    try:
        network.make_switch(layout)
        for node in layout.nodes:
            network.make_node(layout, node)
            daemon.start(made, node)
        asyncio.run(cluster.form(made) if make_cluster else cluster.answering(made, layout.nodes))
        if made.show_metrics:
            layout.scrape_file.write_text(scrape_configuration(made), encoding="utf-8")
    except BaseException as error:
        print(f"playground: removing what was made, as it did not start: {type(error).__name__}", file=sys.stderr)
        for line in chain.from_iterable(daemon.last_words(node) for node in layout.nodes):
            print(f"  {line}", file=sys.stderr)
        down(layout.name)
        raise


def scrape_configuration(made: Record) -> str:
    """Prometheus' configuration for this playground."""
    layout = made.layout
    nodes = ", ".join(f'"{node.metrics_address}"' for node in layout.nodes)
    managers = ", ".join(f'"{node.manager_metrics_address}"' for node in layout.nodes if made.is_manager(node))
    return f"""\
global:
  scrape_interval: 5s
scrape_configs:
  - job_name: orch-node
    static_configs:
      - targets: [{nodes}]
  - job_name: orch-manager
    static_configs:
      - targets: [{managers}]
"""


def down(name: str) -> bool:
    """Removes everything of a playground, by force: nothing in it is worth a farewell, and any of it may be broken.

    Args:
        name: of the playground.

    Returns:
        Whether there was anything to remove.

    Raises:
        OrchError: something would not go; the message names it.
    """
    layout = record.load_or_guess(name).layout
    handles = (layout.switch_path, *(node.namespace_path for node in layout.nodes))
    there = (
        layout.record.exists()
        or layout.run_root.exists()
        or bool(leftovers.cgroup_folders(layout.cgroup_root))
        or any(handle.exists() for handle in handles)
    )
    power.end_processes(layout.nodes)
    kill_until_gone(lambda: in_network_namespace(layout.switch_path), _KILL_LIMIT_S)
    stuck = [str(path) for path in leftovers.remove_cgroups(layout.cgroup_root)]
    network.remove(layout)
    stuck += leftovers.remove_folders(layout.run_root, layout.state_root)
    if stuck:
        raise Internal(
            f"cannot remove all of playground {name}",
            f"still in use: {', '.join(stuck[:10])}",
            f"look for what uses it, then repeat: orch playground down{record.name_option(name)}",
        )
    return there
