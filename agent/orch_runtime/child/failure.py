"""How a child says that it cannot go on."""

from __future__ import annotations

CANNOT_EXECUTE = 126
NOT_FOUND = 127


class SetupFailed(Exception):  # noqa: N818 -- as in errors.py
    """The container cannot be set up, or its program not executed; `exit_code` is what a shell would give."""

    def __init__(self, message: str, exit_code: int = CANNOT_EXECUTE) -> None:
        super().__init__(message)
        self.exit_code = exit_code
