"""A reaping pid 1 (`init: true`).

It starts the program, passes signals on, collects orphans and ends with the program's code. It is a fork of the
supervisor that was never exec'd: about 0.4 MB of its own, instead of an interpreter.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C module: `signal` wraps every number in an enum
import os
from collections.abc import Callable

from orch_runtime.kernel import process as kernel

# Sent by the kernel about ourselves, not by people to the program.
_NOT_FORWARDED = (17, 21, 22)


def run_init(start_program: Callable[[], None], status_fd: int) -> None:
    """Fork; the child calls `start_program` (which does not return), this process reaps until it ends, then exits.

    `status_fd` is the close-on-exec descriptor whose end tells the supervisor that the program runs: only the program
    may keep it open.
    """
    everything = set(range(1, _signal.NSIG)) - {32, 33}
    _signal.pthread_sigmask(_signal.SIG_BLOCK, everything)
    program = os.fork()
    if program == 0:
        os.setsid()
        start_program()
        os._exit(126)
    os.close(status_fd)
    for number in (0, 1, 2):
        # A pipe held open here would outlive the program's own use of it.
        os.close(number)
    kernel.close_range(3)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    while True:
        signal = _signal.sigwaitinfo(everything).si_signo
        if signal == 17:
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                if pid == program:
                    code = os.waitstatus_to_exitcode(status)
                    os._exit(code if code >= 0 else 128 - code)
        elif signal not in _NOT_FORWARDED:
            try:
                os.kill(program, signal)
            except OSError:
                continue
