"""Calls the host's tools (ip, nft, nsenter): they make things here; their output is never read back."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from orch_rpc.errors import FailedPrecondition, Internal

_TIMEOUT_S: Final = 20
#: The shells of ordinary users lack the folders where these tools stand.
_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_PACKAGES: Final = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "umount": "mount",
}


def find(tool: str) -> str:
    """The full path of a tool.

    Raises:
        FailedPrecondition: it is not installed.
    """
    path = shutil.which(tool, path=_PATH)
    if path is None:
        raise FailedPrecondition(
            f"cannot run {tool}",
            "it is not installed",
            f"install it with: apt-get install {_PACKAGES.get(tool, tool)}",
        )
    return path


def run(*command: str, stdin: str = "") -> None:
    """Runs a tool to its end.

    Raises:
        FailedPrecondition: it is not installed.
        Internal: it failed; the message holds its own words.
    """
    result = _finish(command, stdin)
    if result.returncode != 0:
        raise Internal(f"'{' '.join(command)}' failed", result.stderr.strip() or f"exit status {result.returncode}")


def attempt(*command: str) -> bool:
    """Runs a tool to its end and says whether it succeeded, where failing means that there was nothing to do.

    Raises:
        FailedPrecondition: it is not installed.
    """
    return _finish(command, "").returncode == 0


def _finish(command: tuple[str, ...], stdin: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find(command[0]), *command[1:]],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )


def inside(namespace: Path, *command: str, stdin: str = "") -> None:
    """Runs a tool in a network namespace.

    Raises:
        FailedPrecondition: it is not installed.
        Internal: it failed; the message holds its own words.
    """
    run("nsenter", f"--net={namespace}", "--", find(command[0]), *command[1:], stdin=stdin)
