"""Seccomp profiles in the form in which Docker and Podman write them, to `linux.seccomp` of one container.

A profile is `linux.seccomp` and more: rules that hold only with or without some capabilities, on some architectures,
from some kernel on (`includes`, `excludes`), and `archMap` in place of `architectures`. Unknown keys are refused: a
filter that is not what was written protects from nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from orch_runtime.config.reader import Reader
from orch_runtime.errors import InvalidConfig

#: Go's names of architectures, which profiles use in conditions, of what uname(2) says.
_GO_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
#: What a machine runs beside its own programs.
_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
}
#: What `security_opt` says for no filter at all.
UNCONFINED = "unconfined"
MAX_PROFILE_BYTES = 128 << 10
MAX_RULES = 4096
MAX_NAMES = 2048


@dataclass(frozen=True)
class Host:
    """What conditions are about: uname(2)'s machine, and the kernel's version as (major, minor)."""

    machine: str
    kernel: tuple[int, int]

    @classmethod
    def here(cls) -> Host:
        """This host."""
        system = os.uname()
        return cls.of(system.machine, system.release)

    @classmethod
    def of(cls, machine: str, release: str) -> Host:
        """The host that uname(2) describes; a release without a version counts as 0.0."""
        found = re.match(r"(\d+)\.(\d+)", release)
        return cls(machine, (int(found[1]), int(found[2])) if found else (0, 0))


def read_profile(text: str, path: str = "seccomp") -> dict[str, object]:
    """Read a profile's JSON.

    Raises:
        InvalidConfig: it is too large, no JSON or no object.
    """
    if len(text) > MAX_PROFILE_BYTES:
        raise InvalidConfig(path, f"a profile of {len(text)} bytes; the limit is {MAX_PROFILE_BYTES}")
    try:
        profile = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(path, f"cannot be read as JSON: {error}") from error
    if not isinstance(profile, dict):
        raise InvalidConfig(path, f"must be an object, not {type(profile).__name__}")
    return profile


def own_architectures(machine: str) -> list[str]:
    """The architectures whose programs a machine runs, its own first."""
    return list(_ARCHITECTURES[machine])


def resolve_profile(
    profile: Mapping[str, object], capabilities: Collection[str], host: Host, path: str = "seccomp"
) -> dict[str, Any]:
    """The `linux.seccomp` that a profile means for a container with these capabilities on this host.

    Raises:
        InvalidConfig: naming the place in the profile.
    """
    top = Reader(profile, path)
    resolved: dict[str, Any] = {"defaultAction": top.text("defaultAction")}
    if top.has("defaultErrnoRet"):
        resolved["defaultErrnoRet"] = top.integer("defaultErrnoRet", 0, 4095)
    if top.has("flags"):
        resolved["flags"] = top.texts("flags", 16)
    resolved["architectures"] = _architectures(top, host)
    resolved["syscalls"] = [
        _rule(rule) for rule in top.readers("syscalls", MAX_RULES) if _holds(rule, capabilities, host)
    ]
    top.finish()
    return resolved


def _architectures(top: Reader, host: Host) -> list[str]:
    if top.has("archMap") and top.has("architectures"):
        raise top.fail("archMap", "cannot stand beside architectures")
    if not top.has("archMap"):
        return top.texts("architectures", 32) or own_architectures(host.machine)
    own = own_architectures(host.machine)
    found = own[:1]
    for entry in top.readers("archMap", 64):
        name, others = entry.text("architecture"), entry.texts("subArchitectures", 32)
        entry.finish()
        if name == own[0]:
            found = [name, *others]
    return found


def _rule(rule: Reader) -> dict[str, Any]:
    if rule.has("name") and rule.has("names"):
        raise rule.fail("name", "cannot stand beside names")
    names = [rule.text("name")] if rule.has("name") else rule.texts("names", MAX_NAMES)
    if not names:
        raise rule.fail("names", "must name at least one system call")
    resolved: dict[str, Any] = {"names": names, "action": rule.text("action")}
    if rule.has("errnoRet"):
        resolved["errnoRet"] = rule.integer("errnoRet", 0, 4095)
    rule.ignore("comment")
    resolved["args"] = [_argument(entry) for entry in rule.readers("args", 64)]
    rule.finish()
    return resolved


def _argument(entry: Reader) -> dict[str, Any]:
    resolved = {
        "index": entry.integer("index", 0, 5),
        "value": entry.integer("value", 0, (1 << 64) - 1, 0),
        "valueTwo": entry.integer("valueTwo", 0, (1 << 64) - 1, 0),
        "op": entry.text("op"),
    }
    entry.finish()
    return resolved


def _holds(rule: Reader, capabilities: Collection[str], host: Host) -> bool:
    """Whether a rule's conditions are met; all that it includes must be, and nothing that it excludes."""
    includes, excludes = rule.reader("includes"), rule.reader("excludes")
    wanted, unwanted = includes.texts("caps", 64), excludes.texts("caps", 64)
    here = _GO_ARCHITECTURE[host.machine]
    on, not_on = includes.texts("arches", 64), excludes.texts("arches", 64)
    newer, older = _kernel(includes), _kernel(excludes)
    includes.finish()
    excludes.finish()
    return (
        all(name in capabilities for name in wanted)
        and not any(name in capabilities for name in unwanted)
        and (not on or here in on)
        and here not in not_on
        and (newer is None or host.kernel >= newer)
        and (older is None or host.kernel < older)
    )


def _kernel(conditions: Reader) -> tuple[int, int] | None:
    if not conditions.has("minKernel"):
        return None
    text = conditions.text("minKernel")
    found = re.fullmatch(r"(\d{1,4})\.(\d{1,4})(?:\.\d+)?", text)
    if not found:
        raise conditions.fail("minKernel", f"{text!r} must be a version such as 4.8")
    return int(found[1]), int(found[2])
