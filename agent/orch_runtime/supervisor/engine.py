"""The table of containers and what may be done to them."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module: `signal` wraps every number in an enum
import json
import marshal
import os
import sys
import time
import zlib

from orch_runtime import names
from orch_runtime.child.container import START, START_ERROR_FILE
from orch_runtime.child.failure import CANNOT_EXECUTE, NOT_FOUND
from orch_runtime.errors import (
    AlreadyExists,
    InvalidConfig,
    NotFound,
    Refused,
    RuntimeFailure,
    StartFailed,
    WrongState,
)
from orch_runtime.supervisor.children import ChildPool, send_plan
from orch_runtime.supervisor.container import Container
from orch_runtime.supervisor.exits import ExitJournal
from orch_runtime.supervisor.launch import check_plan, close_all, make_streams, open_netns
from orch_runtime.supervisor.logs import LogPump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from orch_runtime.cgroups import CgroupBackend
    from orch_runtime.fdstore import FdStore
    from orch_runtime.plan import LimitsPlan, Plan
    from orch_runtime.supervisor.loop import Loop

MAX_CONTAINERS = 4096
MAX_IN_FLIGHT = 6
MAX_QUEUED = 4096


def unix_ms() -> int:
    """Return the time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Engine:
    """Containers by id. Methods raise RuntimeFailure; those that take time answer by callback."""

    def __init__(self, root: str, loop: Loop, cgroups: CgroupBackend, pool: ChildPool, store: FdStore) -> None:
        self.root = root
        self.loop = loop
        self.cgroups = cgroups
        self.pool = pool
        self.store = store
        self.journal = ExitJournal(f"{root}/exits.journal")
        self.containers: dict[str, Container] = {}
        self.by_pid: dict[int, Container] = {}
        self.publish: Callable[[dict[str, object]], None] = lambda _event: None
        self.scratch = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._queue: list[Callable[[], None]] = []
        self._in_flight = 0
        self.closing = False

    # ---- lookup ------------------------------------------------------------------------------------------------------

    def get(self, container_id: object) -> Container:
        """Return a container by id."""
        container = self.containers.get(container_id) if isinstance(container_id, str) else None
        if container is None:
            raise NotFound(f"no container {container_id!r}; `list` shows those there are")
        return container

    def alive(self) -> list[Container]:
        """Return the containers that have processes."""
        return [entry for entry in self.containers.values() if entry.status != names.STATUS_EXITED]

    # ---- create and start --------------------------------------------------------------------------------------------

    def launch(
        self,
        plan: Plan,
        request: bytes,
        descriptors: list[int],
        done: Callable[[Container, Exception | None], None],
        *,
        start: bool,
    ) -> None:
        """Create a container and, if asked, start it. The same plan under the same id gets what is there."""
        container_id = check_plan(plan)
        message = marshal.dumps(plan, 2)  # type: ignore[arg-type]  # a TypedDict is a dict
        checksum = zlib.crc32(message)
        existing = self.containers.get(container_id)
        if existing is not None:
            if existing.checksum != checksum:
                raise AlreadyExists(
                    f"container {container_id} exists with another plan; delete it first or take another id"
                )
            if existing.status == names.STATUS_CREATING:
                existing.on_settled.append(lambda error: done(existing, error))
            elif start and existing.status == names.STATUS_CREATED:
                self.start(existing, lambda error: done(existing, error))
            else:
                done(existing, None)
            return
        if self.closing:
            raise Refused("the runtime is shutting down")
        if len(self.containers) >= MAX_CONTAINERS or len(self._queue) >= MAX_QUEUED:
            raise Refused(f"there are {len(self.containers)} containers; the limit is {MAX_CONTAINERS}")
        container = Container(container_id, f"{self.root}/containers/{container_id}")
        container.checksum = checksum
        container.bundle = plan["bundle"]
        container.annotations = plan["annotations"]
        container.log_options = plan["log"]  # type: ignore[assignment]
        container.on_settled.append(lambda error: done(container, error))
        self.containers[container_id] = container

        def begin() -> None:
            try:
                self._begin(container, plan, request, descriptors, start=start)
            except Exception as error:
                self._abort(container, error)

        if self._in_flight >= MAX_IN_FLIGHT:
            self._queue.append(begin)
        else:
            self._in_flight += 1
            begin()

    def _begin(self, container: Container, plan: Plan, request: bytes, descriptors: list[int], *, start: bool) -> None:
        netns_fd = open_netns(plan)
        try:
            child = self.pool.take(plan)
        except BaseException:
            close_all([netns_fd, *descriptors])
            raise
        container.child = child
        container.cgroup = child.cgroup
        container.pid, container.start_time, container.pidfd = child.pid, child.start_time, child.pidfd
        os.mkdir(container.directory, 0o700)
        directory_fd = os.open(container.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        streams, readers = make_streams(plan, descriptors)
        given = [directory_fd, *streams, netns_fd]
        present = [fd for fd in given if fd >= 0]
        layout = [present.index(fd) if fd >= 0 else -1 for fd in given]
        # The child sets itself up while this process writes limits and state.
        try:
            send_plan(child, marshal.dumps((plan, layout), 2), present)  # type: ignore[arg-type]  # a TypedDict is a dict
        except BaseException:
            close_all(readers)
            raise
        finally:
            close_all(present)
        if readers:
            container.pipes = [os.fstat(fd).st_ino for fd in readers]
            container.log = LogPump(self.loop, self.scratch, readers, container.log_options)
            self.store.put(f"log:{container.id}", readers)
        rules = plan["limits"].get("devices", [])
        others: LimitsPlan = {key: value for key, value in plan["limits"].items() if key != "devices"}  # type: ignore[assignment]
        container.warnings = self.cgroups.set_limits(child.cgroup, others)
        container.oom_fd = child.oom_fd
        container.created_at_unix_ms = unix_ms()

        def commit() -> None:
            self._commit(container, request, start=start)

        if child.device_rules == rules:
            commit()
        else:
            # Until it is ready the child makes devices itself; and nothing may be promised before its rules are set.
            child.on_ready = lambda: self._restrict_devices(container, rules, commit)
        self.by_pid[container.pid] = container
        if container.oom_fd < 0:
            container.oom_fd = self.cgroups.watch_oom(child.cgroup)
        self._watch_oom(container)
        child.on_change = lambda: self._on_child(container)
        child.read()
        self._on_child(container)

    def _restrict_devices(self, container: Container, rules: list[str], then: Callable[[], None]) -> None:
        try:
            if rules:
                container.warnings += self.cgroups.set_limits(container.cgroup, {"devices": rules})
            then()
        except (RuntimeFailure, OSError) as error:
            self._abort(container, error)

    def _commit(self, container: Container, request: bytes, *, start: bool) -> None:
        """Write the state file, by which the container exists; then let it go on, if it is to."""
        if not start:
            assert container.child is not None
            self.store.put(f"control:{container.id}", [container.child.channel.fileno()])
            container.status = names.STATUS_CREATED
            container.commit(request)
            container.status = names.STATUS_CREATING
            return
        container.started_at_unix_ms = container.created_at_unix_ms
        container.status = names.STATUS_RUNNING
        container.commit(request)
        container.status = names.STATUS_CREATING
        assert container.child is not None
        try:
            container.child.channel.send(START)
        except OSError:
            # It has failed already; what it said is waiting on the channel.
            return

    def _on_child(self, container: Container) -> None:
        """Follow the child: ready (created), executing and ended (running), failed."""
        child = container.child
        if child is None:
            return
        if child.ready and child.on_ready is not None:
            on_ready, child.on_ready = child.on_ready, None
            on_ready()
            if container.child is None:
                return
        if child.ended:
            self.loop.forget(child.channel.fileno())
            if child.failure is None and child.executing:
                container.warnings += child.warnings
                container.child = None
                child.channel.close()
                self._settle(container, names.STATUS_RUNNING)
                return
            code, message = child.failure or (126, "its first process was killed while it was being set up")
            oom = self.cgroups.oom_kills(container.cgroup) > 0
            if oom and child.failure is None:
                message = "it ran out of memory while it was being set up; raise its memory limit"
            self._abort(container, StartFailed(f"container {container.id} did not start: {message}", code))
        elif child.ready and container.status == names.STATUS_CREATING and not container.started_at_unix_ms:
            container.warnings += child.warnings
            child.warnings = []
            self._settle(container, names.STATUS_CREATED)

    def _settle(self, container: Container, status: str) -> None:
        was_creating = container.status == names.STATUS_CREATING
        container.status = status
        waiting, container.on_settled = container.on_settled, []
        if was_creating:
            self._next()
        for callback in waiting:
            callback(None)

    def _next(self) -> None:
        if self._queue:
            self._queue.pop(0)()
        else:
            self._in_flight -= 1

    def _abort(self, container: Container, error: Exception) -> None:
        """Undo a container that did not come to run: nothing of it stays."""
        was_creating = container.status == names.STATUS_CREATING
        waiting, container.on_settled = container.on_settled, []
        child, container.child = container.child, None
        if child is not None:
            child.on_change = None
            child.oom_fd = -1
            container.pidfd = -1
            self.pool.discard(child)
        self._forget(container)
        if was_creating:
            self._next()
        for callback in waiting:
            callback(error)

    def start(self, container: Container, done: Callable[[Exception | None], None]) -> None:
        """Let a created container execute its program."""
        if container.status == names.STATUS_RUNNING:
            done(None)
            return
        if container.status != names.STATUS_CREATED or container.child is None:
            raise WrongState(f"container {container.id} is {container.status}; only a created one can be started")
        container.on_settled.append(done)
        container.started_at_unix_ms = unix_ms()
        container.status = names.STATUS_RUNNING
        container.save()
        container.status = names.STATUS_CREATED
        try:
            container.child.channel.send(START)
        except OSError:
            # It is gone already; its end on the channel says why.
            return
        finally:
            self.store.drop(f"control:{container.id}")

    # ---- ends --------------------------------------------------------------------------------------------------------

    def read_exits(self) -> None:
        """Apply the new entries of the exit journal."""
        for pid, start, status, when in self.journal.read():
            container = self.by_pid.get(pid)
            if container is not None and container.start_time == start:
                self.on_exit(container, status, when)
        offset = self.journal.consumed()
        if offset:
            from orch_runtime import fdstore  # noqa: PLC0415 -- once per thousand exits

            fdstore.send(self.store.channel, {"op": "consumed", "offset": offset})

    def on_exit(self, container: Container, status: int | None, when_unix_ms: int) -> None:
        """Record the end of a container's first process: status >= 0 exit code, -N signal, None unknown."""
        if container.status == names.STATUS_EXITED:
            return
        if container.child is not None:
            container.child.read()
            self._on_child(container)
            if container.status == names.STATUS_CREATING or container.id not in self.containers:
                # It ended before its program ran: the failure has been reported, or will be by the end of its channel.
                return
        container.oom_killed = self.cgroups.oom_kills(container.cgroup) > 0
        container.status = names.STATUS_EXITED
        container.exit_known = status is not None
        code = -9 if status is None else status
        container.exit_signal = -code if code < 0 else 0
        container.exit_code = 128 - code if code < 0 else code
        container.finished_at_unix_ms = when_unix_ms
        if container.log is not None:
            container.log.finish()
        if container.exit_code in (CANNOT_EXECUTE, NOT_FOUND):
            container.warnings += _start_error(container.directory)
        container.save()
        self._release(container)
        self.publish(
            {
                "event": names.EVENT_EXIT,
                "id": container.id,
                "code": container.exit_code,
                "signal": container.exit_signal,
                "oom_killed": container.oom_killed,
                "finished_at_unix_ms": container.finished_at_unix_ms,
            }
        )
        waiting, container.on_exit = container.on_exit, []
        for callback in waiting:
            callback()

    def _release(self, container: Container) -> None:
        """Give back what a container without processes does not need."""
        self.by_pid.pop(container.pid, None)
        if container.pidfd >= 0:
            self.loop.forget(container.pidfd)
            os.close(container.pidfd)
            container.pidfd = -1
        if container.oom_fd >= 0:
            self.loop.forget(container.oom_fd)
            os.close(container.oom_fd)
            container.oom_fd = -1
        if container.pipes:
            self.store.drop(f"log:{container.id}")
            container.pipes = []
        if container.cgroup:
            self.pool.remove_group(container.cgroup)

    def _forget(self, container: Container) -> None:
        if container.log is not None:
            container.log.finish()
        self._release(container)
        self.store.drop(f"control:{container.id}")
        container.forget_files()
        self.containers.pop(container.id, None)

    def _watch_oom(self, container: Container) -> None:
        fd = container.oom_fd
        if fd < 0:
            return

        def on_oom(_events: int) -> None:
            os.read(fd, 8)
            # The kernel signals before it chooses whom to kill: the counter may still be 0.
            if container.status != names.STATUS_EXITED:
                self.publish({"event": names.EVENT_OOM, "id": container.id})

        self.loop.watch(fd, on_oom)

    # ---- the rest ----------------------------------------------------------------------------------------------------

    def kill(self, container: Container, number: int, *, everyone: bool) -> None:
        """Send a signal; to a paused container SIGKILL works too."""
        if container.status == names.STATUS_EXITED:
            raise WrongState(f"container {container.id} has exited")
        if not 1 <= number < _signal.NSIG:
            raise InvalidConfig("signal", f"{number} is not a signal")
        if everyone and number == 9:
            self.cgroups.kill(container.cgroup)
            return
        targets = self.cgroups.processes(container.cgroup) if everyone else [container.pid]
        for pid in targets:
            try:
                if pid == container.pid and container.pidfd >= 0:
                    _signal.pidfd_send_signal(container.pidfd, number)
                else:
                    os.kill(pid, number)
            except ProcessLookupError:
                continue
        if number == 9 and container.status == names.STATUS_PAUSED:
            self.cgroups.freeze(container.cgroup, frozen=False)

    def delete(self, container: Container, done: Callable[[], None], *, force: bool) -> None:
        """Forget a container; `force` kills it first."""
        if container.status == names.STATUS_EXITED:
            self._forget(container)
            done()
            return
        if container.status == names.STATUS_CREATED:
            self._abort(container, StartFailed(f"container {container.id} was deleted before it was started"))
            done()
            return
        if not force:
            raise WrongState(f"container {container.id} is {container.status}; stop it first, or delete with force")

        def after() -> None:
            self._forget(container)
            done()

        if container.status == names.STATUS_CREATING:
            container.on_settled.append(lambda error: done() if error else self.delete(container, done, force=True))
            return
        container.on_exit.append(after)
        if len(container.on_exit) == 1:
            self.cgroups.kill(container.cgroup)
            self.kill(container, 9, everyone=False)

    def set_paused(self, container: Container, *, paused: bool) -> None:
        """Freeze or thaw."""
        wanted = names.STATUS_RUNNING if paused else names.STATUS_PAUSED
        if container.status not in (names.STATUS_RUNNING, names.STATUS_PAUSED):
            raise WrongState(f"container {container.id} is {container.status}, not {wanted}")
        if container.status == wanted:
            self.cgroups.freeze(container.cgroup, frozen=paused)
            container.status = names.STATUS_PAUSED if paused else names.STATUS_RUNNING
            container.save()

    def update(self, container: Container, limits: LimitsPlan) -> list[str]:
        """Change limits."""
        if container.status == names.STATUS_EXITED:
            raise WrongState(f"container {container.id} has exited")
        return self.cgroups.set_limits(container.cgroup, limits)


def _start_error(directory: str) -> list[str]:
    """Return why a container did not start whose child found no supervisor to tell it to."""
    try:
        fd = os.open(f"{directory}/{START_ERROR_FILE}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        return [str(json.loads(os.read(fd, 8192))["message"])]
    finally:
        os.close(fd)


def log_failure(text: str, error: BaseException) -> None:
    """Write a failure to the keeper's log."""
    kind = "" if isinstance(error, RuntimeFailure) else f"{type(error).__name__}: "
    sys.stderr.write(f"supervisor: {text}: {kind}{error}\n")
    sys.stderr.flush()
