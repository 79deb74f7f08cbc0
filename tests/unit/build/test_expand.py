import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch_agent.build.expand import ExpansionError, expand, split_words

VARIABLES = {"a": "1", "long_name": "x y", "empty": "", "path": "/bin"}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("$a", "1"),
        ("${a}b", "1b"),
        ("$ab", ""),
        ("$long_name.", "x y."),
        ("a$", "a$"),
        ("$$", "$$"),
        (r"\$a", "$a"),
        (r"\\$a", r"\1"),
        ("'$a'", "$a"),
        ('"$a"', "1"),
        ('"\\$a \\" \\n"', '$a " \\n'),
        ("'it'\"'\"'s'", "it's"),
        ("${none:-d}", "d"),
        ("${none-d}", "d"),
        ("${empty:-d}", "d"),
        ("${empty-d}", ""),
        ("${a:-d}", "1"),
        ("${a:+s}", "s"),
        ("${empty:+s}", ""),
        ("${empty+s}", "s"),
        ("${none+s}", ""),
        ("${none:-${empty:-${path}/x}}", "/bin/x"),
        ("${none:-'}'}", "}"),
        ('${none:-"a b"}', "a b"),
        ("${a:?needed}", "1"),
    ],
)
def test_variables_and_quotes_as_docker_documents(word: str, value: str) -> None:
    """Replacement, defaults, alternatives, escapes and quotes follow docker's reference."""
    assert expand(word, VARIABLES) == value


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${a", "not supported"),
        ("${", "not followed by a name"),
        ("${a:-b", "not closed"),
        ("${a!b}", "not supported"),
        ("${a:=b}", "not supported"),
        ("'a", "not closed"),
        ('"a', "not closed"),
        ("${none:?set it}", "none is not set: set it; pass it by --build-arg"),
        ("${none:-" * 30 + "}" * 30, "nested deeper"),
    ],
)
def test_malformed_words_are_refused(word: str, message: str) -> None:
    """What cannot be replaced is an error that says so."""
    with pytest.raises(ExpansionError) as caught:
        expand(word, VARIABLES)
    assert message in str(caught.value)


def test_another_escape_character() -> None:
    """With the backtick as escape a backslash is ordinary."""
    assert expand("C:\\dir\\`$a", VARIABLES, escape="`") == "C:\\dir\\$a"


def test_words_are_split_outside_of_quotes() -> None:
    """Blanks in quotes and escaped blanks do not split."""
    assert split_words("a 'b c'  d\\ e \"f g\"h") == ("a", "'b c'", "d\\ e", '"f g"h')


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab${}:-+?'\"\\ /"), max_size=40))
def test_any_word_is_replaced_or_refused(word: str) -> None:
    """No word leads to another error, and a word without marks stays as it is."""
    try:
        value = expand(word, VARIABLES)
    except ExpansionError:
        return
    if not set(word) & set("$'\"\\"):
        assert value == word
