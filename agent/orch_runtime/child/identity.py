"""Who the program runs as: users and groups by name, as the container's own files define them; credentials; limits."""

from __future__ import annotations

import binascii
import os
import resource
import stat

from orch_runtime.child.failure import SetupFailed
from orch_runtime.kernel import process as kernel
from orch_runtime.kernel.seccomp import load_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.plan import ProcessPlan, UserPlan

_MAX_FILE_BYTES = 1 << 20


def _lines(path: str) -> list[list[str]]:
    """Read a colon-separated file of the container; absent, irregular or oversized ones count as empty."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return []
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE_BYTES:
            return []
        text = os.read(fd, _MAX_FILE_BYTES).decode(errors="replace")
    finally:
        os.close(fd)
    return [line.split(":") for line in text.splitlines() if line and not line.startswith("#")]


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else -1


def resolve_user(user: UserPlan) -> tuple[int, int, list[int], str]:
    """Return (uid, gid, supplementary gids, home); names are looked up in this root's /etc/passwd and /etc/group.

    Docker's rules: a number that /etc/passwd does not know is taken as it is, with gid 0; the supplementary groups come
    from /etc/group unless a group was given.

    Raises:
        SetupFailed: a name is unknown.
    """
    uid, gid, home = user["uid"], user["gid"], "/"
    groups = list(user["additional_gids"])
    user_name, _, group_name = user["name"].partition(":")
    accounts = _lines("/etc/passwd")
    wanted = user_name or str(uid)
    account = next((entry for entry in accounts if len(entry) >= 6 and user_name and entry[0] == user_name), None)
    number = _number(wanted)
    if account is None and number >= 0:
        account = next((entry for entry in accounts if len(entry) >= 6 and _number(entry[2]) == number), None)
    if account is not None:
        home = account[5] or "/"
    if not user_name:
        return uid, gid, groups, home
    if account is not None:
        uid, gid = _number(account[2]), _number(account[3])
    elif number >= 0:
        uid, gid = number, 0
    else:
        raise SetupFailed(
            f"user {user_name!r} is not in the container's /etc/passwd; name one that is, or use a number"
        )
    if uid < 0 or gid < 0:
        raise SetupFailed(f"the container's /etc/passwd has no usable numbers for user {user_name!r}")
    known = _lines("/etc/group")
    if group_name:
        group = next((entry for entry in known if len(entry) >= 3 and entry[0] == group_name), None)
        gid = _number(group[2]) if group is not None else _number(group_name)
        if gid < 0:
            raise SetupFailed(
                f"group {group_name!r} is not in the container's /etc/group; name one that is, or use a number"
            )
    elif account is not None:
        member = account[0]
        groups += [
            _number(entry[2])
            for entry in known
            if len(entry) >= 4 and member in entry[3].split(",") and _number(entry[2]) >= 0
        ]
    return uid, gid, groups, home


def set_rlimits(rlimits: list[list[int]], warnings: list[str]) -> None:
    """Set resource limits; above our own hard limit they are clamped, with a warning, without CAP_SYS_RESOURCE."""
    for number, soft, hard in rlimits:
        try:
            resource.setrlimit(number, (soft, hard))
        except (PermissionError, ValueError):
            ceiling = resource.getrlimit(number)[1]
            clamped = ceiling if soft < 0 or soft > ceiling else soft
            resource.setrlimit(number, (clamped, ceiling))
            warnings.append(
                f"resource limit {number}: {soft}:{hard} lowered to {clamped}:{ceiling}: CAP_SYS_RESOURCE is missing"
            )


def become(process: ProcessPlan, uid: int, gid: int, groups: list[int], last_capability: int) -> None:
    """Take on user, groups and capabilities; in the kernel's order: groups, gid, uid, then what that left.

    A filter of system calls that needs a privilege to be loaded, for want of no_new_privileges, comes first.
    """
    if not process["no_new_privileges"]:
        _filter_calls(process)
    masks = process["capabilities"]
    kernel.drop_bounding(masks["bounding"], last_capability)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    if uid != 0:
        kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
        os.setresuid(uid, uid, uid)
    else:
        os.setresuid(0, 0, 0)
    permitted = masks["permitted"]
    effective = masks["effective"]
    if uid != 0:
        # A user other than root holds only what is ambient, as execve would leave it anyway.
        permitted = masks["ambient"]
        effective = masks["ambient"]
    kernel.set_capabilities(effective, permitted, masks["inheritable"])
    kernel.set_ambient(masks["ambient"])
    if process["no_new_privileges"]:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    os.umask(process["user"]["umask"])


def filter_calls_at_last(process: ProcessPlan) -> None:
    """Go under the filter of system calls, unless `become` did so: the less there is to do after it, the better."""
    if process["no_new_privileges"]:
        _filter_calls(process)


def _filter_calls(process: ProcessPlan) -> None:
    given = process.get("seccomp")  # plans of older containers have none
    if given is not None:
        load_filter(binascii.a2b_base64(given["program"]), given["flags"])
