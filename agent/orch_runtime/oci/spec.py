"""config.json for a container of the OCI command line: everything of it that Linux has, as frozen values.

Unlike the supervisor's plans these follow the caller: namespaces may be left out or joined, any file system may be
mounted. Unknown keys are noted, not refused (OCI config.md, "Extensibility").
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orch_runtime.config.compiler import read_capabilities, read_devices, read_rlimits, read_sysctls, read_user
from orch_runtime.config.reader import Reader
from orch_runtime.errors import InvalidConfig
from orch_runtime.kernel import process as kernel
from orch_runtime.oci.mount_options import OciMount, read_mount
from orch_runtime.plan import ProcessPlan

CLONE_NEWTIME = 0x80
NAMESPACES = {
    "user": kernel.CLONE_NEWUSER,
    "cgroup": kernel.CLONE_NEWCGROUP,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
    "network": kernel.CLONE_NEWNET,
    "pid": kernel.CLONE_NEWPID,
    "mount": kernel.CLONE_NEWNS,
    "time": CLONE_NEWTIME,
}
HOOK_STAGES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
PROPAGATION = {
    "shared": 1 << 20,
    "rshared": 1 << 20 | 16384,
    "slave": 1 << 19,
    "rslave": 1 << 19 | 16384,
    "private": 1 << 18,
    "rprivate": 1 << 18 | 16384,
    "unbindable": 1 << 17,
    "runbindable": 1 << 17 | 16384,
}
_PERSONALITIES = {"LINUX": 0, "LINUX32": 8}


@dataclass(frozen=True)
class IdMap:
    """One line of uid_map or gid_map."""

    inside: int
    outside: int
    size: int


@dataclass(frozen=True)
class Hook:
    """A program run at a point of the life cycle; no `env` means the runtime's own, `timeout_s` 0 its bound."""

    path: str
    args: tuple[str, ...]
    env: tuple[str, ...] | None
    timeout_s: int


@dataclass(frozen=True)
class ProcessSpec:
    """`process`: what the plan has, and what only the OCI command line does."""

    plan: ProcessPlan
    terminal: bool
    rows: int
    columns: int
    oom_score_adj: int | None
    apparmor_profile: str
    selinux_label: str
    io_priority: int | None


@dataclass(frozen=True)
class ContainerSpec:
    """A whole config.json."""

    oci_version: str
    rootfs: str
    rootfs_readonly: bool
    process: ProcessSpec
    hostname: str
    domainname: str
    new_namespaces: frozenset[str]
    joined_namespaces: tuple[tuple[str, str], ...]
    uid_maps: tuple[IdMap, ...]
    gid_maps: tuple[IdMap, ...]
    mounts: tuple[OciMount, ...]
    devices: tuple[tuple[Any, ...], ...]
    masked: tuple[str, ...]
    readonly: tuple[str, ...]
    sysctls: tuple[tuple[str, str], ...]
    rootfs_propagation: int
    cgroups_path: str
    resources: Mapping[str, object]
    hooks: Mapping[str, tuple[Hook, ...]]
    seccomp: Mapping[str, object] | None
    personality: int | None
    time_offsets: tuple[tuple[str, int, int], ...]
    mount_label: str
    annotations: Mapping[str, str]
    unknown_keys: tuple[str, ...]


def _io_priority(process: Reader) -> int | None:
    if not process.has("ioPriority"):
        return None
    reader = process.reader("ioPriority")
    classes = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
    name = reader.text("class")
    if name not in classes:
        raise reader.fail("class", f"{name!r} is none of {', '.join(classes)}")
    return classes[name] << 13 | reader.integer("priority", 0, 7, 0)


def read_process_spec(document: object, path: str = "process", unknown: list[str] | None = None) -> ProcessSpec:
    """Read a `process` object, of a config or of `exec --process`.

    Raises:
        InvalidConfig: naming the JSON path.
    """
    process = Reader(document, path, [] if unknown is None else unknown)
    args = process.texts("args", 65536)
    if not args or not args[0]:
        raise process.fail("args", "must name a program")
    cwd = process.text("cwd", "/") or "/"
    if not cwd.startswith("/"):
        raise process.fail("cwd", f"must be an absolute path, not {cwd!r}")
    size = process.reader("consoleSize")
    for key in ("scheduler", "execCPUAffinity"):
        if process.has(key):
            raise process.fail(key, "is not supported by this runtime")
    plan: ProcessPlan = {
        "args": args,
        "env": [entry for entry in process.texts("env", 65536) if entry],
        "cwd": cwd,
        "user": read_user(process, None),
        "capabilities": read_capabilities_or_none(process),
        "no_new_privileges": process.boolean("noNewPrivileges"),
        "rlimits": read_rlimits(process),
        "seccomp": None,  # this runtime compiles and loads it itself
    }
    spec = ProcessSpec(
        plan=plan,
        terminal=process.boolean("terminal"),
        rows=size.integer("height", 0, 65535, 0),
        columns=size.integer("width", 0, 65535, 0),
        oom_score_adj=process.integer("oomScoreAdj", -1000, 1000) if process.has("oomScoreAdj") else None,
        apparmor_profile=process.text("apparmorProfile", ""),
        selinux_label=process.text("selinuxLabel", ""),
        io_priority=_io_priority(process),
    )
    process.ignore("commandLine")
    process.finish()
    return spec


def read_capabilities_or_none(process: Reader) -> Any:
    """Read the five sets; none given means none held."""
    return read_capabilities(process.reader("capabilities"))


def _hooks(top: Reader) -> dict[str, tuple[Hook, ...]]:
    hooks = top.reader("hooks")
    found: dict[str, tuple[Hook, ...]] = {}
    for stage in HOOK_STAGES:
        entries = []
        for hook in hooks.readers(stage, 64):
            path = hook.text("path")
            if not path.startswith("/"):
                raise hook.fail("path", f"must be absolute, not {path!r}")
            timeout_s = hook.integer("timeout", 0, 86400, 0)
            if hook.has("timeout") and timeout_s == 0:
                raise hook.fail("timeout", "must be greater than zero seconds")
            env = tuple(hook.texts("env")) if hook.has("env") else None
            entries.append(Hook(path, tuple(hook.texts("args")) or (path,), env, timeout_s))
        if entries:
            found[stage] = tuple(entries)
    hooks.finish()
    return found


def _id_maps(linux: Reader, key: str) -> tuple[IdMap, ...]:
    top = (1 << 32) - 1
    return tuple(
        IdMap(entry.integer("containerID", 0, top), entry.integer("hostID", 0, top), entry.integer("size", 1, top))
        for entry in linux.readers(key, 340)  # the kernel's limit of lines, user_namespaces(7)
    )


def _namespaces(linux: Reader) -> tuple[frozenset[str], tuple[tuple[str, str], ...]]:
    new: set[str] = set()
    joined: dict[str, str] = {}
    for entry in linux.readers("namespaces", 16):
        kind, path = entry.text("type"), entry.text("path", "")
        if kind not in NAMESPACES:
            raise entry.fail("type", f"{kind!r} is none of {', '.join(NAMESPACES)}")
        if kind in new or kind in joined:
            raise entry.fail("type", f"{kind} is given twice")
        if path:
            if not path.startswith("/"):
                raise entry.fail("path", f"must be absolute, not {path!r}")
            joined[kind] = path
        else:
            new.add(kind)
    if "mount" not in new:
        raise linux.fail("namespaces", "must have a new mount namespace: the container's files are put together there")
    return frozenset(new), tuple(joined.items())


def _time_offsets(linux: Reader) -> tuple[tuple[str, int, int], ...]:
    offsets = linux.reader("timeOffsets")
    found = []
    for clock in ("monotonic", "boottime"):
        if offsets.has(clock):
            value = offsets.reader(clock)
            seconds = value.integer("secs", -(1 << 40), 1 << 40, 0)
            found.append((clock, seconds, value.integer("nanosecs", 0, 999_999_999, 0)))
    return tuple(found)


def _sysctls(
    linux: Reader, new: frozenset[str], joined: tuple[tuple[str, str], ...], domainname: str
) -> tuple[tuple[str, str], ...]:
    kinds = new | {kind for kind, _ in joined}
    entries = read_sysctls(linux, "new" if "network" in kinds else "host")
    for path, value in entries:
        needs = "" if path.startswith("net/") else "uts" if path.endswith("name") else "ipc"
        if path == "kernel/hostname" or (path == "kernel/domainname" and domainname not in ("", value)):
            raise linux.fail(f"sysctl.{path.replace('/', '.')}", "is set by the config's own key of that name")
        if needs and needs not in kinds:
            raise linux.fail(
                f"sysctl.{path.replace('/', '.')}",
                f"would change the host: the container has no {needs} namespace of its own",
            )
    return tuple((path, value) for path, value in entries)


def _absolute_paths(linux: Reader, key: str) -> tuple[str, ...]:
    paths = linux.texts(key)
    for position, path in enumerate(paths):
        if not path.startswith("/"):
            raise InvalidConfig(f"{linux.where(key)}[{position}]", f"must be absolute, not {path!r}")
    return tuple(posixpath.normpath(path) for path in paths)


def read_spec(config: object, bundle: str) -> ContainerSpec:
    """Read config.json; relative paths in it are relative to `bundle`.

    Raises:
        InvalidConfig: naming the JSON path of what is wrong or not supported.
    """
    unknown: list[str] = []
    top = Reader(config, "", unknown)
    version = top.text("ociVersion")
    if not version.startswith("1."):
        raise top.fail("ociVersion", f"must be a 1.x version of the OCI runtime specification, not {version!r}")
    root = top.reader("root")
    if not top.has("process"):
        raise top.fail("process", "is required")
    linux = top.reader("linux")
    new, joined = _namespaces(linux)
    uid_maps, gid_maps = _id_maps(linux, "uidMappings"), _id_maps(linux, "gidMappings")
    if "user" in new and not (uid_maps and gid_maps):
        raise linux.fail("uidMappings", "a new user namespace needs uidMappings and gidMappings")
    propagation = linux.text("rootfsPropagation", "")
    if propagation and propagation not in PROPAGATION:
        raise linux.fail("rootfsPropagation", f"{propagation!r} is none of {', '.join(PROPAGATION)}")
    personality = linux.reader("personality")
    if linux.has("personality") and personality.text("domain") not in _PERSONALITIES:
        raise personality.fail("domain", f"must be one of {', '.join(_PERSONALITIES)}")
    for key in ("intelRdt", "netDevices", "memoryPolicy"):
        if linux.has(key):
            raise linux.fail(key, "is not supported by this runtime")
    hostname, domainname = top.text("hostname", ""), top.text("domainname", "")
    kinds = new | {kind for kind, _ in joined}
    for name, value in (("hostname", hostname), ("domainname", domainname)):
        if value and "uts" not in kinds:
            raise top.fail(name, "would change the host's: the container has no uts namespace of its own")
        if len(value.encode(errors="replace")) > 64:
            raise top.fail(name, "is longer than the kernel's 64 bytes")
    rootfs = posixpath.normpath(posixpath.join(bundle, root.text("path")))
    spec = ContainerSpec(
        oci_version=version,
        rootfs=rootfs,
        rootfs_readonly=root.boolean("readonly"),
        process=read_process_spec(top.reader("process").raw, unknown=unknown),
        hostname=hostname,
        domainname=domainname,
        new_namespaces=new,
        joined_namespaces=joined,
        uid_maps=uid_maps,
        gid_maps=gid_maps,
        mounts=tuple(read_mount(entry, bundle) for entry in top.readers("mounts")),
        devices=tuple(tuple(device) for device in read_devices(linux)),
        masked=_absolute_paths(linux, "maskedPaths"),
        readonly=_absolute_paths(linux, "readonlyPaths"),
        sysctls=_sysctls(linux, new, joined, domainname),
        rootfs_propagation=PROPAGATION.get(propagation, 0),
        cgroups_path=linux.text("cgroupsPath", ""),
        resources=linux.reader("resources").raw,
        hooks=_hooks(top),
        seccomp=linux.reader("seccomp").raw if linux.has("seccomp") else None,
        personality=_PERSONALITIES[personality.text("domain")] if linux.has("personality") else None,
        time_offsets=_time_offsets(linux),
        mount_label=linux.text("mountLabel", ""),
        annotations=top.text_map("annotations"),
        unknown_keys=(),
    )
    if spec.time_offsets and "time" not in new:
        raise linux.fail("timeOffsets", "needs a new time namespace")
    root.finish()
    linux.finish()
    top.finish()
    return _with_unknown(spec, tuple(unknown))


def _with_unknown(spec: ContainerSpec, unknown: tuple[str, ...]) -> ContainerSpec:
    from dataclasses import replace  # noqa: PLC0415 -- hardly any config has unknown keys

    return replace(spec, unknown_keys=unknown) if unknown else spec
