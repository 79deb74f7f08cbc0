"""Children on their way to becoming containers, and the pool of those made ahead of need.

A pooled child has its namespaces, has joined a group of its own and has mounted the kernel's file systems; what it
lacks is a plan. The pool holds children of the kind that was asked for last (stages, own network namespace or not).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from orch_runtime.child import container as container_child
from orch_runtime.keeper import start_time
from orch_runtime.kernel import process
from orch_runtime.kernel.buffers import enlarge_buffers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from orch_runtime.cgroups import CgroupBackend
    from orch_runtime.plan import Plan, StagePlan
    from orch_runtime.supervisor.loop import Loop

_NAMESPACES = process.CLONE_NEWPID | process.CLONE_NEWNS | process.CLONE_NEWUTS | process.CLONE_NEWIPC
_FAILURES_BEFORE_PAUSE = 3


class Child:
    """A process between clone3 and execve, from the supervisor's side."""

    def __init__(self, pid: int, pidfd: int, channel: socket.socket, cgroup: str) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel
        self.cgroup = cgroup
        self.start_time = start_time(pid)
        self.oom_fd = -1
        self.has_netns = False
        self.stage_key = ""
        self.prepared = False
        self.ready = False
        self.executing = False
        self.ended = False
        self.warnings: list[str] = []
        self.failure: tuple[int, str] | None = None
        # Device rules that hold for its group already.
        self.device_rules: list[str] = []
        self.on_change: Callable[[], None] | None = None
        self.on_ready: Callable[[], None] | None = None

    def read(self) -> None:
        """Take in what the child has said so far."""
        while not self.ended:
            try:
                message = self.channel.recv(8192, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionResetError:
                # It ended without reading all we sent. The kernel tells that once, before what it had to say.
                continue
            except OSError:
                message = b""
            kind = message[:1]
            if not message:
                self.ended = True
            elif kind == container_child.PREPARED:
                self.prepared = True
            elif kind == container_child.READY:
                self.ready = True
                self.warnings = json.loads(message[1:])
            elif kind == container_child.EXECUTING:
                self.executing = True
            elif kind == container_child.FAILED:
                report = json.loads(message[1:])
                self.failure = (report["exit_code"], report["message"])


class ChildPool:
    """Makes children, and keeps some."""

    def __init__(self, loop: Loop, cgroups: CgroupBackend, base: str, size: int) -> None:
        self._loop = loop
        self._cgroups = cgroups
        self._base = base
        self.size = size
        self._host_mounts_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            self._last_capability = int(file.read())
        self._controllers = cgroups.container_mounts()
        self._idle: list[Child] = []
        self._stages: list[StagePlan] = []
        self._stage_key = ""
        self._wants_netns = False
        self._device_rules: list[str] = []
        self._failures = 0
        self._paused_until = 0.0
        self.hits = 0
        self.misses = 0

    def spawn(self, stages: list[StagePlan], stage_key: str, *, netns: bool) -> Child:
        """Fork a child; it prepares itself at once.

        Raises:
            KernelError: no group, or no process, could be made.
        """
        cgroup = f"c-{os.urandom(6).hex()}"
        self._cgroups.create(cgroup)
        join = self._cgroups.join_paths(cgroup)
        cgroup_fd = self._cgroups.open_for_clone(cgroup)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        flags = _NAMESPACES | process.CLONE_PARENT | (process.CLONE_NEWNET if netns else 0)
        pid, pidfd = process.clone3(flags, cgroup_fd)
        if pid == 0:
            try:
                prepared = container_child.Prepared(theirs, self._host_mounts_fd, self._base, self._last_capability)
                prepared.has_netns = netns
                container_child.run_container_child(prepared, join, stages, self._controllers)
            finally:
                os._exit(126)
        theirs.close()
        if cgroup_fd >= 0:
            os.close(cgroup_fd)
        self._cgroups.adopt(cgroup, pid)
        child = Child(pid, pidfd, ours, cgroup)
        child.has_netns = netns
        child.stage_key = stage_key
        self._loop.watch(ours.fileno(), lambda _events: self._on_ready(child))
        return child

    def _on_ready(self, child: Child) -> None:
        child.read()
        if child.ended:
            self._loop.forget(child.channel.fileno())
        if child.on_change is not None:
            child.on_change()
        elif child.prepared and child in self._idle:
            self._failures = 0
            if self._device_rules:
                self._cgroups.set_limits(child.cgroup, {"devices": self._device_rules})
                child.device_rules = self._device_rules
        if child.on_change is None and child.ended and child in self._idle:
            self._idle.remove(child)
            self._failures += 1
            message = child.failure[1] if child.failure else "it was killed"
            sys.stderr.write(f"supervisor: a pooled child ended: {message}\n")
            if self._failures >= _FAILURES_BEFORE_PAUSE:
                # Something about this host is wrong; say it with the next request instead of forking in circles.
                self._paused_until = time.monotonic() + 30.0
            self.discard(child)

    def take(self, plan: Plan) -> Child:
        """Return a child for the plan: a pooled one if its stages fit, else a new one."""
        self._stages, self._stage_key = plan["stage"], plan["stage_key"]
        self._wants_netns = plan["network"] == "new"
        self._device_rules = plan["limits"].get("devices", [])
        fitting = [child for child in self._idle if child.stage_key == plan["stage_key"] and not child.ended]
        # One whose network namespace fits too saves most; one without can still make it.
        fitting.sort(key=lambda child: (child.prepared, child.has_netns == self._wants_netns), reverse=True)
        for child in fitting:
            if child.has_netns and plan["network"] == "host":
                continue
            if child.device_rules and child.device_rules != self._device_rules:
                continue
            self._idle.remove(child)
            self.hits += 1
            return child
        self.misses += 1
        return self.spawn(plan["stage"], plan["stage_key"], netns=self._wants_netns)

    def refill(self) -> bool:
        """Make one more pooled child if one is missing; returns whether more are."""
        if not self._stage_key or time.monotonic() < self._paused_until:
            return False
        for child in self._idle:
            rules_differ = child.prepared and child.device_rules != self._device_rules
            if child.stage_key != self._stage_key or child.has_netns != self._wants_netns or rules_differ:
                self._idle.remove(child)
                self.discard(child)
                return True
        if len(self._idle) >= self.size:
            return False
        child = self.spawn(self._stages, self._stage_key, netns=self._wants_netns)
        child.oom_fd = self._cgroups.watch_oom(child.cgroup)
        self._idle.append(child)
        return True

    def seed(self, stages: list[StagePlan], stage_key: str) -> None:
        """Say which stages to prepare before any request has come."""
        self._stages, self._stage_key = stages, stage_key

    def discard(self, child: Child) -> None:
        """End a child that is not to become a container, and remove its group."""
        self._loop.forget(child.channel.fileno())
        child.channel.close()
        for fd in (child.pidfd, child.oom_fd):
            if fd >= 0:
                os.close(fd)
        try:
            self._cgroups.kill(child.cgroup)
        except Exception as error:
            sys.stderr.write(f"supervisor: killing group {child.cgroup}: {error}\n")
        self.remove_group(child.cgroup)

    def remove_group(self, cgroup: str, attempt: int = 0) -> None:
        """Remove a group, trying again with growing pauses while the kernel still holds it."""
        if self._cgroups.remove(cgroup):
            return
        if attempt == 12:
            sys.stderr.write(f"supervisor: group {cgroup} cannot be removed; the next start sweeps it\n")
            return
        self._loop.later(0.002 * (1 << min(attempt, 9)), lambda: self.remove_group(cgroup, attempt + 1))

    def empty(self) -> None:
        """End all pooled children, and make no more."""
        self.size = 0
        for child in self._idle:
            self.discard(child)
        self._idle.clear()


def send_plan(child: Child, message: bytes, descriptors: list[int]) -> None:
    """Hand the plan to the child; a large one needs a larger socket buffer."""
    if len(message) > 150_000:
        enlarge_buffers(child.channel, 2 * len(message) + 65536)
    socket.send_fds(child.channel, [message], descriptors)


__all__ = ["Child", "ChildPool", "send_plan"]
