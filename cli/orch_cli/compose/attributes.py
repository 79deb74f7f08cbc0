"""The one table of Compose attributes: what orch carries, notes, does not do yet, or never will.

The checker refuses or warns by this table, the merge of several files follows it, and the support matrix in
``docs/compose.md`` is generated from it. Sources: the Compose Specification's schema, docker/cli's stack loader.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple


class Support(enum.Enum):
    """What orch does with an attribute."""

    SUPPORTED = "supported"
    ACCEPTED = "accepted, no effect"
    WARNED = "warned about, then ignored"
    NOT_YET = "not supported yet"
    REFUSED = "refused"


class Shape(enum.Flag):
    """Which forms a value may have; several may be allowed."""

    SCALAR = enum.auto()  # one value
    LIST = enum.auto()  # a list of single values
    PAIRS = enum.auto()  # a mapping from names to single values
    TABLE = enum.auto()  # a mapping whose keys are known: ``children``
    NAMED = enum.auto()  # a mapping from names to tables (or nothing)
    ENTRIES = enum.auto()  # a list of tables
    ANY = enum.auto()  # not looked into


class Merge(enum.Enum):
    """How a later file's value joins an earlier one's."""

    DEFAULT = "scalars are replaced, mappings merged key by key, lists joined without doubles"
    REPLACE = "the later one replaces the earlier"
    BY_TARGET = "entries with the same target replace each other"
    BY_PORT = "entries with the same address, ports and protocol replace each other"
    LOGGING = "options merge while the driver is the same, else replaced"


class Attribute(NamedTuple):
    """One row. ``note`` is for people: what orch makes of it, or why not and what to use instead."""

    support: Support
    shape: Shape
    note: str = ""
    children: Mapping[str, Attribute] | None = None
    merge: Merge = Merge.DEFAULT


Table = Mapping[str, Attribute]

SCALAR: Final = Shape.SCALAR
WORDS: Final = Shape.SCALAR | Shape.LIST
LABELS: Final = Shape.LIST | Shape.PAIRS
ANY: Final = Shape.ANY


def yes(
    shape: Shape = SCALAR, note: str = "", children: Table | None = None, merge: Merge = Merge.DEFAULT
) -> Attribute:
    """A row that is supported."""
    return Attribute(Support.SUPPORTED, shape, note, children, merge)


def accept(note: str, shape: Shape = ANY) -> Attribute:
    """A row that is read and needs no action."""
    return Attribute(Support.ACCEPTED, shape, note)


def warn(note: str, shape: Shape = ANY) -> Attribute:
    """A row that is ignored, with a warning."""
    return Attribute(Support.WARNED, shape, note)


def later(note: str = "") -> Attribute:
    """A row that orch does not do yet: an error."""
    return Attribute(Support.NOT_YET, ANY, note)


def never(note: str) -> Attribute:
    """A row that orch will not do: an error."""
    return Attribute(Support.REFUSED, ANY, note)


# ---- nested tables of a service ----------------------------------------------------------------------
BUILD_SECRET: Final[Table] = {
    "source": yes(),
    "target": yes(note="the id that the Dockerfile mounts it by; default the source"),
    "uid": warn("the Dockerfile's --mount says it"),
    "gid": warn("the Dockerfile's --mount says it"),
    "mode": warn("the Dockerfile's --mount says it"),
}
BUILD: Final[Table] = {
    "context": yes(note="a folder beside the stack file, with its .dockerignore; URLs are refused"),
    "dockerfile": yes(note="a path inside the context"),
    "dockerfile_inline": yes(),
    "args": yes(LABELS, "a name without a value takes the client's"),
    "target": yes(),
    "labels": yes(LABELS),
    "no_cache": yes(),
    "tags": yes(Shape.LIST, "further names of the image"),
    "cache_from": accept("the node's own layer cache is used"),
    "cache_to": accept("the node's own layer cache is used"),
    "pull": accept("base images are the node's own"),
    "provenance": accept("no attestations are made"),
    "sbom": accept("no attestations are made"),
    "additional_contexts": later(),
    "extra_hosts": later(),
    "isolation": warn("Windows only"),
    "network": yes(note="default, host or none"),
    "no_cache_filter": later("use no_cache"),
    "platforms": yes(Shape.LIST, "one, which must be the node's own"),
    "secrets": yes(Shape.LIST | Shape.ENTRIES, "for RUN --mount=type=secret", children=BUILD_SECRET),
    "shm_size": later(),
    "ulimits": later(),
    "ssh": never("put what the build needs into the context"),
    "privileged": never("builds are never privileged"),
    "entitlements": never("builds have no entitlements"),
}

FILE_USE: Final[Table] = {
    "source": yes(),
    "target": yes(note="secrets below /run/secrets unless absolute, configs below / unless absolute"),
    "uid": yes(),
    "gid": yes(),
    "mode": yes(note='octal, as a number or text ("0440"); default 0444'),
}

DEPENDS_ON: Final[Table] = {
    "condition": yes(note="service_started, service_healthy, service_completed_successfully"),
    "required": yes(),
    "restart": yes(),
}

ENV_FILE: Final[Table] = {
    "path": yes(),
    "required": yes(note="false: a missing file is no error"),
    "format": yes(note="raw: Docker's dialect, where quotes and comments belong to the value"),
}

HEALTHCHECK: Final[Table] = {
    "test": yes(WORDS, "text is CMD-SHELL; a list begins with CMD, CMD-SHELL or NONE", merge=Merge.REPLACE),
    "interval": yes(),
    "timeout": yes(),
    "retries": yes(),
    "start_period": yes(),
    "start_interval": yes(),
    "disable": yes(),
}

LOGGING: Final[Table] = {
    "driver": yes(note="json-file, local, none; another: a warning, and json-file"),
    "options": yes(Shape.PAIRS, "max-size and max-file; others: a warning"),
}

SERVICE_NETWORK: Final[Table] = {
    "aliases": yes(Shape.LIST),
    "ipv4_address": yes(note="for a service with one replica, on a network with a subnet of its own"),
    "interface_name": later("interfaces are eth0, eth1, … by priority and name of the network"),
    "priority": yes(),
    "driver_opts": warn("attachments have no options here"),
    "gw_priority": warn("the first network that is not internal has the default route"),
    "link_local_ips": warn("not used"),
    "mac_address": later(),
    "ipv6_address": later("networks have IPv4 only"),
    "x-": accept("extensions are kept out of the way"),
}

PORT: Final[Table] = {
    "target": yes(),
    "published": yes(note="a number, text or a range; left out: chosen by the cluster"),
    "protocol": yes(note="tcp, udp, sctp"),
    "mode": yes(note="ingress, host"),
    "host_ip": yes(note="listen on that address only"),
    "name": yes(),
    "app_protocol": yes(),
}

VOLUME_USE: Final[Table] = {
    "type": yes(note="volume, bind, tmpfs"),
    "source": yes(),
    "target": yes(note="an absolute path"),
    "read_only": yes(),
    "consistency": accept("has an effect on Docker Desktop only", SCALAR),
    "bind": yes(
        Shape.TABLE,
        children={
            "propagation": yes(note="rprivate, private, rshared, shared, rslave, slave"),
            "create_host_path": yes(note="default false, as in Swarm: a missing path fails the task"),
            "recursive": yes(note="disabled: mounts below the source are left out; enabled; others are refused"),
            "selinux": accept("no SELinux labels are set", SCALAR),
        },
    ),
    "volume": yes(
        Shape.TABLE,
        children={
            "nocopy": yes(note="a new volume stays empty"),
            "labels": yes(LABELS),
            "subpath": later("mount the whole volume"),
        },
    ),
    "tmpfs": yes(Shape.TABLE, children={"size": yes(), "mode": yes(note="octal")}),
    "image": later("image mounts"),
    "cluster": never("cluster volumes (CSI) are not part of orch"),
}

ULIMIT: Final[Table] = {"soft": yes(), "hard": yes()}

UPDATE: Final[Table] = {
    "parallelism": yes(note="default 1; 0: all at once"),
    "delay": yes(),
    "failure_action": yes(note="pause, continue, rollback (not in rollback_config)"),
    "monitor": yes(note="default 5s"),
    "max_failure_ratio": yes(note="0 to 1"),
    "order": yes(note="stop-first, start-first"),
    "x-": accept("extensions are kept out of the way"),
}

LIMITS: Final[Table] = {
    "cpus": yes(note="a number or text"),
    "memory": yes(),
    "pids": yes(note="default 4096; 0 or -1: unlimited"),
}

RESERVATIONS: Final[Table] = {
    "cpus": yes(),
    "memory": yes(),
    "generic_resources": later("nodes offer CPU and memory only"),
    "devices": later("nodes offer CPU and memory only"),
}

DEPLOY: Final[Table] = {
    "mode": yes(note="replicated; global and the job modes are not supported yet"),
    "replicas": yes(),
    "endpoint_mode": yes(note="vip, dnsrr"),
    "labels": yes(LABELS, "labels of the service"),
    "update_config": yes(Shape.TABLE, children=UPDATE),
    "rollback_config": yes(Shape.TABLE, children=UPDATE),
    "resources": yes(
        Shape.TABLE,
        children={
            "limits": yes(Shape.TABLE, children=LIMITS),
            "reservations": yes(Shape.TABLE, "what the scheduler keeps free for the task", children=RESERVATIONS),
        },
    ),
    "restart_policy": yes(
        Shape.TABLE,
        children={
            "condition": yes(note="any, on-failure, none; always and unless-stopped are read as any, with a warning"),
            "delay": yes(note="default 5s"),
            "max_attempts": yes(),
            "window": yes(),
        },
    ),
    "placement": yes(
        Shape.TABLE,
        children={
            "constraints": yes(
                Shape.LIST,
                "== and !=; node.id, hostname, ip, role, platform.os, platform.arch, labels.*, engine.labels.*",
            ),
            "preferences": yes(Shape.ENTRIES, children={"spread": yes()}),
            "max_replicas_per_node": yes(),
        },
    ),
    "x-": accept("extensions are kept out of the way"),
}

X_ORCH: Final[Table] = {
    "stop_delay": yes(note="time between leaving the load balancer and the stop signal"),
    "disconnect_grace": yes(note="how long a node may be away before its tasks are replaced"),
}

# ---- services ----------------------------------------------------------------------------------------
SERVICE: Final[Table] = {
    "annotations": yes(LABELS, "OCI annotations of the task"),
    "attach": accept("orch deploy shows progress, not output", SCALAR),
    "blkio_config": later(),
    "build": yes(
        SCALAR | Shape.TABLE, "the image is built first; its name is `image`, else <stack>_<service>:latest", BUILD
    ),
    "cap_add": yes(Shape.LIST, "with or without CAP_; ALL"),
    "cap_drop": yes(Shape.LIST, "with or without CAP_; ALL"),
    "cgroup": later("tasks have a cgroup namespace of their own"),
    "cgroup_parent": warn("the node owns the tree of cgroups"),
    "cgroupns_mode": warn("an old name; tasks have a cgroup namespace of their own"),
    "command": yes(WORDS, "text is split as a shell splits words; [] empties the image's CMD", merge=Merge.REPLACE),
    "configs": yes(Shape.LIST | Shape.ENTRIES, children=FILE_USE, merge=Merge.BY_TARGET),
    "container_name": warn("tasks are named by service and slot; the name becomes a network alias", SCALAR),
    "cpu_count": warn("Windows only"),
    "cpu_percent": warn("Windows only"),
    "cpu_period": yes(),
    "cpu_quota": yes(),
    "cpu_rt_period": warn("real-time groups do not exist in cgroup v2"),
    "cpu_rt_runtime": warn("real-time groups do not exist in cgroup v2"),
    "cpu_shares": yes(),
    "cpus": yes(note="as deploy.resources.limits.cpus; two different values are an error"),
    "cpuset": later(),
    "credential_spec": warn("Windows only"),
    "depends_on": yes(
        Shape.LIST | Shape.NAMED,
        "carried in the service; start order is not yet enforced (a warning says so)",
        DEPENDS_ON,
    ),
    "deploy": yes(Shape.TABLE, children=DEPLOY),
    "develop": accept("a developer's watch rules"),
    "device_cgroup_rules": later(),
    "devices": yes(
        Shape.LIST | Shape.ENTRIES,
        "host[:container[:rwm]], also a folder of devices; on nodes that allow it: `orchd --allow device:PATH`",
        {"source": yes(), "target": yes(), "permissions": yes(note="rwm or a part of it")},
    ),
    "dns": later("names are answered at 127.0.0.11, other names by the name servers of the node"),
    "dns_opt": yes(Shape.LIST),
    "dns_search": yes(WORDS),
    "domainname": yes(),
    "entrypoint": yes(WORDS, "drops the image's CMD as well", merge=Merge.REPLACE),
    "env_file": yes(WORDS | Shape.ENTRIES, "Compose's dialect; `format: raw` is Docker's", ENV_FILE),
    "environment": yes(LABELS, "a name without a value takes the client's, else stays unset"),
    "expose": accept("ports between tasks are open; documentation", Shape.LIST),
    "extends": later("use YAML anchors, or several files"),
    "external_links": warn("use a shared network"),
    "extra_hosts": yes(LABELS, "host-gateway is the node's address"),
    "gpus": later(),
    "group_add": yes(Shape.LIST, "numbers; names are not supported yet"),
    "healthcheck": yes(Shape.TABLE, children=HEALTHCHECK),
    "hostname": yes(),
    "image": yes(note="without a tag: latest"),
    "init": yes(),
    "ipc": later("tasks have an IPC namespace of their own"),
    "isolation": warn("Windows only"),
    "label_file": yes(WORDS),
    "labels": yes(LABELS, "labels of the container; deploy.labels are the service's"),
    "links": warn("names resolve on shared networks; the alias part becomes a network alias of the target", Shape.LIST),
    "logging": yes(Shape.TABLE, children=LOGGING, merge=Merge.LOGGING),
    "mac_address": later(),
    "mem_limit": yes(note="as deploy.resources.limits.memory; two different values are an error"),
    "mem_reservation": yes(note="as deploy.resources.reservations.memory"),
    "mem_swappiness": warn("does not exist in cgroup v2"),
    "memswap_limit": yes(note="memory plus swap; -1: unlimited"),
    "models": never("models are not part of orch"),
    "network_mode": yes(
        note="bridge and default: the stack's default network; host: on nodes that allow it "
        "(`orchd --allow host-network`); none, service:, container:: not supported yet"
    ),
    "networks": yes(Shape.LIST | Shape.NAMED, children=SERVICE_NETWORK),
    "oom_kill_disable": warn("does not exist in cgroup v2"),
    "oom_score_adj": yes(),
    "pid": later("tasks have a PID namespace of their own"),
    "pids_limit": yes(note="as deploy.resources.limits.pids"),
    "platform": yes(note="os/architecture: the task runs on such nodes only"),
    "ports": yes(Shape.LIST | Shape.ENTRIES, children=PORT, merge=Merge.BY_PORT),
    "post_start": later(),
    "pre_start": later(),
    "pre_stop": later(),
    "privileged": yes(note="on nodes that allow it: `orchd --allow privileged`"),
    "profiles": yes(Shape.LIST, "without --profile such services are left out, with a note"),
    "provider": never("providers are not part of orch"),
    "pull_policy": yes(
        note="always (each deploy asks the registry), missing, if_not_present, never, build; the others: a warning"
    ),
    "pull_refresh_after": warn("images are looked up at each deploy, never in between"),
    "read_only": yes(),
    "restart": yes(note="no: none, always and unless-stopped: any, on-failure[:n]; deploy.restart_policy wins"),
    "runtime": warn("orch has one runtime, its own"),
    "scale": yes(note="as deploy.replicas; two different values are an error"),
    "secrets": yes(Shape.LIST | Shape.ENTRIES, children=FILE_USE, merge=Merge.BY_TARGET),
    "security_opt": yes(
        Shape.LIST,
        "no-new-privileges (on by default); seccomp=unconfined or seccomp=FILE in Docker's format, on nodes that allow "
        "it: `orchd --allow seccomp`; apparmor, label: a warning",
    ),
    "shm_size": yes(),
    "stdin_open": yes(note="false; true is not supported yet"),
    "stop_grace_period": yes(note="default 10s"),
    "stop_signal": yes(),
    "storage_opt": warn("there is no quota per container"),
    "sysctls": yes(LABELS, "the namespaced ones: net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*"),
    "tmpfs": yes(WORDS, "with size, mode, uid, gid, noexec, …"),
    "tty": yes(note="false; true is not supported yet"),
    "ulimits": yes(Shape.PAIRS | Shape.NAMED, "one number or soft and hard; -1: unlimited", ULIMIT),
    "use_api_socket": never("tasks have no access to the control socket"),
    "user": yes(note="uid[:gid] or names of the image"),
    "userns_mode": warn("tasks share the node's user namespace"),
    "uts": later("tasks have a UTS namespace of their own"),
    "volumes": yes(Shape.LIST | Shape.ENTRIES, children=VOLUME_USE, merge=Merge.BY_TARGET),
    "volumes_from": never("share a named volume"),
    "working_dir": yes(),
    "x-orch": yes(Shape.TABLE, "orch's own settings", X_ORCH),
    "x-": accept("extensions are kept out of the way"),
}

# ---- top level ---------------------------------------------------------------------------------------
NETWORK: Final[Table] = {
    "name": yes(),
    "external": yes(SCALAR | Shape.TABLE, "must exist already", {"name": yes(note="an old form of `name`")}),
    "driver": yes(note="overlay; bridge and default are read as overlay, with a warning; others are refused"),
    "driver_opts": yes(Shape.PAIRS, "mtu; encrypted is not supported yet; others: a warning"),
    "ipam": yes(
        Shape.TABLE,
        children={
            "driver": yes(note="default"),
            "config": yes(
                Shape.ENTRIES,
                children={
                    "subnet": yes(),
                    "gateway": yes(),
                    "ip_range": yes(),
                    "aux_addresses": yes(Shape.PAIRS, "kept free"),
                },
            ),
            "options": warn("there are none"),
        },
    ),
    "internal": yes(),
    "attachable": yes(),
    "labels": yes(LABELS),
    "enable_ipv4": yes(note="true"),
    "enable_ipv6": yes(note="false; true is not supported yet"),
    "x-": accept("extensions are kept out of the way"),
}

VOLUME: Final[Table] = {
    "name": yes(),
    "external": yes(SCALAR | Shape.TABLE, "kept under its own name", {"name": yes(note="an old form of `name`")}),
    "driver": yes(note="local; others are refused"),
    "driver_opts": later("nfs, cifs and bind volumes; mount a host path instead"),
    "labels": yes(LABELS),
    "x-cluster-spec": warn("cluster volumes (CSI) are not part of orch"),
    "x-": accept("extensions are kept out of the way"),
}

_STORED: Final[Table] = {
    "name": yes(),
    "file": yes(note="read at deploy"),
    "environment": yes(note="a variable of the client"),
    "external": yes(SCALAR | Shape.TABLE, "must exist already", {"name": yes(note="an old form of `name`")}),
    "labels": yes(LABELS),
    "template_driver": later("contents are taken as they are"),
    "x-": accept("extensions are kept out of the way"),
}
SECRET: Final[Table] = {
    **_STORED,
    "driver": never("secrets live in the cluster's own store"),
    "driver_opts": never("secrets live in the cluster's own store"),
}
CONFIG: Final[Table] = {**_STORED, "content": yes(note="with variables replaced")}

TOP: Final[Table] = {
    "version": accept("any version is read alike", SCALAR),
    "name": yes(note="the stack's name; --stack wins"),
    "services": yes(Shape.NAMED, children=SERVICE),
    "networks": yes(Shape.NAMED, children=NETWORK),
    "volumes": yes(Shape.NAMED, children=VOLUME),
    "secrets": yes(Shape.NAMED, children=SECRET),
    "configs": yes(Shape.NAMED, children=CONFIG),
    "include": later("give several files with -c"),
    "models": never("models are not part of orch"),
    "x-": accept("extensions are kept out of the way"),
}


def find(table: Table, key: str) -> Attribute | None:
    """The row for ``key``; keys that begin with ``x-`` share one."""
    return table.get(key) or (table.get("x-", _EXTENSION) if key.startswith("x-") else None)


_EXTENSION: Final = accept("extensions are kept out of the way")
