"""The last steps of every child: standard descriptors, working directory, signals, execve."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module: `signal` wraps every number in an enum
import errno
import os
import stat

from orch_runtime.child.failure import CANNOT_EXECUTE, NOT_FOUND, SetupFailed
from orch_runtime.kernel import process as kernel

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(entries: list[str], home: str) -> dict[str, str]:
    """Return the program's environment; HOME is added from /etc/passwd if it is absent (as Docker does)."""
    result: dict[str, str] = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        result[name] = value
    result.setdefault("HOME", home)
    return result


def enter_working_directory(path: str) -> None:
    """Change into `path`, making it first where it is missing (as Docker does)."""
    try:
        os.chdir(path)
    except FileNotFoundError:
        try:
            os.makedirs(path, 0o755, exist_ok=True)
            os.chdir(path)
        except OSError as error:
            raise SetupFailed(f"working directory {path}: {error.strerror}") from error
    except OSError as error:
        raise SetupFailed(f"working directory {path}: {error.strerror}") from error


def container_null() -> int:
    """Open the container's own /dev/null; one of the host's could be changed through the descriptor."""
    try:
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    if os.fstat(fd).st_rdev != os.makedev(1, 3) or not stat.S_ISCHR(os.fstat(fd).st_mode):
        os.close(fd)
        return -1
    return fd


def set_standard_descriptors(descriptors: list[int], uid: int, gid: int) -> None:
    """Make descriptors 0, 1, 2 of the given ones (-1 is /dev/null); pipes are given to the program's user.

    Without that, a program that is not root could not open its own /dev/stdout.
    """
    null = container_null()
    for number, fd in enumerate(descriptors):
        source = fd if fd >= 0 else null
        if source < 0:
            continue
        os.dup2(source, number, inheritable=True)
        if fd >= 0 and uid != 0 and stat.S_ISFIFO(os.fstat(number).st_mode):
            os.fchown(number, uid, gid)


def reset_signals() -> None:
    """Default every signal and unblock all: "ignored" and the mask survive execve, and Python ignores some."""
    for number in range(1, _signal.NSIG):
        if number not in (9, 19, 32, 33):
            try:
                _signal.signal(number, _signal.SIG_DFL)
            except (OSError, ValueError):
                continue
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def execute(args: list[str], env: dict[str, str]) -> None:
    """Replace this process by the program, found on the PATH of its own environment.

    Raises:
        SetupFailed: with 127 when there is no such program, 126 when it cannot be executed.
    """
    program = args[0]
    if "/" in program:
        candidates = [program]
    else:
        candidates = [f"{folder or '.'}/{program}" for folder in env.get("PATH", DEFAULT_PATH).split(":")]
    kernel.close_range(3, kernel.FD_MAX, kernel.CLOSE_RANGE_CLOEXEC)
    refused: OSError | None = None
    for candidate in candidates:
        try:
            os.execve(candidate, args, env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                refused = error
                refused.filename = candidate
            elif os.path.exists(candidate):
                raise SetupFailed(
                    f"{candidate}: its interpreter or loader is missing in the container", NOT_FOUND
                ) from error
    if refused is not None:
        hint = ""
        if refused.errno == errno.ENOEXEC:
            hint = " (a script needs a #! line, a program must be built for this machine)"
        elif refused.errno == errno.EACCES:
            hint = " (not executable for this user, or a folder)"
        raise SetupFailed(f"{refused.filename}: {os.strerror(refused.errno or 0)}{hint}", CANNOT_EXECUTE)
    if "/" in program:
        raise SetupFailed(f"{program}: no such file in the container", NOT_FOUND)
    raise SetupFailed(f"{program}: not found on PATH {env.get('PATH', DEFAULT_PATH)} of the container", NOT_FOUND)
