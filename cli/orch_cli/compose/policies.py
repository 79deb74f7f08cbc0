"""How many tasks a service has, where they may run, what they may use, and what happens when they fail or change."""

from __future__ import annotations

import re
from typing import Final

from orch_cli.compose.nodes import ScalarNode
from orch_cli.compose.report import nearest
from orch_cli.compose.view import View
from orch_proto import defaults
from orch_proto.types_pb2 import (
    FAILURE_ACTION_CONTINUE,
    FAILURE_ACTION_PAUSE,
    FAILURE_ACTION_ROLLBACK,
    RESTART_CONDITION_ANY,
    RESTART_CONDITION_NONE,
    RESTART_CONDITION_ON_FAILURE,
    UPDATE_ORDER_START_FIRST,
    UPDATE_ORDER_STOP_FIRST,
    Limits,
    Placement,
    PlacementPreference,
    Platform,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    UpdateConfig,
)

_CONDITIONS: Final = {
    "none": RESTART_CONDITION_NONE,
    "on-failure": RESTART_CONDITION_ON_FAILURE,
    "any": RESTART_CONDITION_ANY,
}
_RESTART: Final = {"no": "none", "always": "any", "unless-stopped": "any", "on-failure": "on-failure"}
_ACTIONS: Final = {
    "pause": FAILURE_ACTION_PAUSE,
    "continue": FAILURE_ACTION_CONTINUE,
    "rollback": FAILURE_ACTION_ROLLBACK,
}
_ORDERS: Final = {"stop-first": UPDATE_ORDER_STOP_FIRST, "start-first": UPDATE_ORDER_START_FIRST}
_CONSTRAINT = re.compile(r"\s*([A-Za-z][A-Za-z0-9_.\-/]*)\s*(==|!=)\s*(\S.*?)\s*")
_CONSTRAINT_KEYS: Final = (
    "node.id",
    "node.hostname",
    "node.ip",
    "node.role",
    "node.platform.os",
    "node.platform.arch",
    "node.labels.",
    "engine.labels.",
)
_SPREAD_KEYS: Final = ("node.labels.", "engine.labels.", "node.id", "node.hostname")
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "x86-64": "amd64", "armhf": "arm", "armel": "arm"}


def read_replicas(service: View, deploy: View) -> int:
    """How many tasks are wanted: ``deploy.replicas``, else ``scale``, else one."""
    mode = deploy.text("mode")
    if mode in ("global", "replicated-job", "global-job"):
        deploy.error(
            "mode",
            f"{mode} is not supported yet",
            "services are replicated in this version",
            "remove it, and give replicas",
        )
    elif mode not in (None, "replicated"):
        deploy.choice("mode", ("replicated", "global", "replicated-job", "global-job"))
    replicas = deploy.integer("replicas", 0, defaults.MAX_REPLICAS)
    scale = service.integer("scale", 0, defaults.MAX_REPLICAS)
    if scale is not None and replicas is not None and scale != replicas:
        service.error("scale", f"scale {scale} and deploy.replicas {replicas} differ", "", "remove scale")
    if replicas is None:
        replicas = scale
    return defaults.REPLICAS if replicas is None else replicas


# ---- resources ---------------------------------------------------------------------------------------


def read_resources(service: View, deploy: View) -> ResourceRequirements | None:
    """Limits and reservations, from ``deploy.resources`` and the older attributes of the service."""
    resources = deploy.view("resources")
    limits, reserved = resources.view("limits"), resources.view("reservations")
    result = ResourceRequirements(
        limits=Limits(
            nano_cpus=_same(service, "cpus", service.nano_cpus("cpus"), limits.nano_cpus("cpus")),
            memory_bytes=_same(service, "mem_limit", service.size_bytes("mem_limit"), limits.size_bytes("memory")),
            cpu_shares=service.integer("cpu_shares", 2, 262_144) or 0,
            cpu_quota_us=_cpu_time(service, "cpu_quota"),
            cpu_period_us=_cpu_time(service, "cpu_period"),
        ),
        reservations=Resources(
            nano_cpus=reserved.nano_cpus("cpus") or 0,
            memory_bytes=_same(
                service, "mem_reservation", service.size_bytes("mem_reservation"), reserved.size_bytes("memory")
            ),
        ),
    )
    pids = _same_optional(service, "pids_limit", service.integer("pids_limit", -1), limits.integer("pids", -1))
    if pids is not None:
        result.limits.pids = max(pids, 0)
    _swap(service, result.limits)
    _check_amounts(limits, result.limits.nano_cpus, result.limits.memory_bytes, service)
    _check_amounts(reserved, result.reservations.nano_cpus, result.reservations.memory_bytes, service)
    limit, reservation = result.limits, result.reservations
    if limit.memory_bytes and reservation.memory_bytes > limit.memory_bytes:
        reserved.error(
            "memory", "more memory is reserved than allowed", f"{reservation.memory_bytes} > {limit.memory_bytes} bytes"
        )
    if limit.nano_cpus and reservation.nano_cpus > limit.nano_cpus:
        reserved.error("cpus", "more CPUs are reserved than allowed")
    if limit.nano_cpus and (limit.cpu_quota_us or limit.cpu_period_us):
        service.error(
            "cpu_quota", "cpus and cpu_quota say the same thing", "only one can hold", "remove cpu_quota and cpu_period"
        )
    return result if result.limits.ByteSize() or result.reservations.ByteSize() else None


def _check_amounts(view: View, nano_cpus: int, memory_bytes: int, service: View) -> None:
    if 0 < nano_cpus < defaults.MIN_NANO_CPUS:
        (view if view.has("cpus") else service).error("cpus", "too few CPUs", "the least is 0.001")
    if 0 < memory_bytes < defaults.MIN_MEMORY_BYTES:
        key = "memory" if view.has("memory") else "mem_limit"
        (view if view.has("memory") else service).error(
            key, "too little memory", f"the least is {defaults.MIN_MEMORY_BYTES} bytes (4M)"
        )


def _same_optional(service: View, key: str, old: int | None, new: int | None) -> int | None:
    if old is not None and new is not None and old != new:
        service.error(key, "differs from what deploy.resources says", f"{old} and {new}", f"remove {key}")
    return new if new is not None else old


def _same(service: View, key: str, old: int | None, new: int | None) -> int:
    return _same_optional(service, key, old, new) or 0


def _cpu_time(service: View, key: str) -> int:
    """Microseconds: a number, or a duration as text."""
    node = service.scalar(key)
    if node is None:
        return 0
    if isinstance(node.value, int) or node.text.isdigit():
        return service.integer(key, 1000, 1_000_000_000) or 0
    return (service.duration_ms(key, 1) or 0) * 1000


def _swap(service: View, limits: Limits) -> None:
    node = service.scalar("memswap_limit")
    if node is None:
        return
    value = -1 if node.text == "-1" else service.size_bytes("memswap_limit")
    if value is None:
        return
    if not limits.memory_bytes:
        service.error(
            "memswap_limit", "a limit of memory is needed too", "swap is counted together with memory", "add mem_limit"
        )
    elif value not in (-1, 0) and value < limits.memory_bytes:
        service.error("memswap_limit", "it is below the limit of memory", "it is memory plus swap")
    if value:
        limits.memory_swap_bytes = value


# ---- restart, update ---------------------------------------------------------------------------------


def read_restart(service: View, deploy: View) -> RestartPolicy | None:
    """``deploy.restart_policy``, else what ``restart`` means; None: the default (any, 5 s)."""
    view = deploy.view("restart_policy")
    if not deploy.has("restart_policy"):
        return _old_restart(service)
    word = view.text("condition")
    if word in ("always", "unless-stopped"):
        view.warn("condition", f"{word} is read as any", "Swarm knows none, on-failure and any")
        word = "any"
    elif word is not None and word not in _CONDITIONS:
        view.choice("condition", tuple(_CONDITIONS))
        word = None
    policy = RestartPolicy(
        condition=_CONDITIONS[word or "any"],
        max_attempts=view.integer("max_attempts") or 0,
        window_ms=view.duration_ms("window") or 0,
    )
    delay_ms = view.duration_ms("delay")
    if delay_ms is not None:
        policy.delay_ms = delay_ms
    return policy


def _old_restart(service: View) -> RestartPolicy | None:
    node = service.scalar("restart")
    if node is None:
        return None
    if node.value is False:
        return RestartPolicy(condition=RESTART_CONDITION_NONE)
    word, colon, count = node.text.partition(":")
    if word not in _RESTART or (colon and (word != "on-failure" or not count.isdigit())):
        known = ("no", "always", "unless-stopped", "on-failure", "on-failure:3")
        service.error("restart", f"{node.text!r} is not known", f"known: {', '.join(known)}", nearest(node.text, known))
        return None
    return RestartPolicy(condition=_CONDITIONS[_RESTART[word]], max_attempts=int(count) if count else 0)


def read_update(view: View, *, rollback: bool) -> UpdateConfig | None:
    """``update_config`` or ``rollback_config``; None: the defaults."""
    if not view:
        return None
    actions = tuple(word for word in _ACTIONS if not rollback or word != "rollback")
    config = UpdateConfig(
        delay_ms=view.duration_ms("delay") or 0,
        failure_action=_ACTIONS[view.choice("failure_action", actions) or "pause"],
        max_failure_ratio=view.real("max_failure_ratio", 0, 1) or 0.0,
        order=_ORDERS[view.choice("order", tuple(_ORDERS)) or "stop-first"],
    )
    parallelism = view.integer("parallelism")
    if parallelism is not None:
        config.parallelism = parallelism
    monitor_ms = view.duration_ms("monitor")
    if monitor_ms is not None:
        config.monitor_ms = monitor_ms
    return config


# ---- placement ---------------------------------------------------------------------------------------


def read_placement(service: View, deploy: View) -> Placement | None:
    """Constraints, preferences, the limit per node, and the platform."""
    view = deploy.view("placement")
    result = Placement(max_replicas_per_node=view.integer("max_replicas_per_node") or 0)
    for node, path in view.items("constraints"):
        if isinstance(node, ScalarNode):
            problem, constraint = check_constraint(node.text)
            if problem:
                view.report.error(node.mark, path, f"{node.text!r} is no constraint", *problem)
            result.constraints.append(constraint)
    for node, path in view.items("preferences"):
        spread = View(node, path, view.report).text("spread") or ""
        if not spread.lower().startswith(_SPREAD_KEYS):
            view.report.error(
                node.mark,
                path,
                f"{spread!r} cannot be spread over",
                f"known: {', '.join(_SPREAD_KEYS)}…",
                "write spread: node.labels.zone",
            )
        result.preferences.append(PlacementPreference(spread_descriptor=spread))
    platform = service.text("platform")
    if platform is not None:
        result.platforms.append(_platform(service, platform))
    return result if result.ByteSize() else None


def check_constraint(text: str) -> tuple[tuple[str, str] | None, str]:
    """Why a constraint is wrong and what to write (None when it is right), and the constraint in its usual form."""
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        return ("the form is key==value or key!=value", "for example node.role==manager"), text
    key, operator, value = match.groups()
    folded = key.lower()
    for known in _CONSTRAINT_KEYS:
        prefix = known.endswith(".")
        if (prefix and folded.startswith(known) and len(folded) > len(known)) or (not prefix and folded == known):
            # Only the fixed part is folded: what follows is a label's own name.
            fixed = known
            return None, f"{fixed}{key[len(fixed) :]}{operator}{value}"
    return (
        f"the key {key!r} is unknown",
        nearest(key, _CONSTRAINT_KEYS) or f"known: {', '.join(_CONSTRAINT_KEYS)}",
    ), text


def _platform(service: View, text: str) -> Platform:
    parts = text.lower().split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if parts[0] != "linux" or not 2 <= len(parts) <= 3 or not all(parts):
        service.error(
            "platform", f"{text!r} is no platform", "the form is linux/architecture[/variant]", "write linux/amd64"
        )
    architecture = _ARCHITECTURES.get(parts[1], parts[1])
    return Platform(os=parts[0], architecture=architecture, variant=parts[2] if len(parts) > 2 else "")
