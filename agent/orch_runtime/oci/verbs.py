"""What each command of the OCI command line does."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orch_runtime.errors import InvalidConfig, NotFound, StartFailed, WrongState
from orch_runtime.oci import console
from orch_runtime.oci.cgroup import ContainerCgroup
from orch_runtime.oci.command import SPEC_VERSION, Log
from orch_runtime.oci.launch import (
    CreateRequest,
    Launcher,
    delete,
    end_child,
    preserved_descriptors,
    read_config,
    start,
    update,
    write_pid_file,
)
from orch_runtime.oci.state import Record, Store, oci_state


def signal_number(text: str) -> int:
    """Return the number of a signal given as TERM, SIGTERM, 15 or RTMIN+1.

    Raises:
        InvalidConfig: there is none of that name.
    """
    name = text.upper().removeprefix("SIG")
    if text.isdigit():
        number = int(text)
    elif name.startswith("RTMIN+") and name[6:].isdigit():
        number = signal.SIGRTMIN + int(name[6:])
    else:
        found = getattr(signal, f"SIG{name}", None)
        if not isinstance(found, signal.Signals):
            raise InvalidConfig("signal", f"{text!r} is not a signal: give a name such as TERM or a number")
        number = int(found)
    if not 0 <= number <= signal.SIGRTMAX:
        raise InvalidConfig("signal", f"{number} is not a signal")
    return number


def _store(arguments: argparse.Namespace) -> Store:
    return Store(os.path.abspath(arguments.root))


def _load(arguments: argparse.Namespace) -> tuple[Store, Record]:
    store = _store(arguments)
    return store, store.load(arguments.id)


def _status(store: Store, record: Record) -> str:
    status = store.status(record)
    return "paused" if status == "running" and ContainerCgroup(record.cgroup).frozen() else status


def _preserved(arguments: argparse.Namespace) -> tuple[int, ...]:
    inherited = os.environ.get("LISTEN_FDS", "")
    count = int(arguments.preserve_fds) + (int(inherited) if inherited.isdigit() else 0)
    if not 0 <= count <= 4096:
        raise InvalidConfig("--preserve-fds", f"{count} must be between 0 and 4096")
    return preserved_descriptors(count)


def _request(arguments: argparse.Namespace) -> CreateRequest:
    bundle = os.path.realpath(arguments.bundle)
    return CreateRequest(
        id=arguments.id,
        bundle=bundle,
        config_path=os.path.abspath(arguments.config) if arguments.config else f"{bundle}/config.json",
        pid_file=arguments.pid_file,
        console=-1,
        preserved=_preserved(arguments),
        pivot=not arguments.no_pivot,
    )


def _warn(log: Log, warnings: list[str]) -> None:
    for warning in warnings:
        log.write("warning", warning)


def _create(arguments: argparse.Namespace, log: Log) -> int:
    request = _request(arguments)
    console_fd = console.connect_console(arguments.console_socket) if arguments.console_socket else -1
    launcher = Launcher(_store(arguments), replace(request, console=console_fd))
    try:
        launcher.create()
    finally:
        _warn(log, launcher.warnings)
    return 0


def _run(arguments: argparse.Namespace, log: Log) -> int:
    store = _store(arguments)
    request = _request(arguments)
    process = read_config(request.config_path).get("process")
    wants_terminal = isinstance(process, dict) and process.get("terminal") is True
    ours = None
    if arguments.console_socket:
        console_fd = console.connect_console(arguments.console_socket)
    elif wants_terminal and not arguments.detach:
        ours, console_fd = console.own_console()
    else:
        console_fd = -1
    launcher = Launcher(store, replace(request, console=console_fd))
    try:
        record = launcher.create()
    finally:
        _warn(log, launcher.warnings)
    try:
        _warn(log, start(store, record))
    except StartFailed:
        end_child(record.pid)
        _warn(log, delete(store, record, force=True))
        raise
    if arguments.detach:
        return 0
    if ours is not None:
        console.relay_terminal(console.receive_terminal(ours))
    code = console.wait_forwarding(record.pid)
    if not arguments.keep:
        _warn(log, delete(store, record, force=True))
    return code


def _start(arguments: argparse.Namespace, log: Log) -> int:
    store, record = _load(arguments)
    _warn(log, start(store, record))
    return 0


def _state(arguments: argparse.Namespace, log: Log) -> int:  # noqa: ARG001 -- as all verbs
    store, record = _load(arguments)
    print(json.dumps(oci_state(record, _status(store, record)), indent=2))
    return 0


def _kill(arguments: argparse.Namespace, log: Log) -> int:  # noqa: ARG001 -- as all verbs
    number = signal_number(arguments.signal)
    store, record = _load(arguments)
    cgroup = ContainerCgroup(record.cgroup)
    if arguments.all:
        targets = cgroup.processes()
    elif store.status(record) == "stopped":
        raise WrongState(f"container not running: {record.id} is stopped")
    else:
        targets = [record.pid]
    for pid in targets:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    if number == signal.SIGKILL and cgroup.frozen():
        cgroup.freeze(frozen=False)
    return 0


def _delete(arguments: argparse.Namespace, log: Log) -> int:
    try:
        store, record = _load(arguments)
    except NotFound:
        if arguments.force:
            # Half of a container, whose creator was killed before it wrote the state file.
            store = _store(arguments)
            store.remove(arguments.id)
            return 0
        raise
    _warn(log, delete(store, record, force=arguments.force))
    return 0


def _exec_process(arguments: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """Return the OCI process to run: a file's, or the container's own with what the flags change."""
    if arguments.process:
        return read_config(arguments.process)
    process: dict[str, Any] = dict(config["process"])
    process["args"] = arguments.args
    process["terminal"] = arguments.tty
    process["env"] = [*process.get("env", []), *arguments.env]
    if arguments.cwd:
        process["cwd"] = arguments.cwd
    if arguments.user:
        uid, _, gid = arguments.user.partition(":")
        if not uid.isdigit() or (gid and not gid.isdigit()):
            raise InvalidConfig("--user", f"{arguments.user!r} must be UID or UID:GID, in numbers")
        process["user"] = {**process.get("user", {}), "uid": int(uid), **({"gid": int(gid)} if gid else {})}
    if arguments.additional_gids:
        process["user"] = {**process.get("user", {}), "additionalGids": arguments.additional_gids}
    if arguments.no_new_privs:
        process["noNewPrivileges"] = True
    if arguments.cap:
        sets = dict(process.get("capabilities") or {})
        for name in ("bounding", "effective", "permitted"):
            sets[name] = [*sets.get(name, []), *(cap for cap in arguments.cap if cap not in sets.get(name, []))]
        process["capabilities"] = sets
    process.pop("oomScoreAdj", None)
    return process


def _exec(arguments: argparse.Namespace, log: Log) -> int:
    from orch_runtime.config.seccomp import compile_filter  # noqa: PLC0415
    from orch_runtime.oci.execution import ExecRequest, execute_in  # noqa: PLC0415 -- start-up time of create
    from orch_runtime.oci.program import drop_missing_capabilities  # noqa: PLC0415
    from orch_runtime.oci.spec import read_process_spec  # noqa: PLC0415

    preserved = _preserved(arguments)
    store, record = _load(arguments)
    status = _status(store, record)
    if status == "stopped":
        raise WrongState(f"cannot exec in a stopped container: {record.id}")
    if status == "paused" and not arguments.ignore_paused:
        raise WrongState(f"cannot exec in a paused container: {record.id}; resume it, or use --ignore-paused")
    config = store.config(record.id)
    process = read_process_spec(_exec_process(arguments, config))
    if not any(entry.get("type") == "user" for entry in config["linux"].get("namespaces", [])):
        _warn(log, drop_missing_capabilities(process))
    seccomp = (config.get("linux") or {}).get("seccomp")
    ours = None
    console_fd = -1
    if process.terminal and arguments.console_socket:
        console_fd = console.connect_console(arguments.console_socket)
    elif process.terminal and not arguments.detach:
        ours, console_fd = console.own_console()
    elif process.terminal:
        raise InvalidConfig("--tty", "with --detach needs --console-socket")
    request = ExecRequest(process, console_fd, preserved, compile_filter(seccomp) if seccomp else None)
    pid = execute_in(record, request)
    write_pid_file(arguments.pid_file, pid)
    if arguments.detach:
        return 0
    if ours is not None:
        console.relay_terminal(console.receive_terminal(ours))
    return console.wait_forwarding(pid)


def _list(arguments: argparse.Namespace, log: Log) -> int:  # noqa: ARG001 -- as all verbs
    store = _store(arguments)
    states = [oci_state(record, _status(store, record)) for record in store.all()]
    if arguments.quiet:
        print("".join(f"{state['id']}\n" for state in states), end="")
    elif arguments.format == "json":
        print(json.dumps(states))
    else:
        print(f"{'ID':<28} {'PID':<10} {'STATUS':<10} {'BUNDLE':<30} {'CREATED':<32} OWNER")
        for state in states:
            print(
                f"{state['id']:<28} {state['pid']:<10} {state['status']:<10} {state['bundle']:<30} "
                f"{state['created']:<32} {state['owner']}"
            )
    return 0


def _ps(arguments: argparse.Namespace, log: Log) -> int:  # noqa: ARG001 -- as all verbs
    _, record = _load(arguments)
    pids = sorted(ContainerCgroup(record.cgroup).processes())
    if arguments.format == "json":
        print(json.dumps(pids))
        return 0
    import subprocess  # noqa: PLC0415 -- start-up time of the others

    done = subprocess.run(["ps", *(arguments.args or ["-ef"])], capture_output=True, text=True, timeout=30, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines or "PID" not in lines[0].split():
        raise InvalidConfig("ps", f"cannot use its output: {done.stderr.strip() or 'no PID column'}")
    column = lines[0].split().index("PID")
    print(lines[0])
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            print(line)
    return 0


def _freeze(arguments: argparse.Namespace, log: Log) -> int:  # noqa: ARG001 -- as all verbs
    store, record = _load(arguments)
    pausing = arguments.command == "pause"
    status = _status(store, record)
    wanted = ("running", "created") if pausing else ("paused",)
    if status not in wanted:
        raise WrongState(f"cannot {arguments.command} container {record.id}: it is {status}")
    ContainerCgroup(record.cgroup).freeze(frozen=pausing)
    return 0


def _update(arguments: argparse.Namespace, log: Log) -> int:
    store, record = _load(arguments)
    if store.status(record) == "stopped":
        raise WrongState(f"cannot update container {record.id}: it is stopped")
    if arguments.resources == "-":
        try:
            resources = json.loads(sys.stdin.read(1 << 20))
        except ValueError as error:
            raise InvalidConfig("--resources", f"is not JSON: {error}") from error
    elif arguments.resources:
        resources = read_config(arguments.resources)
    else:
        resources = {}
    flags = (
        ("memory", "limit", arguments.memory),
        ("memory", "swap", arguments.memory_swap),
        ("memory", "reservation", arguments.memory_reservation),
        ("cpu", "shares", arguments.cpu_share),
        ("cpu", "quota", arguments.cpu_quota),
        ("cpu", "period", arguments.cpu_period),
        ("cpu", "cpus", arguments.cpuset_cpus),
        ("cpu", "mems", arguments.cpuset_mems),
        ("pids", "limit", arguments.pids_limit),
        ("blockIO", "weight", arguments.blkio_weight),
    )
    for group, key, value in flags:
        if value is not None:
            resources.setdefault(group, {})[key] = value
    _warn(log, update(record, resources))
    return 0


def _stats_document(record: Record) -> dict[str, Any]:
    stats = ContainerCgroup(record.cgroup).stats()
    return {
        "type": "stats",
        "id": record.id,
        "data": {
            "cpu": {
                "usage": {
                    "total": stats.get("cpu_usage_ns", 0),
                    "kernel": stats.get("cpu_system_ns", 0),
                    "user": stats.get("cpu_user_ns", 0),
                },
                "throttling": {
                    "periods": stats.get("cpu_periods", 0),
                    "throttledPeriods": stats.get("cpu_throttled_periods", 0),
                    "throttledTime": stats.get("cpu_throttled_ns", 0),
                },
            },
            "memory": {
                "cache": stats.get("memory_cache_bytes", 0),
                "usage": {
                    "limit": stats.get("memory_limit_bytes", 0),
                    "usage": stats.get("memory_usage_bytes", 0),
                    "failcnt": stats.get("memory_failures", 0),
                },
            },
            "pids": {"current": stats.get("pids_current", 0), "limit": stats.get("pids_limit", 0)},
        },
    }


def _interval_s(text: str) -> float:
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0)):
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return float(number) * factor
    raise InvalidConfig("--interval", f"{text!r} must be a duration above zero such as 5s or 500ms")


def _events(arguments: argparse.Namespace, log: Log) -> int:  # noqa: ARG001 -- as all verbs
    interval_s = _interval_s(arguments.interval)
    store, record = _load(arguments)
    if store.status(record) == "stopped":
        raise WrongState(f"container {record.id} is not running")
    print(json.dumps(_stats_document(record)), flush=True)
    while not arguments.stats:
        time.sleep(interval_s)
        if store.status(record) == "stopped":
            break
        print(json.dumps(_stats_document(record)), flush=True)
    return 0


def _features(arguments: argparse.Namespace, log: Log) -> int:  # noqa: ARG001 -- as all verbs
    from orch_runtime.capabilities import NUMBERS, last_capability  # noqa: PLC0415 -- start-up time of the others
    from orch_runtime.config import seccomp  # noqa: PLC0415
    from orch_runtime.oci import mount_options, spec  # noqa: PLC0415

    document = {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": list(spec.HOOK_STAGES),
        "mountOptions": mount_options.known_options(),
        "linux": {
            "namespaces": list(spec.NAMESPACES),
            "capabilities": [name for name, number in NUMBERS.items() if number <= last_capability()],
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
            "seccomp": seccomp.features(),
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
    }
    print(json.dumps(document, indent=2))
    return 0


def _spec(arguments: argparse.Namespace, log: Log) -> int:  # noqa: ARG001 -- as all verbs
    from orch_runtime.config.defaults import default_config  # noqa: PLC0415 -- start-up time of the others

    if arguments.rootless:
        raise InvalidConfig("--rootless", "is not supported by this runtime")
    config = default_config(args=["sh"], env=["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
    config["process"]["terminal"] = True
    config["root"]["readonly"] = True
    config["hostname"] = "orch"
    path = f"{arguments.bundle}/config.json"
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(config, file, indent=2)
    except FileExistsError as error:
        raise InvalidConfig(path, "exists; remove it first") from error
    return 0


VERBS: dict[str, Callable[[argparse.Namespace, Log], int]] = {
    "create": _create,
    "run": _run,
    "start": _start,
    "state": _state,
    "kill": _kill,
    "delete": _delete,
    "exec": _exec,
    "list": _list,
    "ps": _ps,
    "pause": _freeze,
    "resume": _freeze,
    "update": _update,
    "events": _events,
    "features": _features,
    "spec": _spec,
}
