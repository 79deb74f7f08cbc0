"""Errors of the command line.

CliError          anything that ends a command with a message in three parts and an exit status
└── UsageError    the command line itself is wrong: status 125 for an unknown flag, as docker's, else 1

Errors of a manager arrive as ``orch_rpc.errors.OrchError``, of a stack file as ``compose.report.ComposeError``;
``main`` prints them all alike.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_NOT_IN_TIME = 2
EXIT_ROLLED_BACK = 3
EXIT_UNPLACEABLE = 4
EXIT_UNKNOWN_FLAG = 125
EXIT_PLAN_ERROR = 255


class CliError(Exception):
    """What failed, why, and what to do next; raised by commands, printed by ``main``.

    Args:
        what: what failed.
        why: the reason; may be empty where ``what`` says it all.
        todo: what to do next.
        status: the exit status of the process.
    """

    def __init__(self, what: str, why: str = "", todo: str = "", *, status: int = EXIT_ERROR) -> None:
        super().__init__(what)
        self.what, self.why, self.todo, self.status = what, why, todo, status


class UsageError(CliError):
    """Raised when the command line cannot be understood."""


def format_error(what: str, why: str = "", todo: str = "") -> str:
    """The message as people see it: what and why on the first line, what to do on the second."""
    first = f"orch: {what}: {why}" if why else f"orch: {what}"
    return f"{first}\n      {todo}" if todo else first
