"""A task's specification as an OCI configuration for the runtime. Pure."""

from __future__ import annotations

import marshal
import resource
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from orch_agent.errors import TaskFailure
from orch_agent.images.model import ImageConfig
from orch_agent.task import process
from orch_agent.task.templates import NodeFacts
from orch_proto import defaults
from orch_proto import objects_pb2 as objects
from orch_proto import specs_pb2 as specs
from orch_proto import types_pb2 as types
from orch_runtime.capabilities import NUMBERS
from orch_runtime.config import DEFAULT_CAPABILITIES, DEFAULT_SYSCTLS, default_config
from orch_runtime.config.default_seccomp import default_profile
from orch_runtime.config.seccomp_profile import UNCONFINED, Host, read_profile, resolve_profile
from orch_runtime.errors import InvalidConfig

CPU_PERIOD_US = 100_000
_UNLIMITED = (1 << 64) - 1


def container_config(
    task: objects.Task,
    image: ImageConfig,
    arguments: Sequence[str],
    mounts: Sequence[Mapping[str, Any]],
    node: NodeFacts,
) -> dict[str, Any]:
    """The OCI config.json of a task: the secure defaults, changed by what its service asks for.

    Raises:
        TaskFailure: something asked for does not exist (a capability's name, a resource limit's name).
    """
    spec = task.spec.container
    host_network = spec.namespaces.network == "host"
    limits = task.spec.resources.limits
    config = default_config(
        args=list(arguments),
        env=process.environment(task, image, node),
        cwd=spec.working_dir or image.working_dir or "/",
        hostname=process.hostname(task, node)[:64],
        readonly_rootfs=spec.read_only_root,
        capabilities=capabilities(["ALL"] if spec.privileges.privileged else spec.cap_add, spec.cap_drop),
        sysctls=_sysctls(spec, host_network=host_network),
        pids_limit=(limits.pids or -1) if limits.HasField("pids") else defaults.PIDS_LIMIT,
        host_network=host_network,
    )
    if spec.domainname:
        config["domainname"] = spec.domainname
    config["process"]["noNewPrivileges"] = not spec.privileges.allow_new_privileges
    config["process"]["rlimits"] = rlimits(spec.ulimits)
    config["process"]["user"]["additionalGids"] = [int(group) for group in spec.groups if group.isdigit()]
    if spec.HasField("oom_score_adj"):
        config["process"]["oomScoreAdj"] = spec.oom_score_adj
    config["annotations"] = dict(spec.oci_annotations)
    config["mounts"] = [*_with_shm(config["mounts"], spec, mounts), *mounts]
    config["linux"]["resources"].update(resources(limits, task.spec.resources.reservations))
    config["linux"]["seccomp"] = seccomp(spec.privileges.seccomp, config["process"]["capabilities"]["bounding"])
    return config


def capabilities(added: Sequence[str], dropped: Sequence[str]) -> list[str]:
    """The default set with some added and some dropped; names with and without ``CAP_``, and ``ALL``.

    As in Docker, dropping ALL leaves just what is added, and adding ALL leaves all but what is dropped.
    """
    return list(_chosen_capabilities(tuple(added), tuple(dropped)))


@lru_cache(maxsize=64)
def _chosen_capabilities(added: tuple[str, ...], dropped: tuple[str, ...]) -> tuple[str, ...]:
    add = {_capability(name) for name in added}
    drop = {_capability(name) for name in dropped}
    everything = set(NUMBERS)
    base = set() if "ALL" in drop else set(DEFAULT_CAPABILITIES)
    if "ALL" in add:
        base = everything
    chosen = (base | (add - {"ALL"})) - (drop - {"ALL"})
    return tuple(sorted(chosen, key=lambda name: NUMBERS[name]))


def _capability(name: str) -> str:
    upper = name.upper()
    if upper == "ALL":
        return upper
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in NUMBERS:
        raise TaskFailure(
            f"capability {name} does not exist; see capabilities(7) for the names", types.FAILURE_REASON_START
        )
    return full


def seccomp(profile: str, held: Sequence[str]) -> dict[str, Any] | None:
    """The filter of system calls: of a profile (JSON), the default one for "", none for "unconfined".

    Raises:
        TaskFailure: the profile cannot be read.
    """
    if profile == UNCONFINED:
        return None
    try:
        return marshal.loads(_seccomp(profile, tuple(held)))  # type: ignore[no-any-return] # noqa: S302 -- written below
    except InvalidConfig as error:
        raise TaskFailure(f"security_opt: {error}", types.FAILURE_REASON_START) from error


@lru_cache(maxsize=64)
def _seccomp(profile: str, held: tuple[str, ...]) -> bytes:
    return marshal.dumps(resolve_profile(read_profile(profile) if profile else default_profile(), held, Host.here()))


def rlimits(ulimits: Sequence[types.Ulimit]) -> list[dict[str, Any]]:
    """The resource limits of a task: nofile by default, everything else as asked for.

    The default for open files is lowered to what the node itself may have; what is asked for is left to the runtime.
    """
    own_hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    hard = defaults.NOFILE_HARD if own_hard == resource.RLIM_INFINITY else min(defaults.NOFILE_HARD, own_hard)
    chosen = {"RLIMIT_NOFILE": (min(defaults.NOFILE_SOFT, hard), hard)}
    for ulimit in ulimits:
        soft = _UNLIMITED if ulimit.soft < 0 else ulimit.soft
        chosen[f"RLIMIT_{ulimit.name.upper()}"] = (soft, _UNLIMITED if ulimit.hard < 0 else ulimit.hard)
    return [{"type": kind, "soft": soft, "hard": most} for kind, (soft, most) in sorted(chosen.items())]


def resources(limits: types.Limits, reservations: types.Resources) -> dict[str, Any]:
    """``linux.resources`` beside pids and devices: memory and CPU.

    A limit of CPUs becomes a quota per 100 ms, a reservation becomes shares (1024 a CPU), as Docker maps them.
    """
    wanted: dict[str, Any] = {}
    memory: dict[str, int] = {}
    if limits.memory_bytes:
        memory["limit"] = limits.memory_bytes
        if limits.HasField("memory_swap_bytes"):
            memory["swap"] = limits.memory_swap_bytes
    if reservations.memory_bytes:
        memory["reservation"] = reservations.memory_bytes
    if memory:
        wanted["memory"] = memory
    cpu: dict[str, int] = {}
    if limits.cpu_quota_us:
        cpu["quota"] = limits.cpu_quota_us
        cpu["period"] = limits.cpu_period_us or CPU_PERIOD_US
    elif limits.nano_cpus:
        cpu["quota"] = max(limits.nano_cpus * CPU_PERIOD_US // 1_000_000_000, 1000)
        cpu["period"] = CPU_PERIOD_US
    shares = limits.cpu_shares or (reservations.nano_cpus * 1024 // 1_000_000_000)
    if shares:
        cpu["shares"] = min(max(shares, 2), 262_144)
    if cpu:
        wanted["cpu"] = cpu
    return wanted


def user_of(spec: specs.ContainerSpec, image: ImageConfig) -> str | None:
    """The user to be resolved inside the container; None for root."""
    return spec.user or image.user or None


def _sysctls(spec: specs.ContainerSpec, *, host_network: bool) -> dict[str, str]:
    base = {} if host_network else dict(DEFAULT_SYSCTLS)
    return {**base, **spec.sysctls}


def _with_shm(
    base: list[dict[str, Any]], spec: specs.ContainerSpec, own: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The default mounts without those that the task replaces, /dev/shm at the size asked for."""
    replaced = {mount["destination"] for mount in own}
    kept = [mount for mount in base if mount["destination"] not in replaced]
    size = spec.shm_size_bytes if spec.HasField("shm_size_bytes") else defaults.SHM_SIZE_BYTES
    for mount in kept:
        if mount["destination"] == "/dev/shm":  # noqa: S108 -- a mount target
            options = [option for option in mount["options"] if not option.startswith("size=")]
            mount["options"] = [*options, f"size={size}"]
    return kept
