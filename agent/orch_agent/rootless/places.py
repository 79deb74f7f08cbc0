"""Where an ordinary user's orchd keeps things: the XDG base directory specification's folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orch_agent.rootless.errors import RootlessError


def state_dir(environment: Mapping[str, str]) -> Path:
    """What outlives a reboot: $XDG_DATA_HOME/orch, else ~/.local/share/orch.

    Raises:
        RootlessError: neither variable is an absolute path.
    """
    data = environment.get("XDG_DATA_HOME", "")
    home = environment.get("HOME", "")
    if data.startswith("/"):
        return Path(data) / "orch"
    if home.startswith("/"):
        return Path(home) / ".local" / "share" / "orch"
    raise RootlessError("cannot choose a state folder: HOME is not set; set it, or name one with --state-dir")


def run_dir(environment: Mapping[str, str]) -> Path:
    """Sockets and what must not outlive a reboot: $XDG_RUNTIME_DIR/orch. The command line looks there too.

    Raises:
        RootlessError: the variable is no absolute path.
    """
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if not runtime.startswith("/"):
        raise RootlessError(
            "cannot choose a folder for sockets: XDG_RUNTIME_DIR is not set, which a login makes; log in rather than "
            "use su (or `loginctl enable-linger USER`), or name a folder in memory with --run-dir"
        )
    return Path(runtime) / "orch"
