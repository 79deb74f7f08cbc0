"""Hooks: programs of the caller's at points of a container's life (OCI config.md, "POSIX-platform Hooks")."""

from __future__ import annotations

import json
import os
import select
import signal
import time

from orch_runtime.errors import StartFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orch_runtime.oci.spec import Hook

DEFAULT_TIMEOUT_S = 120
_POLL_S = 0.005


def _wait(pid: int, deadline: float) -> int | None:
    """Wait for a child until the deadline; None when it has not ended by then."""
    pause = 0.0005
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause)
        pause = min(pause * 2, _POLL_S)


def _run(hook: Hook, document: bytes) -> str:
    """Run one hook with the state on its standard input; returns why it failed, "" if it did not."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            os.dup2(reader, 0)
            for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            env = os.environ if hook.env is None else dict(entry.partition("=")[::2] for entry in hook.env)
            os.execve(hook.path, list(hook.args), env)
        except OSError as error:
            os.write(2, f"hook {hook.path}: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    os.close(reader)
    deadline = time.monotonic() + (hook.timeout_s or DEFAULT_TIMEOUT_S)
    try:
        # A state is smaller than a pipe, so that this does not wait for the hook to read.
        select.select([], [writer], [], 0)
        os.write(writer, document)
    except BrokenPipeError:
        pass
    finally:
        os.close(writer)
    code = _wait(pid, deadline)
    if code is None:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(pid, 0)
        return f"did not end within {hook.timeout_s or DEFAULT_TIMEOUT_S} s"
    return "" if code == 0 else f"ended with {code}"


def run_hooks(hooks: Sequence[Hook], state: Mapping[str, object], stage: str) -> None:
    """Run hooks in order; the first that fails ends it.

    Raises:
        StartFailed: naming stage, hook and reason.
    """
    if not hooks:
        return
    document = json.dumps(dict(state)).encode()
    for hook in hooks:
        reason = _run(hook, document[:65536])
        if reason:
            raise StartFailed(f"{stage} hook {hook.path}: {reason}", 1)


def run_hooks_leniently(hooks: Sequence[Hook], state: Mapping[str, object], stage: str) -> list[str]:
    """Run hooks whose failure is only logged (poststart, poststop); returns the warnings."""
    warnings = []
    for hook in hooks:
        try:
            run_hooks([hook], state, stage)
        except StartFailed as failure:
            warnings.append(str(failure))
    return warnings
