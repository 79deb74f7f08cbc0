"""Comparing the kernel with what is wanted, and repairing it: at start, every 30 s, and when asked."""

# pathlib is not loaded in this small process
# ruff: noqa: PTH106, PTH208

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from orch_network import engine as wanted
from orch_network import limits
from orch_network.dns.zone import Zone
from orch_network.engine import Engine, adopt_sockets, ports_of_network
from orch_network.errors import KernelError, NetworkFailure
from orch_network.fields import Fields
from orch_network.kernel import netns
from orch_network.kernel.nftables import Nftables
from orch_network.protocol import Service, Task, read_network, read_port, read_service, read_task
from orch_network.router import Router, Uplink
from orch_network.rules import task_ruleset
from orch_network.tables import repair_ruleset
from orch_network.tasknet import (
    EnteredTask,
    InterfacePlan,
    configure_requests,
    links_down_or_missing,
    make_namespace,
    missing_inside,
    open_resolver_sockets,
)

Found = list[tuple[str, str]]
"""Repairs as (kind, detail)."""
Step = Callable[[], Found]
"""A part of a pass; what it looks after may be gone by the time it runs."""


@dataclass(frozen=True, slots=True)
class Repair:
    """One difference that was found and mended."""

    kind: str
    detail: str


def restore(engine: Engine, kept: dict[str, int]) -> None:
    """After a start: read what is wanted from disk, take over namespaces and sockets. ``reconcile`` does the rest."""
    made = _restore_networks(engine)
    _restore_services(engine)
    for value in engine.store.load(wanted.KIND_TASK):
        task = read_task(value)
        if all(each.network_id in engine.routers for each in task.networks):
            _restore_task(engine, task, kept)
    for router in made:
        engine.node.connect(router)


def _restore_networks(engine: Engine) -> list[Router]:
    made = []
    for value in engine.store.load(wanted.KIND_NETWORK):
        fields = Fields(value, "wanted network")
        network = fields.value("network", read_network)
        uplink = Uplink(fields.integer("uplink", 0, limits.MAX_NETWORKS - 1))
        router = engine.make_router(network, uplink)
        if router.open(engine.namespaces):
            engine.counters.repaired("router-namespace")
            made.append(router)
        engine.routers[network.id] = router
        engine.zones[network.id] = Zone(network.name)
    return made


def _restore_services(engine: Engine) -> None:
    services: dict[str, list[Service]] = {}
    for value in engine.store.load(wanted.KIND_SERVICE):
        fields = Fields(value, "wanted service")
        network_id, service = fields.identifier("network_id"), fields.value("service", read_service)
        if network_id in engine.zones:
            services.setdefault(network_id, []).append(service)
            engine.zones[network_id].put(service)
    for value in engine.store.load(wanted.KIND_PORT):
        port = read_port(value)
        if port.network_id in engine.routers:
            engine.ports[port.key] = port
    for network_id, router in engine.routers.items():
        router.restore(services.get(network_id, ()), ports_of_network(engine.ports.values(), network_id))
    engine.node.expect(engine.ports.values(), engine.routers)


def _restore_task(engine: Engine, task: Task, kept: dict[str, int]) -> None:
    engine.tasks[task.task_id] = task
    for plan, each in zip(engine.plan(task), task.networks, strict=True):
        engine.routers[each.network_id].adopt(task.task_id, plan.address)
    sockets = adopt_sockets(kept, task.task_id)
    if sockets is not None:
        engine.serve_names(task, sockets)


def reconcile(engine: Engine) -> list[Repair]:
    """One pass over everything at once. What cannot be repaired is counted as a failure and tried again next time."""
    began = time.monotonic()
    repairs = [repair for step in _steps(engine) for repair in _run(engine, step)]
    engine.counters.reconcile.add(time.monotonic() - began)
    return repairs


class Patrol:
    """A pass every 30 s, one step per turn of the loop, so that names and requests are answered in between."""

    def __init__(self, engine: Engine, report: Callable[[Repair], None]) -> None:
        self._engine = engine
        self._report = report
        self._left: Iterator[Step] = iter(())
        self._spent_s = 0.0

    def start(self) -> None:
        """Begin a pass after the interval; each ends by planning the next."""
        self._engine.loop.after(limits.RECONCILE_EVERY_S, self._begin)

    def _begin(self) -> None:
        self._left, self._spent_s = iter(_steps(self._engine)), 0.0
        self._engine.loop.soon(self._continue)

    def _continue(self) -> None:
        began = time.monotonic()
        step = next(self._left, None)
        if step is None:
            self._engine.counters.reconcile.add(self._spent_s)
            self.start()
            return
        # Planned before the step runs: whatever happens in it, the patrol goes on.
        self._engine.loop.soon(self._continue)
        for repair in _run(self._engine, step):
            self._report(repair)
        self._spent_s += time.monotonic() - began


def _steps(engine: Engine) -> list[Step]:
    steps: list[Step] = [partial(_repair_mounts, engine), engine.node.repair_table]
    steps.append(lambda: engine.node.repair_uplinks(engine.routers.values()))
    steps += [partial(_repair_router, engine, router) for router in engine.routers.values()]
    steps += [partial(_repair_task, engine, task) for task in engine.tasks.values()]
    return steps


def _run(engine: Engine, step: Step) -> list[Repair]:
    try:
        repairs = [Repair(kind, detail) for kind, detail in step()]
    except NetworkFailure as failure:
        engine.counters.failed("reconcile")
        repairs = [Repair("failed", str(failure))]
    for repair in repairs:
        engine.counters.repaired(repair.kind)
    return repairs


def _repair_mounts(engine: Engine) -> Found:
    """Release namespaces that nobody wants: those of a process killed between its steps."""
    known = {engine.places.router(network_id) for network_id in engine.routers}
    known |= {engine.places.task(task_id) for task_id in engine.tasks}
    found: Found = []
    for name in os.listdir(engine.places.namespaces):
        path = f"{engine.places.namespaces}/{name}"
        if path not in known:
            netns.release(path)
            found.append(("stale-namespace", f"{name} belongs to nothing that is wanted"))
    return found


def _repair_router(engine: Engine, router: Router) -> Found:
    if engine.routers.get(router.network.id) is not router:
        return []
    return engine.complete_router(router)


def _repair_task(engine: Engine, task: Task) -> Found:
    found: Found = []
    if engine.tasks.get(task.task_id) is not task:
        return found
    fd = _namespace_of(engine, task, found)
    _repair_sockets(engine, task, fd, found)
    entered = EnteredTask(engine.namespaces, fd)
    try:
        plan = engine.plan(task)
        broken = {each.position for each in links_down_or_missing(entered.link, plan)}
        for each, where in zip(plan, task.networks, strict=True):
            router = engine.routers[where.network_id]
            if each.position in broken or not router.has_link(task.task_id):
                _relink(router, task.task_id, each, fd)
                found.append(("task-link", f"link {each.name} of task {task.task_id} was missing"))
        lacking = missing_inside(entered.link, plan)
        if lacking:
            entered.link.execute(configure_requests(plan))
            if not any(kind == "task-link" for kind, _ in found):
                found += [("task-route", f"task {task.task_id}: {text}") for text in lacking]
        sockets = engine.resolver.sockets_of(task.task_id)
        if sockets is not None:
            found += [("task-resolver", f"task {task.task_id}: {text}") for text in entered.repair_resolver(sockets)]
    finally:
        entered.close()
    return found


def _relink(router: Router, task_id: str, plan: InterfacePlan, fd: int) -> None:
    router.detach(task_id)
    router.attach(task_id, plan.address, plan.name, plan.index, fd)


def _namespace_of(engine: Engine, task: Task, found: Found) -> int:
    """The namespace of a task: as mounted, else through its sockets, else a new one. The caller owns the fd."""
    path = engine.places.task(task.task_id)
    if engine.namespaces.is_namespace(path):
        return netns.open_namespace(path)
    netns.release(path)
    sockets = engine.resolver.sockets_of(task.task_id)
    if sockets is not None:
        fd = netns.namespace_of_socket(sockets.udp)
        netns.keep(fd, path)
        found.append(("task-mount", f"the namespace of task {task.task_id} was not mounted"))
        return fd
    fresh = make_namespace(engine.namespaces)
    netns.keep(fresh.fd, path)
    fresh.link.close()
    engine.serve_names(task, fresh.sockets)
    found.append(("task-namespace", f"task {task.task_id} had no namespace"))
    return fresh.fd


def _repair_sockets(engine: Engine, task: Task, fd: int, found: Found) -> None:
    """Make resolver sockets where there are none, e.g. after a restart without a keeper."""
    if engine.resolver.sockets_of(task.task_id) is not None:
        return
    with engine.namespaces.inside(fd):
        sockets = open_resolver_sockets()
        nftables = Nftables()
    try:
        repair_ruleset(nftables, task_ruleset(*sockets.ports()))
    finally:
        nftables.close()
    engine.serve_names(task, sockets)
    found.append(("task-sockets", f"task {task.task_id} had no resolver sockets"))


def remove_everything(engine: Engine) -> None:
    """Take down all that this process ever made on the node. Goes on past single failures, then raises the first."""
    first: KernelError | None = None
    for task_id in list(engine.tasks):
        try:
            engine.detach(task_id)
        except KernelError as failure:
            first = first or failure
    engine.pool.close()
    for router in list(engine.routers.values()):
        engine.node.disconnect(router.link_name)
        router.leave_overlay()
        router.close()
        netns.release(router.path)
    engine.routers.clear()
    for name in os.listdir(engine.places.namespaces):
        netns.release(f"{engine.places.namespaces}/{name}")
    engine.node.remove_uplinks()
    engine.node.remove_table()
    engine.store.clear()
    with contextlib.suppress(OSError):
        os.rmdir(engine.places.namespaces)
    if first is not None:
        raise first
