"""The OCI command line: runc's commands and flags, without a daemon.

Exit codes: 0 done, 1 failed, 2 wrong usage; `run` in the foreground and `exec` end with the program's code, and with
126 or 127 when it cannot be executed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from orch_runtime.errors import RuntimeFailure, StartFailed

DEFAULT_ROOT = "/run/orch-runtime"
SPEC_VERSION = "1.2.0"
_VERSION = f"orch-runtime version 0.1.0\nspec: {SPEC_VERSION}\n"


def _add_create_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--bundle", "-b", default=".", help="folder with config.json (default: here)")
    sub.add_argument("--config", "-f", default="", help="another config.json than the bundle's")
    sub.add_argument("--pid-file", default="", help="file that the container's pid is written to")
    sub.add_argument("--console-socket", default="", help="socket that the terminal is sent over")
    sub.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="hand on N descriptors from 3 up")
    sub.add_argument("--no-pivot", action="store_true", help="move the root instead of pivot_root (on a ramdisk)")
    sub.add_argument("--no-new-keyring", action="store_true", help="accepted; keyrings are never made anew")


def _add_exec_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--process", "-p", default="", help="JSON file with an OCI process")
    sub.add_argument("--pid-file", default="")
    sub.add_argument("--console-socket", default="")
    sub.add_argument("--preserve-fds", type=int, default=0, metavar="N")
    sub.add_argument("--detach", "-d", action="store_true")
    sub.add_argument("--tty", "-t", action="store_true")
    sub.add_argument("--user", "-u", default="", help="UID or UID:GID")
    sub.add_argument("--additional-gids", "-g", type=int, action="append", default=[])
    sub.add_argument("--cwd", default="")
    sub.add_argument("--env", "-e", action="append", default=[])
    sub.add_argument("--cap", "-c", action="append", default=[], help="capability to add")
    sub.add_argument("--no-new-privs", action="store_true")
    sub.add_argument("--ignore-paused", action="store_true")
    sub.add_argument("id")
    sub.add_argument("args", nargs=argparse.REMAINDER)


def _add_update_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--resources", "-r", default="", help="JSON file with OCI resources, - for standard input")
    for name in ("memory", "memory-swap", "memory-reservation", "cpu-share", "cpu-quota", "cpu-period", "pids-limit"):
        sub.add_argument(f"--{name}", type=int)
    sub.add_argument("--cpuset-cpus")
    sub.add_argument("--cpuset-mems")
    sub.add_argument("--blkio-weight", type=int)
    sub.add_argument("id")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orch-runtime", description="An OCI container runtime.", allow_abbrev=False)
    parser.add_argument("--root", default=DEFAULT_ROOT, help=f"state folder (default {DEFAULT_ROOT})")
    parser.add_argument("--log", default="", help="file for errors and warnings")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--debug", action="store_true", help="accepted; there is nothing more to say")
    parser.add_argument("--systemd-cgroup", action="store_true")
    parser.add_argument("--cgroup-manager", default="cgroupfs")
    parser.add_argument("--rootless", default="auto", help="accepted for runc's sake")
    parser.add_argument("--version", "-v", action="version", version=_VERSION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *, container: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if container:
            sub.add_argument("id", help="container id")
        return sub

    _add_create_flags(add("create", "set a container up to the point before its program is executed"))
    run = add("run", "create and start a container, and wait for its end unless detached")
    _add_create_flags(run)
    run.add_argument("--detach", "-d", action="store_true")
    run.add_argument("--keep", action="store_true", help="do not delete it at its end")
    add("start", "execute the program of a created container")
    add("state", "show a container as the OCI specification has it")
    kill = add("kill", "send a signal")
    kill.add_argument("signal", nargs="?", default="TERM")
    kill.add_argument("--all", "-a", action="store_true", help="to every process of the container")
    add("delete", "remove what is left of a container").add_argument("--force", "-f", action="store_true")
    _add_exec_flags(add("exec", "run a command in a container", container=False))
    listing = add("list", "list containers", container=False)
    listing.add_argument("--format", "-f", choices=("table", "json"), default="table")
    listing.add_argument("--quiet", "-q", action="store_true")
    ps = add("ps", "list the processes of a container")
    ps.add_argument("--format", "-f", choices=("table", "json"), default="table")
    ps.add_argument("args", nargs=argparse.REMAINDER, help="options of ps(1)")
    add("pause", "freeze a container")
    add("resume", "thaw a container")
    _add_update_flags(add("update", "set limits of a container", container=False))
    events = add("events", "show usage as JSON")
    events.add_argument("--stats", action="store_true", help="once")
    events.add_argument("--interval", default="5s")
    add("features", "show what this runtime can do, as JSON", container=False)
    spec = add("spec", "write a config.json to start from", container=False)
    spec.add_argument("--bundle", "-b", default=".")
    spec.add_argument("--rootless", action="store_true")
    return parser


class Log:
    """Errors and warnings: to standard error, and to `--log` in the form that engines read."""

    def __init__(self, path: str, form: str) -> None:
        self._path = path
        self._form = form

    def write(self, level: str, message: str) -> None:
        """Write one entry."""
        sys.stderr.write(f"orch-runtime: {message}\n" if level == "error" else f"orch-runtime: {level}: {message}\n")
        if not self._path:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._form == "json":
            line = json.dumps({"level": level, "msg": message, "time": now})
        else:
            line = f'time="{now}" level={level} msg={json.dumps(message)}'
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            sys.stderr.write(f"orch-runtime: --log {self._path}: {error.strerror}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of the OCI command line."""
    arguments = _parser().parse_args(argv)
    log = Log(arguments.log, arguments.log_format)
    if arguments.systemd_cgroup or arguments.cgroup_manager == "systemd":
        log.write("error", "systemd's cgroups are not supported: use the cgroupfs manager of your engine")
        return 1
    try:
        from orch_runtime.oci.verbs import VERBS  # noqa: PLC0415 -- wrong usage is said without it

        return VERBS[arguments.command](arguments, log)
    except StartFailed as failure:
        log.write("error", str(failure))
        return failure.exit_code
    except RuntimeFailure as failure:
        log.write("error", str(failure))
        return 1
    except OSError as error:
        log.write("error", f"{arguments.command}: {error}")
        return 1
