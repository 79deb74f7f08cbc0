"""config.json of the OCI runtime specification to a plan, or an error that names the place.

What the runtime does not do is refused, never skipped: hooks, user namespaces, terminals, idmapped mounts.
"""

from __future__ import annotations

import base64
import marshal
import re
from collections.abc import Mapping
from typing import Any

from orch_runtime.capabilities import NUMBERS, last_capability, mask_of
from orch_runtime.config.memo import remembered
from orch_runtime.config.mounts import normal_path, read_mount, split_stage
from orch_runtime.config.reader import Reader
from orch_runtime.config.resources import read_limits
from orch_runtime.config.seccomp import compile_filter
from orch_runtime.errors import InvalidConfig
from orch_runtime.plan import (
    BindRootfs,
    FilterPlan,
    LogOptions,
    MountPlan,
    OverlayRootfs,
    Plan,
    ProcessPlan,
    RootfsPlan,
    UserPlan,
)

ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}")
MAX_PLAN_BYTES = 1 << 20
# include/uapi/asm-generic/resource.h
RLIMITS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME".split()  # noqa: SIM905 -- reads as the header does
    )
}
RLIM_INFINITY = (1 << 64) - 1
# Sysctls that a namespace of the container's own keeps away from the host (OCI config-linux, "Sysctl").
_IPC_SYSCTLS = {"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
                "kernel.shmmni", "kernel.shm_rmid_forced"}  # fmt: skip
_DEVICE_KINDS = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}


def check_id(container_id: str) -> str:
    """Return the id if it can be a file name, else raise InvalidConfig."""
    if not ID_PATTERN.fullmatch(container_id):
        raise InvalidConfig(
            "container id", f"{container_id!r} must be 1 to 128 letters, digits, or _ . + -, a letter or digit first"
        )
    return container_id


def _rootfs(rootfs: OverlayRootfs | BindRootfs, *, readonly: bool) -> RootfsPlan:
    plan: RootfsPlan = {"kind": "bind", "lower": [], "upper": "", "work": "", "path": "", "readonly": readonly}
    if isinstance(rootfs, BindRootfs):
        plan["path"] = normal_path(rootfs.path, "rootfs.path")
        return plan
    plan["kind"] = "overlay"
    if not rootfs.lower:
        raise InvalidConfig("rootfs.lower", "needs at least one layer")
    if len(rootfs.lower) > 500:
        raise InvalidConfig("rootfs.lower", f"has {len(rootfs.lower)} layers; overlayfs allows 500")
    plan["lower"] = [normal_path(path, f"rootfs.lower[{n}]") for n, path in enumerate(rootfs.lower)]
    plan["upper"] = normal_path(rootfs.upper, "rootfs.upper")
    plan["work"] = normal_path(rootfs.work, "rootfs.work")
    for path in [*plan["lower"], plan["upper"], plan["work"]]:
        if set(path) & set(":,\\"):
            raise InvalidConfig("rootfs", f"{path!r} has a ':', ',' or backslash, which overlayfs options cannot hold")
    return plan


def read_user(process: Reader, name: str | None) -> UserPlan:
    """Read `process.user`; `name` ("user", "user:group") takes the place of its ids."""
    user = process.reader("user")
    plan: UserPlan = {
        "name": name or "",
        "uid": user.integer("uid", 0, (1 << 32) - 2, 0),
        "gid": user.integer("gid", 0, (1 << 32) - 2, 0),
        "additional_gids": [],
        "umask": user.integer("umask", 0, 0o777, 0o022),
    }
    plan["additional_gids"] += user.integers("additionalGids", 0, (1 << 32) - 2)
    user.ignore("username")
    user.finish()
    if name and (name.count(":") > 1 or "\0" in name or not name.split(":")[0]):
        raise user.fail("name", f"{name!r} must be 'user' or 'user:group'")
    return plan


def read_capabilities(sets: Reader) -> dict[str, int]:
    """Read the five sets of `process.capabilities` as masks."""
    known = (1 << last_capability() + 1) - 1
    masks: dict[str, int] = {}
    for name in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        names = sets.texts(name, 64)
        for position, capability in enumerate(names):
            # OCI config.md, "Linux Process": what the kernel does not know is to be logged, no more.
            if capability not in NUMBERS and not sets.note(name, capability):
                raise sets.fail(f"{name}[{position}]", f"{capability!r} is not a capability")
        masks[name] = mask_of([capability for capability in names if capability in NUMBERS]) & known
    sets.finish()
    if masks["effective"] & ~masks["permitted"]:
        raise sets.fail("effective", "has a capability that is not in permitted")
    if masks["ambient"] & ~(masks["permitted"] & masks["inheritable"]):
        raise sets.fail("ambient", "has a capability that is not both permitted and inheritable")
    return masks


def read_rlimits(process: Reader) -> list[list[int]]:
    """Read `process.rlimits` as [number, soft, hard], -1 for no limit."""
    limits: list[list[int]] = []
    for rlimit in process.readers("rlimits", 32):
        kind = rlimit.text("type")
        if kind not in RLIMITS:
            raise rlimit.fail("type", f"{kind!r} is not a resource limit")
        soft = rlimit.integer("soft", 0, RLIM_INFINITY)
        hard = rlimit.integer("hard", 0, RLIM_INFINITY)
        rlimit.finish()
        if soft > hard:
            raise rlimit.fail("soft", f"{soft} is above the hard limit {hard}")
        if any(entry[0] == RLIMITS[kind] for entry in limits):
            raise rlimit.fail("type", f"{kind} is given twice")
        limits.append([RLIMITS[kind], -1 if soft == RLIM_INFINITY else soft, -1 if hard == RLIM_INFINITY else hard])
    return limits


def read_process(process: Reader, user: str | None) -> tuple[ProcessPlan, int | None]:
    """Read `process`; returns its plan and oomScoreAdj."""
    args = process.texts("args", 65536)
    if not args or not args[0]:
        raise process.fail("args", "must name a program")
    env = process.texts("env", 65536)
    for position, entry in enumerate(env):
        if "=" not in entry or entry.startswith("="):
            raise process.fail(f"env[{position}]", "must have the form NAME=value")
    if process.boolean("terminal"):
        raise process.fail("terminal", "is not supported by this runtime")
    process.ignore("terminal", "consoleSize")
    given = process.reader("capabilities")
    masks = remembered("capabilities", given.raw, lambda: read_capabilities(given))
    plan: ProcessPlan = {
        "args": args,
        "env": env,
        "cwd": normal_path(process.text("cwd", "/"), process.where("cwd")),
        "user": read_user(process, user),
        "capabilities": {
            "bounding": masks["bounding"],
            "effective": masks["effective"],
            "permitted": masks["permitted"],
            "inheritable": masks["inheritable"],
            "ambient": masks["ambient"],
        },
        "no_new_privileges": process.boolean("noNewPrivileges"),
        "rlimits": read_rlimits(process),
        "seccomp": None,
    }
    oom_score_adj = process.integer("oomScoreAdj", -1000, 1000) if process.has("oomScoreAdj") else None
    process.finish()
    return plan, oom_score_adj


def _namespaces(linux: Reader, netns_path: str | None) -> tuple[str, str]:
    """Check the list of namespaces; returns ("new" | "path" | "host", path of the network namespace)."""
    found: dict[str, str] = {}
    for namespace in linux.readers("namespaces"):
        kind = namespace.text("type")
        path = namespace.text("path", "")
        namespace.finish()
        if kind not in ("pid", "mount", "uts", "ipc", "cgroup", "network"):
            raise namespace.fail("type", f"{kind!r} namespaces are not supported by this runtime")
        if kind in found:
            raise namespace.fail("type", f"{kind} is given twice")
        if path and kind != "network":
            raise namespace.fail("path", f"joining an existing {kind} namespace is not supported by this runtime")
        found[kind] = path
    for kind in ("pid", "mount", "uts", "ipc", "cgroup"):
        if kind not in found:
            raise linux.fail("namespaces", f"must have a {kind} namespace: this runtime always isolates it")
    path = netns_path or found.get("network", "")
    if path:
        return "path", normal_path(path, "netns_path")
    return ("new" if "network" in found else "host"), ""


def read_filter(seccomp: Reader) -> FilterPlan:
    """Compile `linux.seccomp`, which takes some 20 ms; an equal one was compiled before."""

    def compile_it() -> FilterPlan:
        program, flags = compile_filter(seccomp.raw, seccomp.where("").rstrip("."))
        return {"program": base64.b64encode(program).decode(), "flags": flags}

    return remembered("seccomp", seccomp.raw, compile_it)


def read_devices(linux: Reader) -> list[list[Any]]:
    """Read `linux.devices` as [path, mode, major, minor, uid, gid]."""
    devices: list[list[Any]] = []
    for device in linux.readers("devices"):
        kind = device.text("type")
        if kind not in _DEVICE_KINDS:
            raise device.fail("type", f"must be c, b, u or p, not {kind!r}")
        path = normal_path(device.text("path"), device.where("path"))
        fifo = kind == "p"
        major = 0 if fifo else device.integer("major", 0, 1 << 20)
        minor = 0 if fifo else device.integer("minor", 0, 1 << 20)
        mode = _DEVICE_KINDS[kind] | device.integer("fileMode", 0, 0o7777, 0o666)
        owner = [device.integer(key, 0, (1 << 32) - 2, 0) for key in ("uid", "gid")]
        device.finish()
        devices.append([path, mode, major, minor, *owner])
    return devices


def read_sysctls(linux: Reader, network: str) -> list[list[str]]:
    """Read `linux.sysctl` as [path, value]; `network` is "host" where the container has no network namespace."""
    sysctls: list[list[str]] = []
    for name, value in linux.text_map("sysctl").items():
        path = name.replace(".", "/") if "/" not in name else name
        allowed = (
            name in _IPC_SYSCTLS or name.startswith("fs.mqueue.") or name in ("kernel.domainname", "kernel.hostname")
        )
        if name.startswith("net."):
            if network == "host":
                raise linux.fail(
                    f"sysctl.{name}", "would change the host: the container has no network namespace of its own"
                )
            allowed = True
        if not allowed or ".." in path.split("/"):
            raise linux.fail(
                f"sysctl.{name}", "is not kept apart by a namespace, so it cannot be set for one container"
            )
        sysctls.append([path, value])
    return sysctls


def _paths(linux: Reader, key: str) -> list[str]:
    given = linux.texts(key)
    return remembered("paths", given, lambda: [normal_path(entry, linux.where(key)) for entry in given])


def _mount(entry: Reader) -> MountPlan:
    # Bind mounts have a source of the container's own: remembering them would only crowd out the others.
    if entry.raw.get("type") == "bind":
        return read_mount(entry)
    return remembered("mount", entry.raw, lambda: read_mount(entry))


def compile_config(
    config: Mapping[str, object],
    *,
    rootfs: OverlayRootfs | BindRootfs,
    container_id: str,
    log: LogOptions | None = None,
    netns_path: str | None = None,
    user: str | None = None,
    init: bool = False,
    bundle: str = "",
) -> Plan:
    """Compile an OCI config to a plan.

    `rootfs` takes the place of `root.path`. `user` ("name", "name:group", numbers too) is resolved inside the
    container and
    takes the place of `process.user`'s ids. `init` puts a reaping process in front as pid 1. Without `log` output
    goes to /dev/null, unless the request brings descriptors of its own.

    Raises:
        InvalidConfig: naming the JSON path of what is wrong or not supported.
    """
    top = Reader(config, "")
    if not top.text("ociVersion").startswith("1."):
        raise top.fail("ociVersion", "must be a 1.x version of the OCI runtime specification")
    root = top.reader("root")
    root.ignore("path")
    readonly = root.boolean("readonly")
    root.finish()
    process_reader = top.reader("process")
    if not top.has("process"):
        raise top.fail("process", "is required")
    process, oom_score_adj = read_process(process_reader, user)
    linux = top.reader("linux")
    if linux.has("seccomp"):
        process["seccomp"] = read_filter(linux.reader("seccomp"))
    network, path = _namespaces(linux, netns_path)
    masked, read_only = _paths(linux, "maskedPaths"), _paths(linux, "readonlyPaths")
    resources = linux.reader("resources")
    mounts = [_mount(entry) for entry in top.readers("mounts")]
    stages, key, mounts, masked, read_only = split_stage(mounts, masked, read_only)
    if linux.text("rootfsPropagation", "rprivate") not in ("private", "rprivate", "slave", "rslave", ""):
        raise linux.fail("rootfsPropagation", "shared propagation is not supported by this runtime")
    linux.ignore("cgroupsPath")  # the supervisor places containers below its own cgroup parent
    plan: Plan = {
        "id": check_id(container_id),
        "bundle": bundle,
        "annotations": top.text_map("annotations"),
        "rootfs": _rootfs(rootfs, readonly=readonly),
        "hostname": top.text("hostname", ""),
        "domainname": top.text("domainname", ""),
        "network": network,
        "netns_path": path,
        "stage": stages,
        "stage_key": key,
        "mounts": mounts,
        "masked": masked,
        "readonly": read_only,
        "devices": read_devices(linux),
        "sysctls": read_sysctls(linux, network),
        "process": process,
        "oom_score_adj": oom_score_adj,
        "init": init,
        "limits": remembered("resources", resources.raw, lambda: read_limits(resources)),
        "log": None
        if log is None
        else {"path": normal_path(log.path, "log.path"), "max_bytes": log.max_bytes, "max_files": log.max_files},
    }
    linux.finish()
    top.finish()
    if len(plan["hostname"]) > 64 or len(plan["domainname"]) > 64:
        raise top.fail("hostname", "is longer than the kernel's 64 characters")
    size = len(marshal.dumps(plan, 2))  # type: ignore[arg-type]  # a TypedDict is a dict
    if size > MAX_PLAN_BYTES:
        raise InvalidConfig(
            "config", f"makes a plan of {size} bytes; the limit is {MAX_PLAN_BYTES}: shorten args and env"
        )
    return plan
