import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_agent.build.errors import DockerfileError
from orch_agent.build.parser import INSTRUCTIONS, Instruction, parse


def only(text: str) -> Instruction:
    """The one instruction after FROM."""
    items = parse(f"FROM scratch\n{text}").instructions
    assert len(items) == 2
    return items[1]


def test_comments_continuations_and_blank_lines_are_joined() -> None:
    """Comments and blank lines may stand between continued lines; the line number is that of the beginning."""
    item = only("  run a \\\n# comment\n\n  # another\n  && b \\  \n  && c\n")
    assert (item.keyword, item.line, item.args) == ("RUN", 2, ("a   && b   && c",))
    assert item.text == "run a && b && c"


def test_a_hash_within_a_line_is_no_comment() -> None:
    """Only a line that begins with a hash is a comment."""
    assert only("RUN echo '# here' # there").args == ("echo '# here' # there",)


def test_the_escape_directive_changes_the_continuation() -> None:
    """`# escape=` chooses the backtick, and a backslash is then an ordinary character."""
    items = parse("# escape=`\nFROM scratch\nRUN a `\n  b\\\nRUN c\n").instructions
    assert [item.args for item in items[1:]] == [("a   b\\",), ("c",)]


def test_directives_count_only_at_the_top() -> None:
    """After the first line that is none, a directive is a comment."""
    items = parse("# syntax=docker/dockerfile:1\n# note\n# escape=`\nFROM scratch\nRUN a \\\n  b").instructions
    assert items[1].args == ("a   b",)


def test_carriage_returns_and_byte_order_marks_are_forgiven() -> None:
    """Files from Windows parse as others."""
    assert only("\ufeffRUN a\r\n".removeprefix("\ufeff")).args == ("a",)
    assert parse("\ufeffFROM scratch\r\nRUN a \\\r\n b\r\n").instructions[1].args == ("a  b",)


@pytest.mark.parametrize(
    ("text", "args", "json_form"),
    [
        ('CMD ["a", "b c"]', ("a", "b c"), True),
        ("CMD a b c", ("a b c",), False),
        ("CMD ['a']", ("['a']",), False),
        ("CMD []", (), True),
        ('COPY ["a b", "c"]', ("a b", "c"), True),
        ("COPY a b  c/", ("a", "b", "c/"), False),
        ('COPY "a b" c', ('"a', 'b"', "c"), False),
        ("ENV A=1 B='x y' C=\"p q\" D=r\\ s", ("A", "1", "B", "'x y'", "C", '"p q"', "D", "r\\ s"), False),
        ("ENV A  b c ", ("A", "b c"), False),
        ("LABEL a=b", ("a", "b"), False),
        ("EXPOSE 80 443/udp", ("80", "443/udp"), False),
        ("ARG A", ("A",), False),
        ("ARG A=1 B", ("A=1", "B"), False),
        ("MAINTAINER some one", ("some one",), False),
    ],
)
def test_each_form_of_arguments(text: str, args: tuple[str, ...], *, json_form: bool) -> None:
    """JSON lists, words, key-value pairs and the old ENV form are told apart as docker does."""
    item = only(text)
    assert (item.args, item.json_form) == (args, json_form)


def test_flags_are_taken_off_the_front() -> None:
    """Flags before the arguments are kept apart from them, also over continued lines."""
    item = only("COPY --from=0 --chown=a:b \\\n  --chmod=644 x y")
    assert (dict(item.flags), item.args) == ({"from": "0", "chown": "a:b", "chmod": "644"}, ("x", "y"))


def test_quotes_hold_a_flag_together() -> None:
    """Blanks within quotes are part of a flag's value, which has no quotes any more, as BuildKit reads it."""
    item = only("COPY --from='a b' --chown=\"c\" x y")
    assert (dict(item.flags), item.args) == ({"from": "a b", "chown": "c"}, ("x", "y"))


def test_heredocs_end_at_their_word() -> None:
    """A heredoc's lines are its body and no instructions; with a dash its tabs go; quotes stop replacement."""
    items = parse(
        "FROM scratch\nRUN <<EOF\nCMD x\n# kept\nEOF\nRUN cat <<-'END' > f\n\ta\n\tEND\nUSER u\n"
    ).instructions
    assert [item.keyword for item in items] == ["FROM", "RUN", "RUN", "USER"]
    assert (items[1].heredocs[0].body, items[1].heredocs[0].expand) == ("CMD x\n# kept\n", True)
    assert (items[2].heredocs[0].body, items[2].heredocs[0].expand) == ("a\n", False)
    assert items[3].line == 9


def test_a_shift_in_shell_arithmetic_is_no_heredoc() -> None:
    """`<<` between numbers, or without a word after it, begins no heredoc."""
    assert only("RUN echo $((1 << 3)) $((1<<3))").heredocs == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM scratch\nRNU x", "Dockerfile:2: unknown instruction 'RNU'; did you mean RUN"),
        ("FROM scratch\nFOO x", "known are ADD, ARG"),
        ("FROM scratch\nONBUILD FROM x", "Dockerfile:2: ONBUILD FROM is not allowed"),
        ("FROM scratch\nONBUILD RNU x", "Dockerfile:2: unknown instruction 'RNU'; did you mean RUN"),
        ("FROM scratch\nRUN --mont=type=cache x", "Dockerfile:2: RUN --mont is not supported; RUN takes --mount"),
        ("FROM scratch\nCOPY --link=maybe a b", "--link=maybe is neither true nor false"),
        ("FROM scratch\nCOPY --checksum=x a b", "COPY --checksum is not supported; COPY takes --chmod, --chown"),
        ("FROM scratch\nCOPY --from a b", "--from needs a value"),
        ("FROM scratch\nCOPY --from=a --from=b c d", "--from is given twice"),
        ("FROM scratch\nCOPY a", "needs one source or more"),
        ("FROM scratch\nRUN", "RUN has no argument"),
        ("FROM scratch\nRUN []", "empty list"),
        ('FROM scratch\nCMD ["a", 1]', "must hold strings only"),
        ("FROM scratch\nENV A", "ENV A has no value"),
        ("FROM scratch\nENV A=1 B", "'B' is not key=value"),
        ("FROM scratch\nENV A='1", "not closed"),
        ("FROM scratch\nSHELL sh -c", "SHELL needs a list in JSON"),
        ("FROM scratch\nRUN <<EOF\nx", "Dockerfile:2: the heredoc EOF has no end"),
        ("FROM a b", "FROM takes an image"),
        ("RUN x\nFROM scratch", "Dockerfile:1: RUN stands before the first FROM"),
        ("# escape=x\nFROM scratch", r"Dockerfile:1: escape must be"),
        ("# only a comment", "no instruction"),
        ("", "no instruction"),
        ("ARG A=1", "ARG stands before the first FROM"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(text: str, message: str) -> None:
    """Each mistake gives one message with file, line and what to do."""
    with pytest.raises(DockerfileError) as caught:
        parse(text)
    assert message in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*sorted(INSTRUCTIONS), "BAD"]),
            st.text(st.sampled_from("ab=$\"'\\[]{}<- #\n\tEOF`,:/"), max_size=30),
        ),
        max_size=6,
    )
)
def test_any_text_is_parsed_or_refused(lines: list[tuple[str, str]]) -> None:
    """Whatever a file holds, parsing ends with instructions or with a DockerfileError."""
    text = "\n".join(f"{keyword} {rest}" for keyword, rest in [("FROM", "scratch"), *lines])
    found: tuple[Instruction, ...] = ()
    with contextlib.suppress(DockerfileError):
        found = parse(text).instructions
    assert all(item.keyword in INSTRUCTIONS for item in found)
    assert [item.line for item in found] == sorted(item.line for item in found)
