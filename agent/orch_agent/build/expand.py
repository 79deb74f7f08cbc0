"""Variables and quotes in the words of a Dockerfile.

Source: docker's Dockerfile reference, section Environment replacement: `$a`, `${a}`, `${a:-w}`, `${a:+w}`, `${a:?w}`
and the same without the colon (where an empty value counts as set); `${a#p}`, `${a##p}`, `${a%p}`, `${a%%p}`,
`${a/p/w}`, `${a//p/w}` with the shell's patterns `*` and `?`; no replacement in single quotes; the escape character
before `$` or a quote takes its meaning away.
"""

import re
from collections.abc import Callable, Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]|[@*#?-]")
_DEPTH_MAX = 20
EXPANDED_CHARACTERS_MAX = 256 * 1024
_EDITED_CHARACTERS_MAX = 4096
_STARS_MAX = 4


class ExpansionError(ValueError):
    """Raised for a malformed or refused replacement; the parser adds file and line."""


def expand(word: str, variables: Mapping[str, str], *, escape: str = "\\") -> str:
    """Replace the variables of a word and take its quotes away.

    Raises:
        ExpansionError: a brace or quote is open, an operator unknown, a `:?` variable missing, or the result too long.
    """
    return _Expander(word, variables, escape).run()


def expand_text(text: str, variables: Mapping[str, str], *, escape: str = "\\") -> str:
    """Replace the variables of a heredoc's body; quotes are ordinary there, and an escaped dollar is a dollar.

    Raises:
        ExpansionError: a brace is open, an operator unknown, or the result too long.
    """
    return _Expander(text, variables, escape, quotes=False).run()


def split_words(text: str, *, escape: str = "\\") -> tuple[str, ...]:
    """Split at blanks outside of quotes (as docker, also within braces), keeping quotes and escapes for `expand`.

    Raises:
        ExpansionError: a quote is open.
    """
    words: list[str] = []
    current = ""
    quote = ""
    index = 0
    while index < len(text):
        character = text[index]
        if character == escape and quote != "'" and index + 1 < len(text):
            current += text[index : index + 2]
            index += 2
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character.isspace():
            if current:
                words.append(current)
            current = ""
            index += 1
            continue
        current += character
        index += 1
    if quote:
        raise ExpansionError(f"a quote {quote} is not closed")
    return (*words, current) if current else tuple(words)


class _Expander:
    def __init__(
        self, text: str, variables: Mapping[str, str], escape: str, depth: int = 0, *, quotes: bool = True
    ) -> None:
        self._text = text
        self._variables = variables
        self._escape = escape
        self._depth = depth
        self._quotes = quotes
        self._at = 0
        if depth > _DEPTH_MAX:
            raise ExpansionError(f"variables are nested deeper than {_DEPTH_MAX}")

    def run(self) -> str:
        result = self._until(lambda: False)
        if len(result) > EXPANDED_CHARACTERS_MAX:
            raise ExpansionError(f"a value is longer than {EXPANDED_CHARACTERS_MAX} characters")
        return result

    def _until(self, done: Callable[[], bool]) -> str:
        out: list[str] = []
        while self._at < len(self._text) and not done():
            character = self._text[self._at]
            if character == "'" and self._quotes:
                out.append(self._single_quoted())
            elif character == '"' and self._quotes:
                out.append(self._double_quoted())
            elif character == "$":
                out.append(self._variable())
            elif character == self._escape and self._escapes(self._text[self._at + 1 : self._at + 2]):
                out.append(self._text[self._at + 1])
                self._at += 2
            else:
                out.append(character)
                self._at += 1
        return "".join(out)

    def _escapes(self, following: str) -> bool:
        return following != "" and (self._quotes or following in ("$", self._escape))

    def _single_quoted(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise ExpansionError("a quote ' is not closed")
        value = self._text[self._at + 1 : end]
        self._at = end + 1
        return value

    def _double_quoted(self) -> str:
        self._at += 1
        out: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == '"':
                self._at += 1
                return "".join(out)
            if character == "$":
                out.append(self._variable())
                continue
            following = self._text[self._at + 1 : self._at + 2]
            if character == self._escape and following and following in f'"${self._escape}':
                character = following
                self._at += 1
            out.append(character)
            self._at += 1
        raise ExpansionError('a quote " is not closed')

    def _variable(self) -> str:
        self._at += 1
        if self._text[self._at : self._at + 1] == "{":
            return self._braced()
        match = _NAME.match(self._text, self._at)
        if not match:
            return "$"
        self._at = match.end()
        return self._variables.get(match.group(), "")

    def _braced(self) -> str:
        match = _NAME.match(self._text, self._at + 1)
        if not match:
            raise ExpansionError("${ is not followed by a name")
        name = match.group()
        self._at = match.end()
        colon = self._text[self._at : self._at + 1] == ":"
        operator = self._text[self._at + colon : self._at + colon + 1]
        if operator == "}" and not colon:
            self._at += 1
            return self._variables.get(name, "")
        if not colon and operator and operator in "#%/":
            return self._edited(name, operator)
        if not operator or operator not in "-+?":
            raise ExpansionError(f"${{{name}{':' if colon else ''}{operator}...}} is not supported; use - + ? # % or /")
        self._at += colon + 1
        word = self._operand(name, "}")
        self._at += 1
        return self._chosen(name, operator, word, colon=colon)

    def _operand(self, name: str, ends: str) -> str:
        """The word up to one of `ends`, which is left standing."""
        inner = _Expander(self._text, self._variables, self._escape, self._depth + 1, quotes=self._quotes)
        inner._at = self._at
        word = inner._until(lambda: self._text[inner._at] in ends)
        self._at = inner._at
        if self._at >= len(self._text):
            raise ExpansionError(f"${{{name} is not closed by }}")
        return word

    def _edited(self, name: str, operator: str) -> str:
        """`${name#pattern}` and its like: the value without a match at one end, or with matches replaced."""
        twice = self._text[self._at + 1 : self._at + 2] == operator
        self._at += 1 + twice
        value = self._variables.get(name, "")
        pattern = self._operand(name, "}" if operator != "/" else "/}")
        if operator != "/":
            self._at += 1
            return _without(value, pattern, at_end=operator == "%", longest=twice)
        replacement = ""
        if self._text[self._at] == "/":
            self._at += 1
            replacement = self._operand(name, "}")
        self._at += 1
        if len(value) > _EDITED_CHARACTERS_MAX:
            raise ExpansionError(f"a value to be edited is longer than {_EDITED_CHARACTERS_MAX} characters")
        regex = _shell_pattern(pattern)
        return (
            re.sub(regex, lambda match: replacement if match.group() else "", value, count=0 if twice else 1)
            if pattern
            else value
        )

    def _chosen(self, name: str, operator: str, word: str, *, colon: bool) -> str:
        value = self._variables.get(name)
        is_set = value is not None and (value != "" or not colon)
        if operator == "+":
            return word if is_set else ""
        if is_set:
            return value or ""
        if operator == "?":
            raise ExpansionError(f"the variable {name} is not set{': ' + word if word else ''}; pass it by --build-arg")
        return word


def _without(value: str, pattern: str, *, at_end: bool, longest: bool) -> str:
    """The value without the shortest or longest match of a shell pattern at its beginning or end."""
    if len(value) > _EDITED_CHARACTERS_MAX:
        raise ExpansionError(f"a value to be cut is longer than {_EDITED_CHARACTERS_MAX} characters")
    regex = re.compile(_shell_pattern(pattern))
    lengths = range(len(value), -1, -1) if longest else range(len(value) + 1)
    for length in lengths:
        part = value[len(value) - length :] if at_end else value[:length]
        if regex.fullmatch(part):
            return value[: len(value) - length] if at_end else value[length:]
    return value


def _shell_pattern(pattern: str) -> str:
    """A shell pattern of `*` and `?` as a regular expression; escapes were taken away before."""
    pieces = re.sub(r"\*+", "*", pattern)
    if pieces.count("*") > _STARS_MAX:
        raise ExpansionError(f"the pattern {pattern[:50]!r} has more than {_STARS_MAX} stars")
    return "(?s:" + "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pieces) + ")"
