"""The runtime as the agent uses it: typed calls over the link to the supervisor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orch_agent.errors import LinkRefused
from orch_agent.packets import JsonObject, PacketLink
from orch_runtime.config import compile_config
from orch_runtime.errors import InvalidConfig
from orch_runtime.plan import LogOptions, OverlayRootfs


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How a container ended; the code is None when nobody can tell."""

    code: int | None
    oom_killed: bool
    finished_at_unix_ms: int


@dataclass(frozen=True, slots=True)
class ContainerView:
    """A container as the runtime has it; ``exit`` is None while it runs."""

    id: str
    pid: int
    started_at_unix_ms: int
    exit: ContainerExit | None


@dataclass(frozen=True, slots=True)
class Execution:
    """What a program run inside a container gave."""

    exit_code: int
    output: str
    timed_out: bool


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
        answer = await self.link.call("run", {"plan": plan})
        return read_container({"id": container_id, **answer})

    async def kill(self, container_id: str, number: int) -> None:
        """Sends a signal to the container's first process."""
        await self.link.call("kill", {"id": container_id, "signal": number})

    async def delete(self, container_id: str) -> None:
        """Removes a container, killing it first if it runs; one that is not there is fine."""
        try:
            await self.link.call("delete", {"id": container_id, "force": True})
        except LinkRefused as error:
            if error.kind != "not_found":
                raise

    async def execute(
        self, container_id: str, command: Sequence[str], *, timeout_s: float, max_output_bytes: int
    ) -> Execution:
        """Runs a program inside a container and waits for its end."""
        answer = await self.link.call(
            "exec",
            {
                "id": container_id,
                "args": list(command),
                "timeout_ms": int(timeout_s * 1000),
                "max_output_bytes": max_output_bytes,
            },
            timeout_s=timeout_s + 10.0,
        )
        return Execution(
            exit_code=int(answer.get("exit_code", -1)),
            output=str(answer.get("output", "")),
            timed_out=bool(answer.get("timed_out", False)),
        )

    async def containers(self) -> dict[str, ContainerView]:
        """All containers, by id."""
        answer = await self.link.call_now("list")
        return {view.id: view for view in map(read_container, answer["containers"])}

    async def stats(self) -> list[JsonObject]:
        """Counters of all running containers."""
        answer = await self.link.call("stats", timeout_s=5.0)
        return list(answer["containers"])


def read_exit(fields: JsonObject) -> ContainerExit:
    """The end of a container, from an event or a listing."""
    code = fields.get("code")
    return ContainerExit(
        code=None if code is None else int(code),
        oom_killed=bool(fields.get("oom_killed", False)),
        finished_at_unix_ms=int(fields.get("finished_at_unix_ms", 0)),
    )


def read_container(fields: JsonObject) -> ContainerView:
    """A container, from a listing or the answer to ``run``."""
    ended = fields.get("exit")
    return ContainerView(
        id=str(fields["id"]),
        pid=int(fields.get("pid", 0)),
        started_at_unix_ms=int(fields.get("started_at_unix_ms", 0)),
        exit=None if ended is None else read_exit(ended),
    )
