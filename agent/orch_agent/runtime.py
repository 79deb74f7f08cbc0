"""The runtime as the agent uses it: typed calls over the link to the supervisor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orch_agent.errors import LinkRefused
from orch_agent.packets import PacketLink
from orch_runtime import protocol
from orch_runtime.config import compile_config
from orch_runtime.errors import InvalidConfig, NotFound
from orch_runtime.plan import LogOptions, OverlayRootfs

EXEC_SPARE_S = 10.0
STATS_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How a container ended; the code is None when nobody can tell."""

    code: int | None
    oom_killed: bool
    finished_at_unix_ms: int


@dataclass(frozen=True, slots=True)
class ContainerView:
    """A container as the runtime has it.

    Attributes:
        exit: None while it runs.
        paused: it is frozen.
        warnings: what was asked for and this host cannot do.
        being_made: its start is under way; should it fail, the runtime forgets it and tells only who asked for it.
    """

    id: str
    pid: int
    started_at_unix_ms: int
    exit: ContainerExit | None
    being_made: bool = False
    paused: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """A container to be run, before it is compiled to a plan."""

    config: Mapping[str, Any]
    rootfs: OverlayRootfs
    netns_path: str | None
    log: LogOptions | None
    user: str | None
    init: bool


class Runtime:
    """Calls of the supervisor.

    Each raises LinkLost when the supervisor is away (the call may be repeated), and LinkRefused with the supervisor's
    own sentence.
    """

    def __init__(self, link: PacketLink) -> None:
        self.link = link

    async def run(self, container_id: str, request: ContainerRequest) -> ContainerView:
        """Creates and starts a container; repeating it for the same id is harmless."""
        try:
            plan = compile_config(
                request.config,
                rootfs=request.rootfs,
                container_id=container_id,
                log=request.log,
                netns_path=request.netns_path,
                user=request.user,
                init=request.init,
            )
        except InvalidConfig as error:
            raise LinkRefused(error.kind, str(error)) from error
        return view_of(protocol.parse_state(await self.link.call(protocol.OP_RUN, {"plan": plan}, repeat=True)))

    async def kill(self, container_id: str, number: int) -> None:
        """Sends a signal to the container's first process."""
        await self.link.call(protocol.OP_KILL, {"id": container_id, "signal": number}, repeat=True)

    async def resume(self, container_id: str) -> None:
        """Thaws a frozen container; one that runs is left as it is."""
        await self.link.call(protocol.OP_RESUME, {"id": container_id}, repeat=True)

    async def delete(self, container_id: str) -> None:
        """Removes a container, killing it first if it runs; one that is not there is fine."""
        try:
            await self.link.call(protocol.OP_DELETE, {"id": container_id, "force": True}, repeat=True)
        except LinkRefused as error:
            if error.kind != NotFound.kind:
                raise

    async def delete_now(self, container_id: str) -> None:
        """Like :meth:`delete`, on the connection as it is."""
        await self.link.call_now(protocol.OP_DELETE, {"id": container_id, "force": True})

    async def execute(
        self, container_id: str, command: Sequence[str], *, timeout_s: float, max_output_bytes: int
    ) -> protocol.ExecResult:
        """Runs a program inside a container and waits for its end."""
        fields = {
            "id": container_id,
            "args": list(command),
            "env": [],
            "cwd": "",
            "user": "",
            "timeout_ms": max(int(timeout_s * 1000), 1),
            "max_output_bytes": max_output_bytes,
        }
        answer = await self.link.call(protocol.OP_EXEC, fields, timeout_s=timeout_s + EXEC_SPARE_S)
        return protocol.parse_exec(answer)

    async def containers(self) -> dict[str, ContainerView]:
        """All containers, by id; asked on the connection as it is."""
        answer = await self.link.call_now(protocol.OP_LIST)
        views = (view_of(protocol.parse_state(entry)) for entry in answer["containers"])
        return {view.id: view for view in views}

    async def subscribe(self) -> None:
        """Asks for events on the connection as it is."""
        await self.link.call_now(protocol.OP_SUBSCRIBE)

    async def stats(self) -> list[protocol.ContainerStats]:
        """Counters of all running containers."""
        answer = await self.link.call(protocol.OP_STATS, {"ids": None}, timeout_s=STATS_WAIT_S)
        return [protocol.parse_stats(entry) for entry in answer["stats"]]


def exit_of(event: protocol.ExitEvent) -> ContainerExit:
    """The end of a container as an event tells it."""
    return ContainerExit(event.code, event.oom_killed, event.finished_at_unix_ms)


def view_of(state: protocol.ContainerState) -> ContainerView:
    """A container as the agent sees it."""
    ended = None
    if state.status == protocol.STATUS_EXITED:
        code = state.exit_code if state.exit_known else None
        ended = ContainerExit(code, state.oom_killed, state.finished_at_unix_ms)
    being_made = state.status in (protocol.STATUS_CREATING, protocol.STATUS_CREATED)
    return ContainerView(
        state.id,
        state.pid,
        state.started_at_unix_ms,
        ended,
        being_made,
        state.status == protocol.STATUS_PAUSED,
        tuple(state.warnings),
    )
