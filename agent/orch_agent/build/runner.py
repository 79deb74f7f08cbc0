"""Who executes RUN: the promise the builder relies on."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Output = Callable[[str], None]
"""Takes one line of the command's output, without its line feed."""


@dataclass(frozen=True, slots=True)
class StepMount:
    """Something mounted into the command's root file system for its time only."""

    target: str
    """Absolute, within the container."""
    source: str
    """A file or folder of the host; empty for a tmpfs."""
    read_only: bool
    options: tuple[str, ...] = ()
    """For a tmpfs: `size=...` and `mode=...`."""


@dataclass(frozen=True, slots=True)
class StepCommand:
    """A command and the root file system it runs in."""

    lower_dirs: tuple[str, ...]
    """Layers below, topmost first; at least one."""
    upper_dir: str
    work_dir: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: str
    mounts: tuple[StepMount, ...] = ()
    host_network: bool = True
    """False: a network of its own with nothing in it."""
    stop: threading.Event | None = None
    """Set when the build has failed elsewhere: the command is then ended."""


class StepRunner(Protocol):
    """Runs commands of a build; called from several threads at once."""

    def run(self, command: StepCommand, output: Output) -> int:
        """Run to the end and return the exit code (128 + n for a signal); files it wrote are in `upper_dir`.

        Raises:
            BuildError: the command could not be started, or was ended by `stop`.
        """
        ...
