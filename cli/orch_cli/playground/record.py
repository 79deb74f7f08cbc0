"""The record of a playground: that it exists, and with which options it was made."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from orch_cli.playground.layout import DEFAULT_SUBNET, Layout
from orch_cli.playground.processes import ProcessId
from orch_rpc.errors import FailedPrecondition, NotFound

#: The record is some hundred bytes; more is somebody else's file.
_LARGEST_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Record:
    """What stands in the file beside the layout."""

    layout: Layout
    show_metrics: bool
    daemons: dict[str, ProcessId]

    def create(self) -> None:
        """Claims the name; the file is there before anything else is made.

        Raises:
            FailedPrecondition: the name is taken.
        """
        path = self.layout.record
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self._text())
        except FileExistsError as error:
            raise FailedPrecondition(
                f"cannot start playground {self.layout.name}",
                "it exists already",
                f"look at it with: orch playground status{name_option(self.layout.name)}, "
                f"or remove it with: orch playground down{name_option(self.layout.name)}",
            ) from error

    def save(self) -> None:
        """Replaces the file in one step."""
        aside = self.layout.record.with_suffix(".new")
        aside.write_text(self._text(), encoding="utf-8")
        aside.rename(self.layout.record)

    def _text(self) -> str:
        return json.dumps(
            {
                "name": self.layout.name,
                "subnet": str(self.layout.subnet),
                "node_count": self.layout.node_count,
                "show_metrics": self.show_metrics,
                "daemons": {node: [identity.pid, identity.start_time] for node, identity in self.daemons.items()},
            }
        )


def name_option(name: str) -> str:
    """What a command shown to people needs to mean this playground: nothing for the default one."""
    return "" if name == "playground" else f" --name {name}"


def load(name: str) -> Record:
    """The record of a playground.

    Raises:
        NotFound: there is no playground of that name.
    """
    path = Layout(name, DEFAULT_SUBNET, 1).record
    if not path.exists():
        raise NotFound(
            f"cannot find playground {name}",
            f"there is no {path}",
            f"start it with: orch playground up{name_option(name)}",
        )
    return _parse(name, path)


def load_or_guess(name: str) -> Record:
    """The record, or when there is none or it is broken the one that finds the most leftovers: for `down`."""
    path = Layout(name, DEFAULT_SUBNET, 1).record
    try:
        return _parse(name, path)
    except (OSError, FailedPrecondition):
        return Record(Layout(name, DEFAULT_SUBNET, _left_nodes(name)), show_metrics=False, daemons={})


def _left_nodes(name: str) -> int:
    layout = Layout(name, DEFAULT_SUBNET, 1)
    numbers = [1]
    for root in (layout.run_root, layout.state_root):
        if root.is_dir():
            names = [entry.removeprefix("node-") for entry in os.listdir(root) if entry.startswith("node-")]
            numbers += [int(text) for text in names if text.isdecimal()]
    return max(numbers)


def _parse(name: str, path: Path) -> Record:
    with path.open(encoding="utf-8") as file:
        text = file.read(_LARGEST_BYTES)
    try:
        content = json.loads(text)
        return Record(
            Layout(name, IPv4Network(content["subnet"]), int(content["node_count"])),
            show_metrics=bool(content["show_metrics"]),
            daemons={node: ProcessId(int(pid), int(start)) for node, (pid, start) in content["daemons"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPrecondition(
            f"cannot read the record of playground {name}",
            f"{path} is damaged ({error})",
            f"remove what is left with: orch playground down{name_option(name)}",
        ) from error
