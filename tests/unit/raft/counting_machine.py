"""A small state machine: it remembers every command in order."""

from collections.abc import Callable
from typing import BinaryIO


class CountingMachine:
    """Answers each command with how many there were."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.indexes: list[int] = []
        self.restored = 0
        self.snapshots = 0

    def apply(self, index: int, term: int, data: bytes) -> object:
        """Remember a command. `b"poison"` raises."""
        assert term >= 1
        if data == b"poison":
            raise ValueError("poison")
        self.commands.append(data)
        self.indexes.append(index)
        return len(self.commands)

    def snapshot(self) -> Callable[[BinaryIO], None]:
        """Write every command on a line."""
        self.snapshots += 1
        commands = tuple(self.commands)

        def write(stream: BinaryIO) -> None:
            stream.writelines(command + b"\n" for command in commands)

        return write

    def restore(self, stream: BinaryIO) -> Callable[[], None]:
        """Read what `snapshot` wrote."""
        commands = stream.read().split(b"\n")[:-1]

        def install() -> None:
            self.restored += 1
            self.commands = commands

        return install
