"""Who executes RUN: the promise the builder relies on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Output = Callable[[str], None]
"""Takes one line of the command's output, without its line feed."""


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


class StepRunner(Protocol):
    """Runs commands of a build."""

    def run(self, command: StepCommand, output: Output) -> int:
        """Run to the end and return the exit code (128 + n for a signal); files it wrote are in `upper_dir`.

        Raises:
            BuildError: the command could not be started.
        """
        ...
