"""The last steps to a program, of a container's own or of `exec`: who it is, what it may do, execve."""

from __future__ import annotations

import os
import resource
import stat

from orch_runtime.child import execute, identity
from orch_runtime.child.failure import CANNOT_EXECUTE, NOT_FOUND, SetupFailed
from orch_runtime.errors import KernelError
from orch_runtime.kernel import calls
from orch_runtime.kernel import process as kernel
from orch_runtime.kernel.seccomp import load_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orch_runtime.oci.spec import ProcessSpec

_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}[os.uname().machine]
_IOPRIO_WHO_PROCESS = 1

_ioprio_set = calls.syscall(calls.c_int, calls.c_int, calls.c_int)


def set_rlimits(rlimits: list[list[int]]) -> None:
    """Set resource limits as given.

    Raises:
        SetupFailed: one is above our own hard limit and CAP_SYS_RESOURCE is missing.
    """
    for number, soft, hard in rlimits:
        try:
            resource.setrlimit(number, (soft, hard))
        except (PermissionError, ValueError) as error:
            ceiling = resource.getrlimit(number)[1]
            raise SetupFailed(
                f"process.rlimits: limit {number} = {soft}:{hard} refused ({error}): above the hard limit {ceiling} of "
                "this runtime it needs CAP_SYS_RESOURCE"
            ) from error


def find_program(args: list[str], env: dict[str, str]) -> str:
    """Return the path of the program in this root; as execve would find it.

    Raises:
        SetupFailed: 127 when there is none, 126 when it is a folder or not executable.
    """
    name = args[0]
    path = env.get("PATH", execute.DEFAULT_PATH)
    candidates = [name] if "/" in name else [f"{folder or '.'}/{name}" for folder in path.split(":")]
    refused = ""
    for candidate in candidates:
        try:
            status = os.stat(candidate)
        except OSError as error:
            if isinstance(error, PermissionError):
                refused = candidate
            continue
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
            return candidate
        refused = candidate
    if refused:
        raise SetupFailed(f"exec: {refused}: permission denied: not an executable file", CANNOT_EXECUTE)
    if "/" in name:
        raise SetupFailed(f"exec: {name}: no such file or directory in the container", NOT_FOUND)
    raise SetupFailed(f"exec: {name}: executable file not found in $PATH {path} of the container", NOT_FOUND)


def _write_label(attribute: str, value: str, what: str) -> None:
    for path in (f"/proc/thread-self/attr/{attribute}", "/proc/thread-self/attr/exec"):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            os.write(fd, value.encode())
        except OSError as error:
            raise SetupFailed(f"{what}: {error.strerror}: this kernel runs without it, or does not know it") from error
        finally:
            os.close(fd)
        return
    raise SetupFailed(f"{what}: this kernel has no such security module")


def enter_working_directory(path: str) -> None:
    """Enter the working directory and make sure that it lies below the root: a leaked descriptor may lead out of it."""
    execute.enter_working_directory(path)
    try:
        inside = os.getcwd().startswith("/") and not os.getcwd().startswith("(unreachable)")
    except OSError:
        inside = False
    if not inside:
        raise SetupFailed(f"working directory {path} is outside of the container's root")


def drop_missing_capabilities(spec: ProcessSpec) -> list[str]:
    """Take out of the sets what this runtime does not hold itself (OCI config.md: log it); returns warnings."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        held = next((int(line.split()[1], 16) for line in file if line.startswith("CapPrm:")), 0)
    masks = spec.plan["capabilities"]
    missing = (masks["permitted"] | masks["effective"]) & ~held
    if not missing:
        return []
    masks["permitted"] &= held
    masks["effective"] &= held
    masks["inheritable"] &= held
    masks["ambient"] &= held
    from orch_runtime.capabilities import NUMBERS  # noqa: PLC0415 -- for the message only

    names = ", ".join(name for name, number in NUMBERS.items() if missing >> number & 1)
    return [f"process.capabilities: this runtime does not hold {names} itself, so it cannot give them"]


def set_scheduling(spec: ProcessSpec) -> None:
    """Set the priority of block I/O."""
    if spec.io_priority is not None and _ioprio_set(_SYS_IOPRIO_SET, _IOPRIO_WHO_PROCESS, 0, spec.io_priority) < 0:
        calls.raise_errno("ioprio_set", f"process.ioPriority = {spec.io_priority}")


def become(spec: ProcessSpec, seccomp: tuple[bytes, int] | None, last_capability: int) -> None:
    """Take on labels, user, capabilities and the filter of system calls.

    The filter comes last, but without no_new_privileges it needs CAP_SYS_ADMIN, which is then about to go.
    """
    if spec.apparmor_profile:
        _write_label("apparmor/exec", f"exec {spec.apparmor_profile}", f"apparmorProfile {spec.apparmor_profile}")
    if spec.selinux_label:
        _write_label("exec", spec.selinux_label, f"selinuxLabel {spec.selinux_label}")
    set_scheduling(spec)
    plan = spec.plan
    if seccomp is not None and not plan["no_new_privileges"]:
        load_filter(*seccomp)
    user = plan["user"]
    try:
        identity.become(plan, user["uid"], user["gid"], user["additional_gids"], last_capability)
    except OSError as error:
        raise SetupFailed(f"process.user {user['uid']}:{user['gid']}: {error.strerror}: not mapped here?") from error
    except KernelError as error:
        raise SetupFailed(f"process.capabilities: {error}") from error
    if seccomp is not None and plan["no_new_privileges"]:
        load_filter(*seccomp)


def keep_preserved(descriptors: tuple[int, ...]) -> None:
    """Let the given descriptors survive execve, and nothing else above the standard streams."""
    kernel.close_range(3, kernel.FD_MAX, kernel.CLOSE_RANGE_CLOEXEC)
    for fd in descriptors:
        os.set_inheritable(fd, True)


def execute_program(path: str, args: list[str], env: dict[str, str]) -> None:
    """Replace this process.

    Raises:
        SetupFailed: the kernel refuses.
    """
    try:
        os.execve(path, args, env)
    except OSError as error:
        raise SetupFailed(f"exec: {path}: {error.strerror}", CANNOT_EXECUTE) from error
