"""From logical lines to instructions, each checked for its form; variables are replaced later, when they are known.

Source: docker's Dockerfile reference, one section for each instruction.
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orch_agent.build.errors import DockerfileError
from orch_agent.build.expand import ExpansionError, split_words
from orch_agent.build.lexer import Heredoc, LogicalLine, lex

_FLAGS: Mapping[str, frozenset[str]] = {
    "FROM": frozenset({"platform"}),
    "RUN": frozenset({"network", "mount", "security"}),
    "COPY": frozenset({"from", "chown", "chmod", "link", "parents", "exclude"}),
    "ADD": frozenset({"chown", "chmod", "link", "exclude", "checksum", "unpack", "keep-git-dir"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "start-interval", "retries"}),
}
_REPEATED = frozenset({"mount", "exclude"})
_SWITCHES = frozenset({"link", "parents", "unpack", "keep-git-dir"})
_TRUTH = {"true": "true", "1": "true", "false": "", "0": ""}
_NOT_IN_ONBUILD = ("ONBUILD", "FROM", "MAINTAINER")
_SINGLE = ("STOPSIGNAL", "USER", "WORKDIR", "MAINTAINER")
_COMMANDS = ("RUN", "CMD", "ENTRYPOINT", "SHELL")
_PAIRS = ("ENV", "LABEL")
_SPLIT_AT_BLANKS = frozenset({"EXPOSE", "VOLUME", "COPY", "ADD", "FROM"})
"""Their words are divided at every blank, quoted or not (as BuildKit does); a list in JSON is the way out."""
_WORDS = ("EXPOSE", "VOLUME", "ARG", "COPY", "ADD", "FROM")
INSTRUCTIONS = frozenset({*_SINGLE, *_COMMANDS, *_PAIRS, *_WORDS, "HEALTHCHECK", "ONBUILD"})
_FLAG = re.compile(r"--([a-z-]+)(?:=(.*))?\Z", re.DOTALL)
_JSON_ONLY_SHELL = "SHELL"
_WHOLE_LINE = frozenset({*_COMMANDS, *_SINGLE, "HEALTHCHECK", "ONBUILD"})
_NEVER_JSON = frozenset({*_SINGLE, *_PAIRS, "FROM", "ARG", "EXPOSE", "HEALTHCHECK", "ONBUILD"})


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; words still hold their variables and quotes, except in the JSON form."""

    keyword: str
    line: int
    text: str
    """The whole instruction on one line, as people see it in progress and history."""
    args: tuple[str, ...]
    """Words; for ENV and LABEL keys and values in turn; for a command in shell form one line."""
    json_form: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)
    """Options given once; a switch is `true` or empty."""
    repeated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Options that may be given several times: --mount and --exclude."""
    heredocs: tuple[Heredoc, ...] = ()


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed Dockerfile."""

    file: str
    instructions: tuple[Instruction, ...]
    escape: str

    def error(self, line: int, message: str) -> DockerfileError:
        """An error at a line of this file."""
        return DockerfileError(message, file=self.file, line=line)


def parse(text: str, *, file: str = "Dockerfile") -> Dockerfile:
    """Parse a whole Dockerfile.

    Raises:
        DockerfileError: naming file and line, and the nearest known word for an unknown one.
    """
    lexed = lex(text, file=file)
    instructions = tuple(_Parser(line, lexed.escape, file).instruction() for line in lexed.lines)
    if not instructions:
        raise DockerfileError("it has no instruction; begin with FROM", file=file)
    first = next((item for item in instructions if item.keyword != "ARG"), instructions[0])
    if first.keyword != "FROM":
        raise DockerfileError(f"{first.keyword} stands before the first FROM; only ARG may", file=file, line=first.line)
    return Dockerfile(file, instructions, lexed.escape)


def parse_triggers(lines: tuple[str, ...], *, image: str) -> tuple[Instruction, ...]:
    """Parse what ONBUILD kept in an image, for a build that begins from it.

    Raises:
        DockerfileError: naming the image, and the trigger's number as the line.
    """
    file = f"ONBUILD of {image}"
    return tuple(
        _Parser(logical, "\\", file).instruction()
        for number, text in enumerate(lines, start=1)
        for logical in (replace(line, number=number) for line in lex(text, file=file).lines)
    )


def parse_changes(lines: tuple[str, ...]) -> tuple[Instruction, ...]:
    """Parse single instructions, as `orch image import --change` takes them."""
    return tuple(
        _Parser(LogicalLine(number, line.strip()), "\\", "--change").instruction()
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )


def json_list(text: str) -> tuple[str, ...] | None:
    """The strings of a list in JSON, or None for anything else: as docker, that is then the shell form."""
    if not text.startswith("["):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return None
    return tuple(values)


def _is_other_list(text: str) -> bool:
    """Whether a text is a list in JSON, though not one of strings."""
    if not text.startswith("["):
        return False
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


class _Parser:
    def __init__(self, line: LogicalLine, escape: str, file: str) -> None:
        self._line = line
        self._escape = escape
        self._file = file
        word, _, rest = line.text.replace("\t", " ").partition(" ")
        self._keyword = word.upper()
        self._rest = line.text[len(word) :].strip() if rest or word != line.text else ""

    def instruction(self) -> Instruction:
        keyword = self._keyword
        if keyword not in INSTRUCTIONS:
            raise self._error(_unknown(self._line.text.split(None, 1)[0], keyword))
        flags, repeated = self._take_flags()
        if not self._rest and keyword != "ARG":
            raise self._error(f"{keyword} has no argument; write one or remove the line")
        json_args = self._json() if keyword not in _NEVER_JSON else None
        args = json_args if json_args is not None else self._args(keyword)
        self._check(keyword, args, json_form=json_args is not None)
        text = " ".join(self._line.text.split())
        return Instruction(
            keyword, self._line.number, text, args, json_args is not None, flags, repeated, self._line.heredocs
        )

    def _take_flags(self) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
        allowed = _FLAGS.get(self._keyword, frozenset())
        flags: dict[str, str] = {}
        repeated: dict[str, tuple[str, ...]] = {}
        while self._rest.startswith("--"):
            word, rest = _option(self._rest)
            match = _FLAG.match(word)
            name = match.group(1) if match else word
            if not match or name not in allowed:
                hint = (
                    f"{self._keyword} takes {', '.join('--' + flag for flag in sorted(allowed)) or 'no options'} here"
                )
                raise self._error(f"{self._keyword} --{name.lstrip('-')} is not supported; {hint}")
            if name in flags:
                raise self._error(f"--{name} is given twice; keep one")
            value = match.group(2)
            self._rest = rest
            if name in _SWITCHES:
                flags[name] = self._switch(name, value)
                continue
            if not value:
                raise self._error(f"--{name} needs a value: --{name}=...")
            if name in _REPEATED:
                repeated[name] = (*repeated.get(name, ()), value)
            else:
                flags[name] = value
        return flags, repeated

    def _switch(self, name: str, value: str | None) -> str:
        known = _TRUTH.get((value or "true").lower())
        if known is None:
            raise self._error(f"--{name}={value} is neither true nor false")
        return known

    def _json(self) -> tuple[str, ...] | None:
        values = json_list(self._rest)
        if values is None and _is_other_list(self._rest):
            raise self._error(f"{self._keyword}: a list in JSON must hold strings only; put quotes around each item")
        return values

    def _args(self, keyword: str) -> tuple[str, ...]:
        if keyword in _WHOLE_LINE:
            return (self._rest,)
        if keyword in _SPLIT_AT_BLANKS:
            return tuple(self._rest.split())
        try:
            words = split_words(self._rest, escape=self._escape)
        except ExpansionError as error:
            raise self._error(f"{keyword}: {error}") from error
        if keyword in _PAIRS:
            return self._pairs(keyword, words)
        return words

    def _pairs(self, keyword: str, words: tuple[str, ...]) -> tuple[str, ...]:
        if "=" not in words[0]:
            # The old form: the first blank ends the key, the rest of the line is the value.
            key, _, value = self._rest.replace("\t", " ").partition(" ")
            if not value.strip():
                raise self._error(f"{keyword} {key} has no value; write {keyword} {key}=...")
            return (key, self._rest[len(key) :].strip())
        pairs: list[str] = []
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or not key:
                raise self._error(f"{keyword}: {word!r} is not key=value; quote values that contain blanks")
            pairs += [key, value]
        return tuple(pairs)

    def _check(self, keyword: str, args: tuple[str, ...], *, json_form: bool) -> None:
        if keyword == _JSON_ONLY_SHELL and (not json_form or not args):
            raise self._error('SHELL needs a list in JSON: SHELL ["/bin/sh", "-c"]')
        if keyword == "RUN" and json_form and not args:
            raise self._error('RUN has an empty list; write RUN ["program", "argument"]')
        if keyword in ("COPY", "ADD") and len(args) < 2:
            raise self._error(f"{keyword} needs one source or more, and a destination")
        if keyword == "FROM" and not (len(args) == 1 or (len(args) == 3 and args[1].upper() == "AS")):
            raise self._error("FROM takes an image, and optionally AS with a name")
        if keyword == "ONBUILD":
            self._check_trigger(args[0])

    def _check_trigger(self, text: str) -> None:
        word = text.split(None, 1)[0].upper()
        if word in _NOT_IN_ONBUILD:
            raise self._error(f"ONBUILD {word} is not allowed; docker refuses it too")
        _Parser(replace(self._line, text=text), self._escape, self._file).instruction()

    def _error(self, message: str) -> DockerfileError:
        return DockerfileError(message, file=self._file, line=self._line.number)


def _unknown(word: str, keyword: str) -> str:
    near = difflib.get_close_matches(keyword, INSTRUCTIONS, 1, 0.6)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(INSTRUCTIONS))}"
    return f"unknown instruction {word[:50]!r}; {hint}"


def _option(text: str) -> tuple[str, str]:
    """The first word, which quotes may hold together and a backslash may protect, and what follows it."""
    word: list[str] = []
    quote = ""
    characters = iter(enumerate(text))
    for place, character in characters:
        if character == "\\":
            _, character = next(characters, (place, ""))  # noqa: PLW2901 -- the one it protects
        elif quote or character in "'\"":
            if not quote or character == quote:
                quote = "" if quote else character
                continue
        elif character.isspace():
            return "".join(word), text[place:].lstrip()
        word.append(character)
    return "".join(word), ""
