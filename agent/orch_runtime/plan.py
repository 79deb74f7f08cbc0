"""The plan: what a container is, flat, resolved and JSON-serialisable.

`orch_runtime.config` makes plans from OCI configs; the supervisor and its children carry them out without judging them
again. Masks, flags and numbers are already the kernel's; nothing is left to look up, except users given by name, which
only the container's own /etc/passwd can answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict


@dataclass(frozen=True)
class OverlayRootfs:
    """A root file system of read-only layers (`lower`, top first) below a writable `upper`; `work` is for overlayfs."""

    lower: tuple[str, ...]
    upper: str
    work: str


@dataclass(frozen=True)
class BindRootfs:
    """A folder that is the root file system as it is."""

    path: str


@dataclass(frozen=True)
class LogOptions:
    """Where a container's output goes, in Docker's json-file format, and how far it may grow.

    `max_bytes` bounds one file; `max_files` counts the current one too (`path`, `path.1`, ...).
    """

    path: str
    max_bytes: int = 10_000_000
    max_files: int = 3


class RootfsPlan(TypedDict):
    """`kind` overlay: lower, upper, work; bind: path."""

    kind: str
    lower: list[str]
    upper: str
    work: str
    path: str
    readonly: bool


class MountPlan(TypedDict):
    """One mount. `kind` bind uses source and recursive; others are file system types with mount(2) flags and data."""

    kind: str
    source: str
    target: str
    flags: int
    data: str
    attributes: int
    propagation: int
    recursive: bool
    options: list[list[str]]


class StagePlan(TypedDict):
    """A tree of kernel file systems that does not depend on the container's rootfs, so that it can be made ahead.

    `target` is where its root goes (/proc, /dev, /sys/fs/cgroup); the rest is relative to it.
    """

    target: str
    mounts: list[MountPlan]
    masked: list[str]
    readonly: list[str]


class UserPlan(TypedDict):
    """Numeric ids, or `name` ("user", "user:group") to be resolved inside the container."""

    name: str
    uid: int
    gid: int
    additional_gids: list[int]
    umask: int


class CapabilityPlan(TypedDict):
    """The five sets as masks."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int


class FilterPlan(TypedDict):
    """A filter of system calls: instructions for the kernel in base64, and flags of seccomp(2)."""

    program: str
    flags: int


class ProcessPlan(TypedDict):
    """The program and its confinement."""

    args: list[str]
    env: list[str]
    cwd: str
    user: UserPlan
    capabilities: CapabilityPlan
    no_new_privileges: bool
    rlimits: list[list[int]]
    seccomp: FilterPlan | None


class LimitsPlan(TypedDict, total=False):
    """Resource limits; an absent key means no limit of that kind (-1 lifts one by `update`)."""

    memory_bytes: int
    memory_swap_bytes: int
    memory_reservation_bytes: int
    cpu_shares: int
    cpu_quota_us: int
    cpu_period_us: int
    pids_max: int
    devices: list[str]


class LogPlan(TypedDict):
    """LogOptions on the wire."""

    path: str
    max_bytes: int
    max_files: int


class Plan(TypedDict):
    """Everything about one container."""

    id: str
    bundle: str
    annotations: dict[str, str]
    rootfs: RootfsPlan
    hostname: str
    domainname: str
    network: str
    netns_path: str
    stage: list[StagePlan]
    stage_key: str
    mounts: list[MountPlan]
    masked: list[str]
    readonly: list[str]
    devices: list[list[Any]]
    sysctls: list[list[str]]
    process: ProcessPlan
    oom_score_adj: int | None
    init: bool
    limits: LimitsPlan
    log: LogPlan | None
