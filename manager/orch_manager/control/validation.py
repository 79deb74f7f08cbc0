"""Whether specifications make sense by themselves, without a look at the cluster. Every problem is told.

Limits are those of `defaults`; rules are Swarm's (SwarmKit: manager/controlapi/service.go, secret.go, network.go)
where it has them.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from orch_manager.scheduler.constraints import ConstraintSyntaxError, check_preference, parse
from orch_proto import defaults
from orch_proto.specs_pb2 import (
    ClusterSpec,
    ConfigSpec,
    ContainerSpec,
    NetworkSpec,
    SecretSpec,
    ServiceSpec,
    StackSpec,
    TaskSpec,
    VolumeSpec,
)
from orch_proto.types_pb2 import (
    EndpointMode,
    EndpointSpec,
    HealthConfig,
    MountType,
    PublishMode,
    ResourceRequirements,
    RestartPolicy,
    UpdateConfig,
)

_Value = TypeVar("_Value")
#: Problems as sentences without a full stop.
Problems = Iterator[str]
_SERVICE_NAME: Final = re.compile(r"^[a-zA-Z0-9]([-_a-zA-Z0-9]*[a-zA-Z0-9])?$")
_OBJECT_NAME: Final = re.compile(r"^[a-zA-Z0-9]+(?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?$")
_STACK_NAME: Final = re.compile(r"^[a-z0-9][a-z0-9_-]*$")
_SUPPORTED_DRIVERS: Final = ("", "overlay", "bridge")
_HEALTH_FORMS: Final = ("NONE", "CMD", "CMD-SHELL")


def stack(spec: StackSpec) -> Problems:
    """Problems of a whole stack, each led by the part it concerns."""
    if not _STACK_NAME.match(spec.name) or len(spec.name) > defaults.STACK_NAME_LENGTH:
        yield (
            f"'{spec.name}' is no name for a stack: lower-case letters, digits, _ and -, "
            f"at most {defaults.STACK_NAME_LENGTH}, beginning with a letter or digit"
        )
    parts: tuple[tuple[str, Any, Any], ...] = (
        ("service", spec.services, service),
        ("network", spec.networks, network),
        ("secret", spec.secrets, secret),
        ("config", spec.configs, config),
        ("volume", spec.volumes, volume),
    )
    for label, items, check in parts:
        names = [item.annotations.name for item in items]
        yield from (f"{label} {name} is there twice" for name in _twice(names))
        for item in items:
            yield from (f"{label} {item.annotations.name}: {problem}" for problem in check(item))
    yield from _published_twice(spec.services)
    yield from _dependencies(spec)


def _twice(values: Iterable[_Value]) -> list[_Value]:
    seen: set[_Value] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]


def service(spec: ServiceSpec) -> Problems:
    """Problems of a service."""
    name = spec.annotations.name
    if not _SERVICE_NAME.match(name) or len(name) > defaults.SERVICE_NAME_LENGTH:
        yield (
            f"'{name}' is no name for a service: letters, digits, - and _ inside, "
            f"at most {defaults.SERVICE_NAME_LENGTH} characters"
        )
    mode = spec.mode.WhichOneof("mode") or "replicated"
    if mode != "replicated":
        yield f"mode {mode.replace('_', '-')} is not supported yet: use replicated"
    elif spec.mode.replicated.replicas > defaults.MAX_REPLICAS:
        yield f"{spec.mode.replicated.replicas} replicas: at most {defaults.MAX_REPLICAS} are possible"
    for label, update in (("update_config", spec.update), ("rollback_config", spec.rollback)):
        yield from (f"{label}.{problem}" for problem in _update_config(update))
    yield from _endpoint(spec.endpoint)
    yield from _task(spec.task)
    unsupported = {
        "autoscale": spec.HasField("autoscale"),
        "schedule": spec.HasField("schedule"),
        "pre_start": bool(spec.pre_start),
        "canary": bool(spec.canary),
    }
    yield from (f"{key} is not supported yet" for key, used in unsupported.items() if used)


def _update_config(config: UpdateConfig) -> Problems:
    if config.delay_ms < 0 or (config.HasField("monitor_ms") and config.monitor_ms < 0):
        yield "delay and monitor cannot be negative"
    if not 0 <= config.max_failure_ratio <= 1:
        yield f"max_failure_ratio is {config.max_failure_ratio:g}: 0 to 1 are possible"
    if config.HasField("progress_deadline_ms") and config.progress_deadline_ms <= 0:
        yield "progress_deadline must be more than 0"


def _endpoint(endpoint: EndpointSpec) -> Problems:
    for port in endpoint.ports:
        if not 1 <= port.target_port <= 65535:
            yield f"target port {port.target_port}: 1 to 65535 are possible"
        if port.published_port > 65535:
            yield f"published port {port.published_port}: 1 to 65535 are possible"
        if port.host_ip and not _is_address(port.host_ip):
            yield f"port {port.published_port}: '{port.host_ip}' is no address"
        if endpoint.mode == EndpointMode.ENDPOINT_MODE_DNSRR and port.mode != PublishMode.PUBLISH_MODE_HOST:
            yield f"port {port.published_port}: endpoint mode dnsrr cannot publish in ingress mode: use mode host"
    keys = [
        (port.published_port, port.protocol, port.host_ip, port.mode) for port in endpoint.ports if port.published_port
    ]
    yield from (f"port {key[0]} is published twice" for key in dict.fromkeys(_twice(keys)))
    if endpoint.proxy_protocol:
        yield "the PROXY protocol is not supported yet"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _task(task: TaskSpec) -> Problems:
    yield from _container(task.container)
    yield from _resources(task.resources)
    yield from _restart(task.restart)
    for text in task.placement.constraints:
        try:
            parse(text)
        except ConstraintSyntaxError as error:
            yield f"placement constraint {error}"
    for preference in task.placement.preferences:
        if why := check_preference(preference.spread_descriptor):
            yield f"placement preference {why}"
    if task.resources.reservations.generic:
        yield "generic resources are not supported yet"
    yield from (f"network {name} is attached twice" for name in _twice(each.target for each in task.networks))
    for attachment in task.networks:
        if attachment.ipv4_address and not _is_address(attachment.ipv4_address):
            yield f"network {attachment.target}: '{attachment.ipv4_address}' is no address"
        if attachment.ipv6_address:
            yield f"network {attachment.target}: IPv6 addresses are not supported yet"
    if task.disconnect_grace_ms < 0:
        yield "x-orch.disconnect_grace cannot be negative"


def _container(container: ContainerSpec) -> Problems:
    if not container.image:
        yield "an image is missing"
    yield from _health(container.healthcheck)
    for entry in container.env:
        if not entry or entry.startswith("=") or "\0" in entry:
            yield f"environment: '{entry.partition('=')[0]}' is no name"
    targets = [posixpath.normpath(mount.target) for mount in container.mounts]
    for mount in container.mounts:
        if not mount.target.startswith("/"):
            yield f"mount target '{mount.target}' must be absolute"
        if posixpath.normpath(mount.target) == "/":
            yield "nothing can be mounted over /"
        if mount.type == MountType.MOUNT_TYPE_BIND and not mount.source.startswith("/"):
            yield f"bind mount source '{mount.source}' must be absolute"
        if mount.type == MountType.MOUNT_TYPE_IMAGE:
            yield "image mounts are not supported yet"
    yield from (f"two mounts have the target {target}" for target in dict.fromkeys(_twice(targets)))
    files = [posixpath.join("/run/secrets", each.file.path or each.secret_name) for each in container.secrets]
    files += [posixpath.join("/", each.file.path or each.config_name) for each in container.configs]
    yield from (f"two secrets or configs have the target {target}" for target in dict.fromkeys(_twice(files)))
    for label, value in (
        ("stop_grace_period", container.stop_grace_ms),
        ("x-orch.stop_delay", container.stop_delay_ms),
        ("shm_size", container.shm_size_bytes),
    ):
        if value < 0:
            yield f"{label} cannot be negative"


def _health(health: HealthConfig) -> Problems:
    if health.test and health.test[0] not in _HEALTH_FORMS:
        yield f"healthcheck test begins with '{health.test[0]}': {', '.join(_HEALTH_FORMS)} are possible"
    if len(health.test) == 1 and health.test[0] != "NONE":
        yield f"healthcheck test {health.test[0]} lacks its command"
    for field in ("interval_ms", "timeout_ms", "start_interval_ms"):
        value = getattr(health, field)
        if health.HasField(field) and 0 != value < defaults.HEALTH_MIN_MS:
            yield f"healthcheck {field.removesuffix('_ms')} is {value} ms, less than {defaults.HEALTH_MIN_MS} ms"
    if health.start_period_ms < 0:
        yield "healthcheck start_period cannot be negative"


def _resources(resources: ResourceRequirements) -> Problems:
    limits, reserved = resources.limits, resources.reservations
    for label, cpus, memory in (
        ("limits", limits.nano_cpus, limits.memory_bytes),
        ("reservations", reserved.nano_cpus, reserved.memory_bytes),
    ):
        if cpus and cpus < defaults.MIN_NANO_CPUS:
            yield f"resources.{label}.cpus: at least {defaults.MIN_NANO_CPUS / 1e9:g} is possible"
        if memory and memory < defaults.MIN_MEMORY_BYTES:
            yield f"resources.{label}.memory: at least {defaults.MIN_MEMORY_BYTES // defaults.MIB} MiB are possible"
    if limits.memory_bytes and reserved.memory_bytes > limits.memory_bytes:
        yield "resources: more memory is reserved than the limit allows"
    if limits.nano_cpus and reserved.nano_cpus > limits.nano_cpus:
        yield "resources: more CPU is reserved than the limit allows"
    if limits.pids < 0:
        yield "resources.limits.pids cannot be negative (0 is no limit)"


def _restart(policy: RestartPolicy) -> Problems:
    if policy.delay_ms < 0 or policy.window_ms < 0 or policy.max_delay_ms < 0:
        yield "restart_policy: delay, window and the longest delay cannot be negative"


def network(spec: NetworkSpec) -> Problems:
    """Problems of a network."""
    yield from _object_name(spec.annotations.name, "network", defaults.SECRET_NAME_LENGTH)
    if spec.driver not in _SUPPORTED_DRIVERS:
        yield f"driver {spec.driver} is not supported yet: use overlay"
    if spec.enable_ipv6:
        yield "IPv6 is not supported yet"
    if spec.encrypted:
        yield "encryption is not supported yet"
    if len(spec.ipam.pools) > 1:
        yield "more than one subnet is not supported yet"
    for pool in spec.ipam.pools:
        yield from _pool(pool.subnet, pool.gateway, pool.ip_range)


def _pool(subnet: str, gateway: str, ip_range: str) -> Problems:
    try:
        block = ipaddress.IPv4Network(subnet) if subnet else None
    except ValueError as error:
        yield f"subnet '{subnet}' is no IPv4 subnet ({error})"
        return
    if block is None:
        if gateway or ip_range:
            yield "a gateway or ip_range needs a subnet"
        return
    if not 8 <= block.prefixlen <= 29:
        yield f"subnet {subnet} has a prefix length of {block.prefixlen}: 8 to 29 are possible"
    try:
        if gateway and ipaddress.IPv4Address(gateway) not in block:
            yield f"gateway {gateway} is not in {subnet}"
        if ip_range and not ipaddress.IPv4Network(ip_range).subnet_of(block):
            yield f"ip_range {ip_range} is not in {subnet}"
    except ValueError as error:
        yield f"'{gateway or ip_range}' is no address or range ({error})"


def _object_name(name: str, label: str, limit: int) -> Problems:
    if not _OBJECT_NAME.match(name) or len(name) > limit:
        yield f"'{name}' is no name for a {label}: letters, digits, and . - _ inside, at most {limit} characters"


def secret(spec: SecretSpec) -> Problems:
    """Problems of a secret."""
    yield from _object_name(spec.annotations.name, "secret", defaults.SECRET_NAME_LENGTH)
    if not spec.data:
        yield "it has no content"
    if len(spec.data) >= defaults.SECRET_BYTES:
        yield f"it has {len(spec.data)} bytes: fewer than {defaults.SECRET_BYTES} are possible"


def config(spec: ConfigSpec) -> Problems:
    """Problems of a config."""
    yield from _object_name(spec.annotations.name, "config", defaults.SECRET_NAME_LENGTH)
    if len(spec.data) >= defaults.CONFIG_BYTES:
        yield f"it has {len(spec.data)} bytes: fewer than {defaults.CONFIG_BYTES} are possible"


def volume(spec: VolumeSpec) -> Problems:
    """Problems of a volume."""
    yield from _object_name(spec.annotations.name, "volume", 255)
    if spec.driver not in ("", "local"):
        yield f"driver {spec.driver} is not supported: use local"


def cluster(spec: ClusterSpec) -> Problems:
    """Problems of what people set for the whole cluster; 0 stands for the default."""
    lifetime_ms = spec.ca.node_certificate_lifetime_ms
    if lifetime_ms and not (
        defaults.NODE_CERTIFICATE_MIN_LIFETIME_MS <= lifetime_ms <= defaults.ROOT_CERTIFICATE_LIFETIME_MS
    ):
        yield "a node's certificate lives an hour at least, and no longer than the root certificate (20 years)"
    period_ms = spec.dispatcher.heartbeat_period_ms
    if period_ms and not defaults.HEARTBEAT_PERIOD_MIN_MS <= period_ms <= defaults.HEARTBEAT_PERIOD_MAX_MS:
        yield (
            f"the heartbeat period is {defaults.HEARTBEAT_PERIOD_MIN_MS / 1000:g} s at least "
            f"and {defaults.HEARTBEAT_PERIOD_MAX_MS / 1000:g} s at most"
        )
    if spec.orchestration.task_history_limit > defaults.TASK_HISTORY_MAX:
        yield f"at most {defaults.TASK_HISTORY_MAX} old tasks are kept per slot; a negative number keeps all"


def _published_twice(services: Iterable[ServiceSpec]) -> Problems:
    """Two services of one stack cannot publish one ingress port."""
    owners: dict[tuple[int, int, str], str] = {}
    for spec in services:
        for port in spec.endpoint.ports:
            if not port.published_port or port.mode == PublishMode.PUBLISH_MODE_HOST:
                continue
            key = (port.published_port, port.protocol, port.host_ip)
            owner = owners.setdefault(key, spec.annotations.name)
            if owner != spec.annotations.name:
                yield f"services {owner} and {spec.annotations.name} both publish port {port.published_port}"


def _dependencies(spec: StackSpec) -> Problems:
    names = {each.annotations.name for each in spec.services}
    edges = {each.annotations.name: [needed.service for needed in each.depends_on] for each in spec.services}
    for name, needed in edges.items():
        yield from (
            f"service {name} depends on {other}, which is not in the stack" for other in needed if other not in names
        )
    done: set[str] = set()

    def cycle_from(name: str, path: tuple[str, ...]) -> str:
        if name in path:
            return " -> ".join((*path[path.index(name) :], name))
        if name in done or name not in edges:
            return ""
        found = next((circle for other in edges[name] if (circle := cycle_from(other, (*path, name)))), "")
        done.add(name)
        return found

    for name in edges:
        if circle := cycle_from(name, ()):
            yield f"services depend on each other in a circle: {circle}"
            return
