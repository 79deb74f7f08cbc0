"""Problems and notes about a stack file: collected while it is read, so that one run shows all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from orch_cli.compose.nodes import Mark

MAX_PROBLEMS: Final = 100  # after so many the reader has seen enough


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: where, what is wrong, why, and what to do."""

    mark: Mark | None
    path: str
    what: str
    why: str = ""
    hint: str = ""

    def __str__(self) -> str:
        """``file:line: services.web.deploy.replicas: what; why; hint``."""
        sentence = "; ".join(part for part in (self.what, self.why, self.hint) if part)
        return ": ".join(part for part in (str(self.mark) if self.mark else "", self.path, sentence) if part)


class ComposeError(Exception):
    """Raised by the loader when a stack file cannot be used; holds every problem that was found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: Final = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(slots=True)
class Report:
    """What was found so far. Problems stop a deploy, warnings do not."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def error(self, mark: Mark | None, path: str, what: str, why: str = "", hint: str = "") -> None:
        """Adds a problem; the same one twice (through an alias, say) counts once."""
        problem = Problem(mark, path, what, why, hint)
        if len(self.problems) < MAX_PROBLEMS and problem not in self.problems:
            self.problems.append(problem)

    def warn(self, mark: Mark | None, path: str, what: str, why: str = "", hint: str = "") -> None:
        """Adds a warning."""
        warning = Problem(mark, path, what, why, hint)
        if len(self.warnings) < MAX_PROBLEMS and warning not in self.warnings:
            self.warnings.append(warning)

    def raise_if_problems(self) -> None:
        """Raises ``ComposeError`` when there is a problem, in the order of the files."""
        if self.problems:
            raise ComposeError(sorted(self.problems, key=lambda problem: problem.mark or Mark("", 0)))


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean "replicas"?`` when something known is close to ``word``, else nothing."""
    candidates = list(known)
    folded = {candidate.replace("-", "_").lower(): candidate for candidate in candidates}
    if word.replace("-", "_").lower() in folded:
        return f'did you mean "{folded[word.replace("-", "_").lower()]}"?'
    matches = difflib.get_close_matches(word, candidates, n=1, cutoff=0.7)
    return f'did you mean "{matches[0]}"?' if matches else ""
