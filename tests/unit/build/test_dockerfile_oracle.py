"""The Dockerfile parser against BuildKit's own."""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orch_agent.build.errors import DockerfileError
from orch_agent.build.parser import INSTRUCTIONS, Dockerfile, Instruction, parse
from unit.build.buildkit_oracle import Oracle, oracle

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dockerfile") is None, reason="needs the package dockerfile (BuildKit's parser)"
)

_COMPARED = ("RUN", "CMD", "ENTRYPOINT", "COPY", "ADD", "USER", "WORKDIR", "EXPOSE", "VOLUME", "FROM", "ARG")
_PIECE = st.sampled_from(
    [*("a", "b1", "--x", "/d/", "k=v", "k='v w'", 'k="v w"', "$A", "${A:-b}", "a\\ b", "#", "&&", "|", "*.c", ".", "é")]
)
_GAP = st.sampled_from([" ", " ", "  ", "\t", " \\\n", " \\\n  ", " \\\n# note\n", " \\\n\n ", "\\\n"])
_FLAGS = {
    "RUN": ("--network=none", "--mount=type=cache,target=/c", "--mount=type=tmpfs,target=/t"),
    "COPY": ("--from=x", "--chown=1:2", "--chmod=644", "--link", "--exclude=*.md", "--parents"),
    "ADD": ("--chown=a", "--chmod=0755"),
    "HEALTHCHECK": ("--interval=1s", "--retries=2"),
    "FROM": ("--platform=linux/amd64",),
}


@st.composite
def _instruction(draw: st.DrawFn) -> str:
    keyword = draw(st.sampled_from(sorted(INSTRUCTIONS - {"ONBUILD"})))
    spelled = draw(st.sampled_from([keyword, keyword.lower(), keyword.title()]))
    flags = draw(st.lists(st.sampled_from(_FLAGS[keyword]), max_size=2, unique=True)) if keyword in _FLAGS else []
    if keyword in ("RUN", "COPY") and draw(st.integers(0, 5)) == 0:
        body = draw(st.lists(st.sampled_from(["x", "RUN y", "# z", "", "\t$A", "EOT "]), max_size=4))
        word = draw(st.sampled_from(["<<EOF", "<<-EOF", "<<'EOF'"]))
        return " ".join([spelled, *flags, word, *(["/dest"] if keyword == "COPY" else [])]) + "".join(
            f"\n{line}" for line in [*body, "EOF"]
        )
    json_form = draw(st.sampled_from(["", "", "", '["a", "b c"]', '["a","\\u0041"]', "['a']", '["a", 1]', '["a"']))
    if json_form:
        return " ".join([spelled, *flags, json_form])
    pieces = draw(st.lists(_PIECE, min_size=1, max_size=4))
    if keyword == "HEALTHCHECK":
        pieces = ["CMD", *pieces]
    text = spelled + "".join(f" {flag}" for flag in flags)
    for piece in pieces:
        text += draw(_GAP) + piece
    return text if text.split("\n")[0].strip() != spelled else f"{spelled} x"


_FILE = st.tuples(
    st.sampled_from(["", "# syntax=docker/dockerfile:1\n", "# escape=\\\n", "# comment\n\n", "ARG A=1\n"]),
    st.lists(st.one_of(_instruction(), st.sampled_from(["", "# comment", "   ", "  # indented"])), max_size=5),
)


@pytest.fixture(scope="module")
def buildkit() -> Iterator[Oracle]:
    """BuildKit's parser."""
    with oracle() as found:
        yield found


def _accepted(text: str) -> Dockerfile | None:
    with contextlib.suppress(DockerfileError):
        return parse(text)
    return None


def _compare(buildkit: Oracle, text: str) -> None:
    ours = _accepted(text)
    if ours is None:
        return
    if any(_is_no_health_check(item) for item in ours.instructions):
        return  # refused when it is applied, where BuildKit's parser may stumble over what follows its unknown word
    theirs = buildkit.parse(text)
    assert [item.keyword for item in ours.instructions] == [command.cmd.upper() for command in theirs]
    for item, command in zip(ours.instructions, theirs, strict=True):
        assert item.line == command.start_line
        if item.keyword != "HEALTHCHECK":  # its form is read when it is applied
            assert item.json_form == command.json
        flags = {flag.removeprefix("--").partition("=")[0] for flag in command.flags}
        assert flags == {*item.flags, *item.repeated}
        if item.json_form or item.keyword in _COMPARED:
            assert _blanks_joined(item.args) == _blanks_joined(command.value)
        if item.keyword in ("ENV", "LABEL"):
            # BuildKit's parser gives key, value and the sign between them, or an empty word for the old form.
            assert _pairs(item.args) == _pairs(command.value)


def _is_no_health_check(item: Instruction) -> bool:
    return item.keyword == "HEALTHCHECK" and item.args[0].split(maxsplit=1)[0].upper() not in ("CMD", "NONE")


def _pairs(words: Sequence[str]) -> list[str]:
    return [word for word in _blanks_joined(words) if word not in ("=", "")]


def _blanks_joined(words: Sequence[str]) -> list[str]:
    """Words, with runs of blanks as one: what stands around a continued line is a matter of taste."""
    return [" ".join(word.split()) for word in words]


@settings(max_examples=400, deadline=None)
@given(_FILE)
def test_what_is_accepted_means_what_buildkit_reads(buildkit: Oracle, parts: tuple[str, list[str]]) -> None:
    """A file that is accepted has the same instructions, lines, flags, forms and words for BuildKit's parser."""
    head, lines = parts
    _compare(buildkit, head + "\n".join(["FROM scratch", *lines]) + "\n")


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=100_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_FILE, st.text(max_size=40))
def test_a_hundred_thousand_files_are_read_or_refused(
    buildkit: Oracle, parts: tuple[str, list[str]], noise: str
) -> None:
    """Whatever a file holds, parsing ends with instructions or a DockerfileError; BuildKit reads what is accepted."""
    head, lines = parts
    text = head + "\n".join(["FROM scratch", *lines]) + "\n"
    _compare(buildkit, text)
    _accepted(text[: len(text) // 2] + noise + text[len(text) // 2 :])
