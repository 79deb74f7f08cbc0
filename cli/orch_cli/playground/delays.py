"""Whose packets are late: puts the delay line between slow nodes' cables and the bridge, and takes it out again."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from orch_cli.playground import delay_line, network, tools
from orch_cli.playground.faults import Delay
from orch_cli.playground.layout import Layout
from orch_cli.playground.processes import in_network_namespace, kill_until_gone
from orch_rpc.errors import FailedPrecondition, InvalidArgument

_END_LIMIT_S: Final = 5.0
_LONGEST_MS: Final = 60_000.0
#: An interface that may send no bundles of segments cuts them before it sends: each packet then is a frame of its own.
_ONE_SEGMENT: Final = 1
_SEGMENTS: Final = 65_535


def milliseconds(text: str) -> float:
    """The milliseconds that ``50``, ``50ms`` or ``1.5s`` mean.

    Raises:
        InvalidArgument: it is no time, or longer than a minute.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)?", text)
    value = float(match[1]) * (1000 if match[2] == "s" else 1) if match else -1.0
    if not 0 <= value <= _LONGEST_MS:
        raise InvalidArgument(
            f"cannot delay packets by {text!r}", "it is no time up to 60 s", "write milliseconds: 50, or 50ms"
        )
    return value


def apply(layout: Layout, delays: Mapping[str, Delay]) -> None:
    """Makes these the only delays; what is in flight at that moment is lost.

    Raises:
        FailedPrecondition: this host lets nobody make taps.
        OrchError: the kernel refused.
    """
    kill_until_gone(lambda: in_network_namespace(layout.switch_path), _END_LIMIT_S)
    running = [node for node in layout.nodes if node.namespace_path.exists()]
    slow = {node.hostname: delays[node.hostname] for node in running if node.hostname in delays}
    if slow:
        _start(layout, slow)
    commands = []
    for node in running:
        if node.hostname in slow:
            tap = delay_line.tap_name(node.port)
            commands += [f"link set {node.port} nomaster", f"link set {tap} master {network.BRIDGE} up"]
        else:
            commands += [f"link set {node.port} master {network.BRIDGE}"]
        segments = _ONE_SEGMENT if node.hostname in slow else _SEGMENTS
        tools.run("ip", "-netns", node.namespace, "link", "set", "eth0", "gso_max_segs", str(segments))
    tools.run("ip", "-netns", layout.switch, "-batch", "-", stdin="\n".join(commands))


def _start(layout: Layout, slow: Mapping[str, Delay]) -> None:
    words = [f"{node}={delay.delay_ms},{delay.jitter_ms}" for node, delay in slow.items()]
    command = [tools.find("nsenter"), f"--net={layout.switch_path}", "--"]
    command += [sys.executable, "-I", "-m", "orch_cli.playground.delay_line", *words]
    with (layout.run_root / "delay.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd="/", start_new_session=True
        )
    assert process.stdout is not None
    with process.stdout as said:
        if said.readline().strip() != b"ready":
            raise FailedPrecondition(
                "cannot delay packets",
                "the process that carries them did not start",
                f"its reason is the end of {log.name}: perhaps /dev/net/tun is missing",
            )


def line_runs(layout: Layout) -> bool:
    """Whether the process that carries slow nodes' frames is there; without it they are cut off."""
    return bool(in_network_namespace(layout.switch_path))
