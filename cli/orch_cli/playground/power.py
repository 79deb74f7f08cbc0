"""Ends, stops and starts nodes and their parts: the failures of hosts and of processes, rehearsed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Final

from orch_cli.playground import daemon, delays, faults, leftovers, network, record
from orch_cli.playground.layout import NodePlace
from orch_cli.playground.processes import (
    ProcessId,
    in_network_namespace,
    kill_until_gone,
    wait_until,
    with_folder_option,
)
from orch_cli.playground.record import Record
from orch_rpc.errors import FailedPrecondition, Internal, InvalidArgument

#: Seconds from SIGTERM to SIGKILL, as when a host shuts down.
SHUTDOWN_GRACE_S: Final = 10.0
_KILL_LIMIT_S: Final = 20.0
_SETTLE_LIMIT_S: Final = 5.0

WHOLE_NODE: Final = "all"
DAEMON: Final = "orchd"
#: The other processes of a node, each the module that it runs.
MODULES: Final = {
    "manager": "orch_manager",
    "keeper": "orch_runtime.keeper",
    "supervisor": "orch_runtime.supervisor.main",
    "network": "orch_network.netd",
}
PARTS: Final = (WHOLE_NODE, DAEMON, *MODULES)


def signal_number(name: str) -> signal.Signals:
    """The signal called ``KILL``, ``SIGKILL`` or ``9``.

    Raises:
        InvalidArgument: there is no such signal.
    """
    try:
        return (
            signal.Signals(int(name)) if name.isdecimal() else signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
        )
    except (KeyError, ValueError) as error:
        raise InvalidArgument(
            f"cannot send {name}", "there is no such signal", "use KILL, STOP, CONT, TERM or another of kill -l"
        ) from error


def processes_of(nodes: Iterable[NodePlace]) -> list[ProcessId]:
    """Every process of some nodes: daemons, their helpers, containers, and what was run with `exec`."""
    places = list(nodes)
    parts = with_folder_option(*(node.run_dir for node in places))
    inside = in_network_namespace(*(node.namespace_path for node in places))
    contained = chain.from_iterable(leftovers.processes_in_cgroups(node.cgroup_parent) for node in places)
    # The daemons' processes first: they shall not start again what is being killed.
    return list(dict.fromkeys([*parts, *inside, *contained]))


def processes_of_part(node: NodePlace, part: str) -> list[ProcessId]:
    """The processes of a part of a node, one of `PARTS`; none if it does not run."""
    if part == WHOLE_NODE:
        return processes_of([node])
    if part == DAEMON:
        identity = record.daemon_of(node)
        return [identity] if identity is not None and identity.is_alive() else []
    told = with_folder_option(node.run_dir)
    return [identity for identity in told if _runs_module(identity.pid, MODULES[part])]


def _runs_module(pid: int, module: str) -> bool:
    """Whether a process runs a module and is no spare child of it, made for a container to come."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    in_inner_namespace = any(line.startswith("NSpid:") and len(line.split()) > 2 for line in status.splitlines())
    return module.encode() in words and not in_inner_namespace


def send(found: Record, node: NodePlace, part: str, number: signal.Signals) -> int:
    """Sends a signal to a part of a node; returns to how many processes.

    SIGKILL to the whole node is a loss of power: what a reboot clears, is cleared. SIGTERM to the whole node is an
    orderly end: after a grace of 10 s the power goes off. SIGSTOP and SIGCONT take effect before this returns.

    Raises:
        FailedPrecondition: no such process runs.
        Internal: something would not go.
    """
    victims = processes_of_part(node, part)
    if not victims:
        what = node.hostname if part == WHOLE_NODE else f"{part} of {node.hostname}"
        raise FailedPrecondition(
            f"cannot send SIG{number.name.removeprefix('SIG')} to {what}",
            "nothing of it runs",
            f"start it with: orch playground start{record.name_option(found.layout.name)} {node.hostname}",
        )
    if number == signal.SIGSTOP:
        return _repeat(node, part, number, lambda identity: not identity.is_stopped())
    if number == signal.SIGCONT:
        return _repeat(node, part, number, ProcessId.is_stopped)
    if part == WHOLE_NODE and number in {signal.SIGKILL, signal.SIGTERM}:
        if number == signal.SIGTERM:
            for identity in victims:
                identity.send(number)
            wait_until(lambda: not processes_of([node]), SHUTDOWN_GRACE_S)
        power_off(node)
        return len(victims)
    sent = sum(identity.send(number) for identity in victims)
    if number == signal.SIGKILL:
        wait_until(lambda: not any(identity.is_alive() for identity in victims), _SETTLE_LIMIT_S)
    return sent


def _repeat(node: NodePlace, part: str, number: signal.Signals, wants: Callable[[ProcessId], bool]) -> int:
    """Sends a signal until nobody is left who wants it: processes fork meanwhile."""
    reached: set[ProcessId] = set()

    def nobody_left() -> bool:
        left = [identity for identity in processes_of_part(node, part) if wants(identity)]
        reached.update(identity for identity in left if identity.send(number))
        return not left

    wait_until(nobody_left, _SETTLE_LIMIT_S)
    return len(reached)


def power_off(node: NodePlace) -> None:
    """Ends a node as a loss of power does: processes, memory and kernel state are gone, its disk is not.

    Raises:
        FailedPrecondition: a process does not die.
        Internal: something would not go.
    """
    end_processes([node])
    stuck = [str(path) for path in leftovers.remove_cgroups(node.cgroup_parent)]
    network.remove_node(node)
    stuck += leftovers.unmount_beneath(node.state_dir)
    stuck += leftovers.remove_folders(node.run_dir)
    if stuck:
        raise Internal(
            f"cannot clear what {node.hostname} left in the kernel",
            f"still in use: {', '.join(stuck[:10])}",
            "look for what uses it, then repeat",
        )
    node.daemon_file.unlink(missing_ok=True)


def end_processes(nodes: Iterable[NodePlace]) -> None:
    """Kills every process of some nodes.

    Raises:
        FailedPrecondition: a process does not die.
    """
    places = list(nodes)
    left = kill_until_gone(lambda: processes_of(places), _KILL_LIMIT_S)
    if left:
        raise FailedPrecondition(
            f"cannot end all processes of {', '.join(node.hostname for node in places)}",
            f"these do not die: {', '.join(str(identity.pid) for identity in left[:10])}",
            "look at their state in /proc/PID/stack, then repeat",
        )


def start(found: Record, node: NodePlace) -> ProcessId | None:
    """Starts a node's daemon where the last one left off, and makes its network when it is off; None when it runs.

    Raises:
        OrchError: it does not start.
    """
    with record.exclusively(found.layout):
        last = record.daemon_of(node)
        if last is not None and last.is_alive():
            return None
        if not found.layout.switch_path.exists():  # the host was started anew
            network.make_switch(found.layout)
        if not node.namespace_path.exists():
            network.make_node(found.layout, node)
            slow = faults.load(found.layout).delays
            if slow:
                delays.apply(found.layout, slow)
        return daemon.start(found, node)
