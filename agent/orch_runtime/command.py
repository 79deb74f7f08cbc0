"""`orch-runtime`: the OCI command line; and, for a `--root` that a keeper serves, the keeper's.

Which of the two is decided by the socket of a running keeper below `--root`, and by the commands that only a keeper
has. Nothing else is imported before that is known: every container that another engine starts waits for it.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_KEEPER_COMMANDS = ("keeper", "stats", "version", "shutdown")
_ENTERING = ("create", "run", "exec")
_KEEPER_SOCKET = "runtime.sock"
_WITH_VALUE = ("--root", "--log", "--log-format", "--cgroup-manager", "--rootless", "--criu")


def _root_and_command(words: Sequence[str]) -> tuple[str, str]:
    """Return `--root` ("" when not given) and the command's name."""
    root = ""
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("-"):
            return root, word
        name, equals, value = word.partition("=")
        if name in _WITH_VALUE and not equals:
            position += 1
            value = words[position] if position < len(words) else ""
        if name == "--root":
            root = value
        position += 1
    return root, ""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `orch-runtime`."""
    words = list(sys.argv[1:] if argv is None else argv)
    root, command = _root_and_command(words)
    if command in _KEEPER_COMMANDS or (root and os.path.exists(f"{root}/{_KEEPER_SOCKET}")):
        from orch_runtime.keeper_command import main as keeper_main  # noqa: PLC0415 -- see the top

        return keeper_main(words)
    if command in _ENTERING:
        from orch_runtime.errors import KernelError  # noqa: PLC0415 -- see the top
        from orch_runtime.oci.sealed import run_from_readonly_mount  # noqa: PLC0415 -- see the top

        try:
            run_from_readonly_mount(words)
        except KernelError as error:
            sys.stderr.write(f"orch-runtime: cannot protect the interpreter from containers: {error}\n")
            return 1
    from orch_runtime.oci.command import main as oci_main  # noqa: PLC0415 -- see the top

    return oci_main(words)


if __name__ == "__main__":
    raise SystemExit(main())
