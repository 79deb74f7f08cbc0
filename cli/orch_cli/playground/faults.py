"""What is broken on purpose in a playground's network, kept in a file so that `status` can tell it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from orch_cli.playground.layout import Layout
from orch_cli.playground.partition import Cuts


@dataclass(frozen=True)
class Delay:
    """How late a node's packets are, each way.

    Args:
        delay_ms: at least.
        jitter_ms: at most so much more, evenly drawn for each packet; order is kept.
    """

    delay_ms: float
    jitter_ms: float = 0.0

    def __str__(self) -> str:
        more = f" to {self.delay_ms + self.jitter_ms:g}" if self.jitter_ms else ""
        return f"{self.delay_ms:g}{more} ms late"


@dataclass(frozen=True)
class Faults:
    """All faults at once."""

    cuts: Cuts = frozenset()
    delays: dict[str, Delay] = field(default_factory=dict)


def load(layout: Layout) -> Faults:
    """The faults in force; none where there is no file, as after a reboot of the host."""
    try:
        content = json.loads(layout.faults_file.read_text(encoding="utf-8"))
        return Faults(
            frozenset((str(source), str(target)) for source, target in content["cuts"]),
            {str(node): Delay(float(delay), float(jitter)) for node, (delay, jitter) in content["delays"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Faults()


def save(layout: Layout, faults: Faults) -> None:
    """Writes the faults down, in one step."""
    content = {
        "cuts": sorted(faults.cuts),
        "delays": {node: [delay.delay_ms, delay.jitter_ms] for node, delay in faults.delays.items()},
    }
    aside = layout.faults_file.with_suffix(".new")
    aside.write_text(json.dumps(content), encoding="utf-8")
    aside.rename(layout.faults_file)
