"""What can go wrong with a build.

    BuildError
    ├── DockerfileError     the Dockerfile is wrong; names file and line
    ├── ContextError        the build's folder lacks something or leads outside of itself
    ├── StageStopped        a stage ended early, as another one had failed; that one's error is shown
    └── StepFailed          a command ended with another code than 0

Each message says what failed, why, and what to do.
"""


class BuildError(Exception):
    """Base of all errors of builds; raised itself for a build that cannot begin."""


class DockerfileError(BuildError):
    """Raised for a Dockerfile that cannot be understood or asks for what orch does not do."""

    def __init__(self, message: str, *, file: str = "Dockerfile", line: int = 0) -> None:
        """Say `message` with the place in front; `line` counts from 1."""
        super().__init__(f"{file}:{line}: {message}" if line else f"{file}: {message}")
        self.file = file
        self.line = line


class ContextError(BuildError):
    """Raised when a source of COPY or ADD is missing, ignored or outside of the build's folder."""


class StageStopped(BuildError):
    """Raised within a build in stages that end early because another one has failed; never reaches a caller."""


class StepFailed(BuildError):
    """Raised when RUN's command fails; carries its exit code."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        """Say `message`; `exit_code` is the command's."""
        super().__init__(message)
        self.exit_code = exit_code
