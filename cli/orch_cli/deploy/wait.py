"""Waiting until a stack has converged, or until it is plain that it will not."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orch_cli.deploy.convergence import ServiceProgress, Verdict, evaluate_stack
from orch_cli.deploy.progress import Progress
from orch_cli.deploy.watch import StackState, follow
from orch_cli.errors import EXIT_ERROR, EXIT_NOT_IN_TIME, EXIT_OK, EXIT_ROLLED_BACK, EXIT_UNPLACEABLE
from orch_proto.types_pb2 import HEALTH_STATE_HEALTHY, TASK_STATE_RUNNING

if TYPE_CHECKING:
    from orch_proto.control_pb2 import Filter
    from orch_proto.control_pb2_grpc import ControlAsyncStub
    from orch_proto.objects_pb2 import Task

PROVEN_AFTER_S: Final = 0.5  # most programs that cannot work have ended by then; each deploy waits this long
SETTLE_S: Final = 3.0  # a node may be about to come back, or a task about to end and free what is missing


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the wait ended: the exit status, the last state of the services, and whether the user left."""

    status: int
    services: Sequence[ServiceProgress]
    elapsed_s: float
    detached: bool = False


def judge(services: Sequence[ServiceProgress]) -> int | None:
    """The exit status that a state calls for; None: go on. What only waits for a node is judged by time."""
    verdicts = {service.verdict for service in services}
    if verdicts <= {Verdict.CONVERGED}:
        return EXIT_OK
    if Verdict.FAILED in verdicts and verdicts <= {Verdict.CONVERGED, Verdict.FAILED}:
        return EXIT_ERROR
    settled = {Verdict.CONVERGED, Verdict.PAUSED, Verdict.ROLLED_BACK}
    return EXIT_ROLLED_BACK if verdicts <= settled else None


def unproven_for_s(tasks: Iterable[Task], now_unix_s: float) -> float:
    """How long it still takes until running tasks without a health check count as running, in seconds.

    A program that cannot work mostly ends within moments of its start; without this, a deploy of one would be called
    converged in the moment between. A task that a health check has found healthy has proved itself.
    """
    young = [
        PROVEN_AFTER_S - (now_unix_s - task.status.timestamp_unix_ms / 1000)
        for task in tasks
        if task.status.state == TASK_STATE_RUNNING and task.status.health.state != HEALTH_STATE_HEALTHY
    ]
    # Clocks of hosts differ: no task is waited for longer than one that has started just now.
    return min(max(young, default=0.0), PROVEN_AFTER_S)


def is_stuck(services: Sequence[ServiceProgress]) -> bool:
    """Whether all that is missing waits for a node."""
    verdicts = {service.verdict for service in services}
    return Verdict.UNPLACED in verdicts and verdicts <= {
        Verdict.CONVERGED,
        Verdict.UNPLACED,
        Verdict.PAUSED,
        Verdict.ROLLED_BACK,
    }


async def wait_converged(
    stub: ControlAsyncStub,
    name: str,
    filters: Sequence[Filter],
    *,
    names: frozenset[str],
    progress: Progress,
    timeout_s: float,
    started: float,
) -> Outcome:
    """Watches a stack until it has converged, failed, or the time is over.

    Args:
        stub: the control API.
        name: the stack's name.
        filters: what to watch.
        names: full names of the services that were deployed; others of the stack are not waited for.
        progress: is shown each change.
        timeout_s: how long to wait.
        started: ``time.monotonic()`` at which the deploy began.
    """
    state = StackState(name)
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError, RuntimeError):
        loop.add_signal_handler(signal.SIGINT, interrupted.set)
    watcher = asyncio.create_task(
        _watch(stub, state, filters, names=names, progress=progress, started=started, deadline=started + timeout_s)
    )
    leaver = asyncio.create_task(interrupted.wait())
    try:
        await asyncio.wait({watcher, leaver}, return_when=asyncio.FIRST_COMPLETED)
        if watcher.done():
            return watcher.result()
        return Outcome(EXIT_OK, _services(state, names), time.monotonic() - started, detached=True)
    finally:
        with suppress(NotImplementedError, RuntimeError):
            loop.remove_signal_handler(signal.SIGINT)
        for task in (watcher, leaver):
            task.cancel()
        await asyncio.gather(watcher, leaver, return_exceptions=True)
        progress.close()


def _tasks(state: StackState, names: frozenset[str]) -> list[Task]:
    wanted = {identifier for identifier, one in state.services.items() if one.spec.annotations.name in names}
    return [task for identifier in wanted for task in state.tasks.get(identifier, {}).values()]


def _services(state: StackState, names: frozenset[str]) -> list[ServiceProgress]:
    services = [service for service in state.services.values() if service.spec.annotations.name in names]
    return evaluate_stack(services, {identifier: list(tasks.values()) for identifier, tasks in state.tasks.items()})


async def _watch(
    stub: ControlAsyncStub,
    state: StackState,
    filters: Sequence[Filter],
    *,
    names: frozenset[str],
    progress: Progress,
    started: float,
    deadline: float,
) -> Outcome:
    services: list[ServiceProgress] = []
    pause_s: float | None = None
    while (now := time.monotonic()) < deadline:
        # What is stuck or settles sends no more events: the wait for the next one ends when it has lasted long enough.
        until = deadline if pause_s is None else min(now + pause_s, deadline)
        async with aclosing(follow(stub, state, filters, until)) as changes:
            async for _ in changes:
                services = _services(state, names)
                elapsed_s = time.monotonic() - started
                progress.update(services, elapsed_s)
                status = judge(services) if len(services) == len(names) else None
                unproven_s = unproven_for_s(_tasks(state, names), time.time()) if status == EXIT_OK else 0.0
                if status is not None and unproven_s <= 0:
                    return Outcome(status, services, elapsed_s)
                wanted_pause_s = SETTLE_S if is_stuck(services) else (unproven_s or None)
                if (wanted_pause_s is None) != (pause_s is None):
                    pause_s = wanted_pause_s
                    break
        if until < deadline and time.monotonic() >= until:
            status = EXIT_UNPLACEABLE if is_stuck(services) else judge(services)
            if status is not None:
                return Outcome(status, services, time.monotonic() - started)
            pause_s = None
    return Outcome(EXIT_NOT_IN_TIME, services, time.monotonic() - started)
