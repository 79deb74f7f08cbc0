"""What a new supervisor finds: state files, the journal, the descriptors that the keeper held."""

from __future__ import annotations

import os
import shutil
import socket

from orch_runtime import names
from orch_runtime.child.container import START
from orch_runtime.keeper import start_time
from orch_runtime.kernel import process
from orch_runtime.supervisor.children import Child
from orch_runtime.supervisor.container import Container, load_container
from orch_runtime.supervisor.engine import Engine, log_failure, unix_ms
from orch_runtime.supervisor.logs import LogPump


def recover(engine: Engine) -> None:
    """Fill the engine's table, apply exits that happened meanwhile, remove what belongs to no container."""
    folder = f"{engine.root}/containers"
    os.makedirs(folder, 0o700, exist_ok=True)
    exits = {(pid, start): (status, when) for pid, start, status, when in engine.journal.read()}
    for container_id in os.listdir(folder):
        directory = f"{folder}/{container_id}"
        container = load_container(container_id, directory)
        if container is None:
            shutil.rmtree(directory, ignore_errors=True)
            continue
        engine.containers[container_id] = container
        if container.status != names.STATUS_EXITED:
            try:
                _adopt(engine, container, exits)
            except Exception as error:
                log_failure(f"adopting container {container_id}", error)
    _drop_stale(engine)
    _sweep_groups(engine)
    # Exits that came while this ran were journaled without anyone to wake.
    engine.loop.later(0.0, engine.read_exits)


def _adopt(engine: Engine, container: Container, exits: dict[tuple[int, int], tuple[int, int]]) -> None:
    container.log = _restore_log(engine, container)
    ended = exits.get((container.pid, container.start_time))
    if ended is not None:
        engine.on_exit(container, *ended)
        return
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        pidfd = -1
    if pidfd >= 0 and start_time(container.pid) != container.start_time:
        os.close(pidfd)
        pidfd = -1
    if pidfd < 0:
        # Gone; either the journal has it since we read it, or its keeper died before it could write.
        for pid, start, status, when in engine.journal.read():
            exits[(pid, start)] = (status, when)
        ended = exits.get((container.pid, container.start_time))
        engine.on_exit(container, *(ended or (None, unix_ms())))
        return
    container.pidfd = pidfd
    engine.cgroups.adopt(container.cgroup, container.pid)
    engine.by_pid[container.pid] = container
    container.oom_fd = engine.cgroups.watch_oom(container.cgroup)
    engine._watch_oom(container)  # noqa: SLF001 -- recovery is the engine's other half
    if parent_of(container.pid) != os.getppid():
        _watch_orphan(engine, container)
    _restore_control(engine, container)


def _restore_control(engine: Engine, container: Container) -> None:
    """Take back the channel of a created container; send a start that may not have been sent."""
    restored = engine.store.restored.pop(f"control:{container.id}", None)
    if restored is None:
        return
    channel = socket.socket(fileno=restored[0])
    if container.status != names.STATUS_CREATED:
        try:
            channel.send(START)
        except OSError:
            pass
        channel.close()
        engine.store.drop(f"control:{container.id}")
        return
    child = Child(container.pid, container.pidfd, channel, container.cgroup)
    child.prepared = child.ready = True
    child.on_change = lambda: engine._on_child(container)  # noqa: SLF001
    container.child = child

    def on_ready(_events: int) -> None:
        child.read()
        engine._on_child(container)  # noqa: SLF001

    engine.loop.watch(channel.fileno(), on_ready)


def _restore_log(engine: Engine, container: Container) -> LogPump | None:
    descriptors = engine.store.restored.pop(f"log:{container.id}", None)
    if descriptors is None:
        descriptors = _reopen_pipes(container)
        if not descriptors:
            return None
        engine.store.put(f"log:{container.id}", descriptors)
    return LogPump(engine.loop, engine.scratch, descriptors, container.log_options)


def _reopen_pipes(container: Container) -> list[int]:
    """Find the container's output pipes through its first process, when the keeper that held them is gone too."""
    found = []
    for number, inode in zip((1, 2), container.pipes, strict=False):
        path = f"/proc/{container.pid}/fd/{number}"
        try:
            if os.stat(path).st_ino == inode:
                found.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int:
    """Return field 4 of /proc/PID/stat."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _zombie_status(pid: int) -> int | None:
    """Return field 52 of /proc/PID/stat, the wait status of a process that ended but was not reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[49]) if fields[0] in (b"Z", b"X") and len(fields) > 49 else None


def _watch_orphan(engine: Engine, container: Container) -> None:
    """Watch a container whose keeper died: no journal will tell its end, but its pidfd can (Linux 6.15)."""
    pidfd = container.pidfd

    def on_end(_events: int) -> None:
        status = _zombie_status(container.pid)
        if status is None:
            status = process.exit_status_of_pidfd(pidfd)
        engine.on_exit(container, None if status is None else os.waitstatus_to_exitcode(status), unix_ms())

    engine.loop.watch(pidfd, on_end)


def _drop_stale(engine: Engine) -> None:
    for name, descriptors in engine.store.restored.items():
        for fd in descriptors:
            os.close(fd)
        engine.store.drop(name)
    engine.store.restored.clear()


def _sweep_groups(engine: Engine) -> None:
    known = {container.cgroup for container in engine.alive()}
    for name in engine.cgroups.names():
        if name not in known:
            engine.cgroups.kill(name)
            engine.pool.remove_group(name)
