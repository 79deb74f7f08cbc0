"""From a Dockerfile's text to logical lines: directives, comments, continued lines, heredocs.

Source: docker's Dockerfile reference, sections Format, Parser directives, Escape, Here-documents.
"""

import re
from dataclasses import dataclass

from orch_agent.build.errors import DockerfileError

DOCKERFILE_BYTES_MAX = 1024 * 1024
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*\Z")
_HEREDOC = re.compile(r"""(?:^|(?<=\s))(\d*)<<(-?)(["']?)([A-Za-z_][A-Za-z0-9_.-]*)\3(?=\s|$)""")
_WITH_HEREDOCS = ("RUN", "COPY", "ADD")


@dataclass(frozen=True, slots=True)
class Heredoc:
    """The body of a here-document."""

    name: str
    body: str
    expand: bool
    """Whether variables are replaced: not if the name was quoted."""


@dataclass(frozen=True, slots=True)
class LogicalLine:
    """One instruction with its continuations joined."""

    number: int
    """Line where it begins, from 1."""
    text: str
    heredocs: tuple[Heredoc, ...] = ()


@dataclass(frozen=True, slots=True)
class Lexed:
    """A Dockerfile's lines and its escape character."""

    lines: tuple[LogicalLine, ...]
    escape: str


def lex(text: str, *, file: str = "Dockerfile") -> Lexed:
    """Split a Dockerfile into its instructions.

    Raises:
        DockerfileError: an unknown escape character, a heredoc without its end, a file that is too large.
    """
    if len(text) > DOCKERFILE_BYTES_MAX:
        raise DockerfileError(f"it has more than {DOCKERFILE_BYTES_MAX} characters; is this a Dockerfile?", file=file)
    raw = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    escape = _escape_directive(raw, file)
    return Lexed(tuple(_Lines(raw, escape, file).logical()), escape)


def _escape_directive(raw: list[str], file: str) -> str:
    seen: set[str] = set()
    for number, line in enumerate(raw, start=1):
        match = _DIRECTIVE.match(line.strip())
        if not match or match.group(1).lower() not in ("syntax", "escape", "check"):
            break
        name, value = match.group(1).lower(), match.group(2)
        if name in seen:
            raise DockerfileError(f"the directive {name} occurs twice; keep one", file=file, line=number)
        seen.add(name)
        if name == "escape":
            if value not in ("\\", "`"):
                raise DockerfileError(f"escape must be \\ or `, not {value!r}", file=file, line=number)
            return value
    return "\\"


class _Lines:
    def __init__(self, raw: list[str], escape: str, file: str) -> None:
        self._raw = raw
        self._file = file
        self._next = 0
        self._continued = re.compile(re.escape(escape) + r"[ \t]*\Z")

    def logical(self) -> list[LogicalLine]:
        lines = []
        while self._next < len(self._raw):
            number = self._next + 1
            first = self._raw[self._next]
            self._next += 1
            if not first.strip() or first.lstrip().startswith("#"):
                continue
            text = self._joined(first.lstrip())
            if text.strip():
                lines.append(LogicalLine(number, text.strip(), self._heredocs(text.strip(), number)))
        return lines

    def _joined(self, text: str) -> str:
        while True:
            match = self._continued.search(text)
            if not match:
                return text
            text = text[: match.start()]
            # Comments and blank lines within a continued instruction are skipped.
            while self._next < len(self._raw) and (
                not self._raw[self._next].strip() or self._raw[self._next].lstrip().startswith("#")
            ):
                self._next += 1
            if self._next == len(self._raw):
                return text
            text += self._raw[self._next]
            self._next += 1

    def _heredocs(self, text: str, number: int) -> tuple[Heredoc, ...]:
        words = [word.upper() for word in text.split(None, 2)[:2]]
        if words[words[0] == "ONBUILD" and len(words) > 1] not in _WITH_HEREDOCS:
            return ()
        return tuple(self._body(match, number) for match in _HEREDOC.finditer(text))

    def _body(self, match: "re.Match[str]", number: int) -> Heredoc:
        _, dash, quote, name = match.groups()
        body: list[str] = []
        while self._next < len(self._raw):
            line = self._raw[self._next]
            self._next += 1
            if dash:
                line = line.lstrip("\t")
            if line == name:
                return Heredoc(name, "".join(f"{part}\n" for part in body), expand=not quote)
            body.append(line)
        raise DockerfileError(
            f"the heredoc {name} has no end; add a line with {name} alone", file=self._file, line=number
        )
