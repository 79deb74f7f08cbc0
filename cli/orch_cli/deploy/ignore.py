"""The rules of a ``.dockerignore`` file (Dockerfile reference, ".dockerignore files")."""

from __future__ import annotations

import re
from typing import Final

MAX_RULES: Final = 10_000


class IgnoreRules:
    """Decides which paths of a context stay out. Later rules win; ``!`` takes back."""

    def __init__(self, text: str) -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        for raw in text.removeprefix("\ufeff").splitlines()[:MAX_RULES]:
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            keep = line.startswith("!")
            pattern = _clean(line[1:].strip() if keep else line)
            if pattern:
                self._rules.append((re.compile(_translate(pattern)), keep))
        self.has_exceptions = any(keep for _, keep in self._rules)

    def ignores(self, path: str) -> bool:
        """Whether ``path`` (relative, with slashes) stays out: it or a folder above matches, nothing takes it back."""
        parts = path.split("/")
        prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        ignored = False
        for pattern, keep in self._rules:
            if ignored == keep and any(pattern.fullmatch(prefix) for prefix in prefixes):
                ignored = not keep
        return ignored


def _clean(pattern: str) -> str:
    """The pattern without leading and trailing slashes, ``.`` and ``..`` resolved."""
    parts: list[str] = []
    for part in pattern.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return "/".join(parts)


def _translate(pattern: str) -> str:
    """A regular expression for Go's path patterns with ``**``."""
    result = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if pattern.startswith("**/", position):
            result.append("(?:.*/)?")
            position += 3
        elif pattern.startswith("**", position):
            result.append(".*")
            position += 2
        elif character == "*":
            result.append("[^/]*")
            position += 1
        elif character == "?":
            result.append("[^/]")
            position += 1
        elif character == "[" and "]" in pattern[position + 2 :]:
            end = pattern.index("]", position + 2)
            inside = pattern[position + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            result.append(f"[{inside}]")
            position = end + 1
        elif character == "\\" and position + 1 < len(pattern):
            result.append(re.escape(pattern[position + 1]))
            position += 2
        else:
            result.append(re.escape(character))
            position += 1
    return "".join(result)
