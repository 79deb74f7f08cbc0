"""The record of a playground: that it exists, with which options it was made, and which processes its daemons are."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from orch_cli.playground.layout import DEFAULT_SUBNET, NAMESPACES, Layout, NodePlace
from orch_cli.playground.processes import ProcessId
from orch_rpc.errors import FailedPrecondition, NotFound

#: The record is some hundred bytes; more is somebody else's file.
_LARGEST_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Record:
    """What stands in the file beside the layout.

    Args:
        layout: names, paths and addresses.
        managers: so many nodes, the first ones, were made managers; the others workers.
        show_metrics: whether metrics are served on the nodes' addresses.
        share_images: whether the nodes have one image store between them.
    """

    layout: Layout
    managers: int
    show_metrics: bool
    share_images: bool

    def is_manager(self, node: NodePlace) -> bool:
        """Whether the node was made a manager; it may have been demoted or promoted since."""
        return node.number <= self.managers

    @property
    def daemons(self) -> dict[str, ProcessId]:
        """The nodes' daemons, by hostname; those that have ended as well."""
        found = ((node.hostname, daemon_of(node)) for node in self.layout.nodes)
        return {hostname: identity for hostname, identity in found if identity is not None}

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

    def _text(self) -> str:
        return json.dumps(
            {
                "name": self.layout.name,
                "subnet": str(self.layout.subnet),
                "node_count": self.layout.node_count,
                "managers": self.managers,
                "show_metrics": self.show_metrics,
                "share_images": self.share_images,
            }
        )


def note_daemon(node: NodePlace, identity: ProcessId) -> None:
    """Writes down which process the node's daemon is, in one step."""
    aside = node.daemon_file.with_suffix(".new")
    aside.write_text(f"{identity.pid} {identity.start_time}", encoding="ascii")
    aside.rename(node.daemon_file)


def daemon_of(node: NodePlace) -> ProcessId | None:
    """The node's last daemon, which may have ended; None if it never had one, or nobody knows any more."""
    try:
        pid, start_time = node.daemon_file.read_text(encoding="ascii").split()
        return ProcessId(int(pid), int(start_time))
    except (FileNotFoundError, ValueError):
        return None


@contextmanager
def exclusively(layout: Layout) -> Iterator[None]:
    """Lets one command at a time start, end or part nodes of a playground.

    Raises:
        NotFound: the playground was removed.
    """
    try:
        file = layout.record.open("rb")
    except FileNotFoundError as error:
        raise _unknown(layout.name, layout.record) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
        raise _unknown(name, path)
    return _parse(name, path)


def _unknown(name: str, path: Path) -> NotFound:
    return NotFound(
        f"cannot find playground {name}",
        f"there is no {path}",
        f"start it with: orch playground up{name_option(name)}",
    )


def load_or_guess(name: str) -> Record:
    """The record, or when there is none or it is broken the one that finds the most leftovers: for `down`."""
    path = Layout(name, DEFAULT_SUBNET, 1).record
    try:
        return _parse(name, path)
    except (OSError, FailedPrecondition):
        return Record(
            Layout(name, DEFAULT_SUBNET, _left_nodes(name)), managers=1, show_metrics=False, share_images=False
        )


def _left_nodes(name: str) -> int:
    layout = Layout(name, DEFAULT_SUBNET, 1)
    numbers = [1]
    beginning = layout.nodes[0].namespace.removesuffix("1")
    for root, prefix in ((layout.run_root, "node-"), (layout.state_root, "node-"), (NAMESPACES, beginning)):
        if root.is_dir():
            names = [entry.removeprefix(prefix) for entry in os.listdir(root) if entry.startswith(prefix)]
            numbers += [int(text) for text in names if text.isdecimal()]
    return max(numbers)


def _parse(name: str, path: Path) -> Record:
    with path.open(encoding="utf-8") as file:
        text = file.read(_LARGEST_BYTES)
    try:
        content = json.loads(text)
        return Record(
            Layout(name, IPv4Network(content["subnet"]), int(content["node_count"])),
            managers=int(content["managers"]),
            show_metrics=bool(content["show_metrics"]),
            share_images=bool(content["share_images"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPrecondition(
            f"cannot read the record of playground {name}",
            f"{path} is damaged ({error})",
            f"remove what is left with: orch playground down{name_option(name)}",
        ) from error
