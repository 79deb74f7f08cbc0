"""What a launch takes in before there is a process: the plan, its network namespace, its streams."""

from __future__ import annotations

import os

from orch_runtime.errors import InvalidConfig, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.plan import Plan


def check_plan(plan: object) -> str:
    """Check as much of a plan as keeps a wrong one from doing harm here; the rest fails in the child."""
    if not isinstance(plan, dict):
        raise InvalidConfig("plan", "must be an object made by compile_config")
    missing = {
        "id",
        "rootfs",
        "stage",
        "stage_key",
        "mounts",
        "process",
        "limits",
        "log",
        "network",
        "bundle",
    } - plan.keys()
    if missing:
        raise InvalidConfig("plan", f"lacks {', '.join(sorted(missing))}; make plans with compile_config")
    container_id = plan["id"]
    if not isinstance(container_id, str) or not container_id or "/" in container_id or container_id.startswith("."):
        raise InvalidConfig("plan.id", f"{container_id!r} is not a container id")
    return container_id


def open_netns(plan: Plan) -> int:
    """Open the network namespace that a container joins; -1 when it has its own or the host's."""
    if plan["network"] != "path":
        return -1
    try:
        return os.open(plan["netns_path"], os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open network namespace", error.errno or 0, plan["netns_path"]) from error


def make_streams(plan: Plan, descriptors: list[int]) -> tuple[list[int], list[int]]:
    """Return the container's stdin, stdout and stderr (-1 is /dev/null), and our ends of those that are logged."""
    readers: list[int] = []
    if descriptors:
        return descriptors, readers
    streams = [-1, -1, -1]
    if plan["log"] is not None:
        for position in (1, 2):
            reader, streams[position] = _make_pipe()
            readers.append(reader)
    return streams, readers


def _make_pipe() -> tuple[int, int]:
    """Return (read end, both ends): the container holds its pipe open for reading too.

    So its writes never fail with EPIPE, whoever of us dies; they wait when the pipe is full.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.close(writer)
    return reader, os.open(f"/proc/self/fd/{reader}", os.O_RDWR | os.O_CLOEXEC)


def close_all(descriptors: list[int]) -> None:
    """Close those that are there: -1 stands for none."""
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)
