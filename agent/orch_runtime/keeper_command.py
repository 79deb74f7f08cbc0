"""`orch-runtime` against a running keeper, and the keeper itself.

Exit codes: 0 done, 1 failed, 2 wrong usage; `run` in the foreground and `exec` end with the program's code.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orch_runtime.client import RuntimeClient
from orch_runtime.config import compile_config
from orch_runtime.daemon import DEFAULT_POOL_SIZE, SOCKET_NAME, keeper_argv
from orch_runtime.errors import InvalidConfig, RuntimeFailure, StartFailed
from orch_runtime.plan import BindRootfs, Plan
from orch_runtime.protocol import STATUS_EXITED, ContainerState

DEFAULT_ROOT = "/run/orch/runtime"
DEFAULT_CGROUP_PARENT = "/orch/runtime"
_POLL_S = 0.01


def _bundle_plan(arguments: argparse.Namespace) -> Plan:
    bundle = Path(arguments.bundle).resolve()
    path = bundle / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(
            str(path), f"{error.strerror}; --bundle must name a folder with config.json and a rootfs"
        ) from error
    except ValueError as error:
        raise InvalidConfig(str(path), f"is not JSON: {error}") from error
    root = config.get("root", {}).get("path", "rootfs") if isinstance(config, dict) else "rootfs"
    return compile_config(
        config,
        rootfs=BindRootfs(str(bundle / root)),
        container_id=arguments.id,
        bundle=str(bundle),
        init=arguments.init,
    )


def _oci_state(state: ContainerState) -> dict[str, Any]:
    """Return the state object of the OCI runtime specification (runtime.md, "State")."""
    status = "stopped" if state.status == STATUS_EXITED else state.status
    return {
        "ociVersion": "1.2.0",
        "id": state.id,
        "status": status,
        "pid": 0 if status == "stopped" else state.pid,
        "bundle": state.bundle,
        "annotations": state.annotations,
    }


def _write_pid_file(arguments: argparse.Namespace, state: ContainerState) -> None:
    if arguments.pid_file:
        Path(arguments.pid_file).write_text(str(state.pid), encoding="ascii")


def _create(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    _write_pid_file(arguments, client.create(_bundle_plan(arguments), [0, 1, 2]))
    return 0


def _run(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    state = client.run(_bundle_plan(arguments), [0, 1, 2])
    _write_pid_file(arguments, state)
    for warning in state.warnings:
        sys.stderr.write(f"orch-runtime: warning: {warning}\n")
    if arguments.detach:
        return 0
    while state.status != STATUS_EXITED:
        time.sleep(_POLL_S)
        state = client.state(arguments.id)
    client.delete(arguments.id)
    return state.exit_code


def _start(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    client.start(arguments.id)
    return 0


def _state(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    print(json.dumps(_oci_state(client.state(arguments.id)), indent=2))
    return 0


def signal_number(text: str) -> int:
    """Return the number of a signal given as TERM, SIGTERM or 15.

    Raises:
        InvalidConfig: there is none of that name.
    """
    if text.isdigit():
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return int(signal.Signals[name])
    except KeyError as error:
        raise InvalidConfig("signal", f"{text!r} is not a signal: give a name such as TERM or a number") from error


def _kill(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    client.kill(arguments.id, signal_number(arguments.signal), everyone=arguments.all)
    return 0


def _delete(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    client.delete(arguments.id, force=arguments.force)
    return 0


def _exec(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    result = client.exec(
        arguments.id,
        arguments.args,
        env=arguments.env,
        cwd=arguments.cwd,
        user=arguments.user,
        timeout_ms=int(arguments.timeout * 1000),
        max_output_bytes=1 << 20,
    )
    sys.stdout.write(result.output)
    if result.timed_out:
        sys.stderr.write(f"orch-runtime: killed after {arguments.timeout:g} s\n")
    return result.exit_code


def _list(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    states = client.list()
    if arguments.format == "json":
        print(json.dumps([asdict(state) for state in states]))
        return 0
    print(f"{'ID':<28} {'PID':>8} {'STATUS':<9} {'EXIT':>4}  BUNDLE")
    for state in states:
        code = str(state.exit_code) if state.status == STATUS_EXITED else ""
        print(f"{state.id:<28} {state.pid:>8} {state.status:<9} {code:>4}  {state.bundle}")
    return 0


def _stats(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    print(json.dumps([asdict(stats) for stats in client.stats(arguments.ids or None)], indent=2))
    return 0


def _version(client: RuntimeClient, _arguments: argparse.Namespace) -> int:
    print(json.dumps(dict(client.version()), indent=2))
    return 0


def _pause(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    client.pause(arguments.id)
    return 0


def _resume(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    client.resume(arguments.id)
    return 0


def _shutdown(client: RuntimeClient, arguments: argparse.Namespace) -> int:
    client.shutdown(force=arguments.force)
    return 0


Command = Callable[[RuntimeClient, argparse.Namespace], int]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orch-runtime", description="The container runtime of orch.")
    parser.add_argument("--root", default=DEFAULT_ROOT, help=f"state folder of the keeper (default {DEFAULT_ROOT})")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, command: Command | None, text: str, *, container: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(call=command)
        if container:
            sub.add_argument("id", help="container id")
        return sub

    keeper = add("keeper", None, "run the keeper and its supervisor in the foreground", container=False)
    keeper.add_argument("--cgroup-parent", default=DEFAULT_CGROUP_PARENT)
    keeper.add_argument("--pool", type=int, default=DEFAULT_POOL_SIZE, help="children made ahead of need")
    for name, call, text in (
        ("create", _create, "set a container up to the point before its program is executed"),
        ("run", _run, "create and start a container, and wait for its end unless detached"),
    ):
        sub = add(name, call, text)
        sub.add_argument("--bundle", "-b", default=".", help="folder with config.json (default: here)")
        sub.add_argument("--pid-file")
        sub.add_argument("--init", action="store_true", help="put a reaping process in front as pid 1")
        if name == "run":
            sub.add_argument("--detach", "-d", action="store_true")
    add("start", _start, "execute the program of a created container")
    add("state", _state, "show a container as the OCI specification has it")
    kill = add("kill", _kill, "send a signal")
    kill.add_argument("signal", nargs="?", default="TERM")
    kill.add_argument("--all", "-a", action="store_true", help="to every process of the container")
    add("delete", _delete, "forget a container that has exited").add_argument("--force", "-f", action="store_true")
    execute = add("exec", _exec, "run a command in a container")
    execute.add_argument("--user", "-u", default="")
    execute.add_argument("--cwd", default="")
    execute.add_argument("--env", "-e", action="append", default=[])
    execute.add_argument("--timeout", type=float, default=3600.0, help="seconds")
    execute.add_argument("args", nargs=argparse.REMAINDER)
    add("list", _list, "list containers", container=False).add_argument(
        "--format", choices=("table", "json"), default="table"
    )
    add("stats", _stats, "show usage as JSON", container=False).add_argument("ids", nargs="*")
    add("pause", _pause, "freeze a container")
    add("resume", _resume, "thaw a container")
    add("version", _version, "show version and counters of the supervisor", container=False)
    stop = add("shutdown", _shutdown, "stop keeper and supervisor", container=False)
    stop.add_argument("--force", "-f", action="store_true", help="kill the containers first")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command against the keeper of `--root`."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "keeper":
        command = keeper_argv(str(Path(arguments.root).absolute()), arguments.cgroup_parent, pool_size=arguments.pool)
        os.execv(command[0], command)
    call: Command = arguments.call
    try:
        with RuntimeClient(f"{arguments.root}/{SOCKET_NAME}") as client:
            return call(client, arguments)
    except StartFailed as failure:
        sys.stderr.write(f"orch-runtime: {failure}\n")
        return failure.exit_code
    except RuntimeFailure as failure:
        sys.stderr.write(f"orch-runtime: {failure}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
